"""What `import lightning_meta as lm` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

import lightning_meta as lm
from lightning_meta.configuration import import_class, public_path, real_path

ROOMS: list[ModuleType] = [lm, lm.nn, lm.sources, lm.weightings, lm.functional, lm.pictures, lm.testing]
PUBLIC = [(room.__name__, name) for room in ROOMS for name in room.__all__]
HEAVY = ("PIL", "pooch", "wandb", "matplotlib", "pyarrow", "scipy", "torchvision", "jsonargparse")


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=lambda value: str(value))
def test_every_public_name_is_there_and_a_class_is_known_by_it(room: str, name: str) -> None:
    value: Any = getattr(sys.modules[room], name)
    assert name in dir(sys.modules[room])
    if isinstance(value, type) and value.__module__.startswith("lightning_meta"):
        path = public_path(value)
        assert path.count(".") <= 2, path
        assert import_class(path) is value
        assert import_class(real_path(path)) is value


def _modules_after(statements: str) -> set[str]:
    code = f"import lightning.pytorch, sys; before = set(sys.modules); {statements}; print(*set(sys.modules) - before)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_imports_no_part_of_it() -> None:
    loaded = _modules_after("import lightning_meta as lm")
    assert {name for name in loaded if name.startswith("lightning_meta")} == {"lightning_meta"}


@pytest.mark.parametrize(
    ("name", "needs"),
    {
        "ProtoNet": (),
        "MultiHead": (),
        "EpisodicDataModule": (),
        "nn.Conv4": (),
        "load": (),
        "sources.Table": (),
        "sources.Sinusoid": (),
        "sources.Omniglot": ("pooch", "PIL"),
    }.items(),
)
def test_one_part_does_not_import_the_others(name: str, needs: tuple[str, ...]) -> None:
    loaded = _modules_after(f"import lightning_meta as lm; lm.{name}")
    assert not loaded & (set(HEAVY) - set(needs))
    parts = {module.split(".")[1] for module in loaded if module.startswith("lightning_meta.")}
    assert not parts & {"cli", "report", "pictures", "testing", "integrations"}
    if not name.startswith("sources"):
        assert "sources" not in parts


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="ProtoNets"):
        lm.ProtoNets  # type: ignore[attr-defined]  # noqa: B018
