"""The names that `import lightning_meta as lm` provides, and how long the import takes."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import make_tables
import pytest
from torch import nn

import lightning_meta as lm
from lightning_meta import meta, multitask
from lightning_meta.building import build
from lightning_meta.describing import describe, fixed_options
from lightning_meta.import_paths import import_class, public_path, real_path
from tests import methods

ROOMS: list[ModuleType] = [lm, lm.nn, lm.sources, lm.weightings, lm.functional, lm.estimators, lm.pictures, lm.testing]
PUBLIC = [(room.__name__, name) for room in ROOMS for name in room.__all__]
HEAVY = ("PIL", "pooch", "wandb", "matplotlib", "pyarrow", "scipy", "sklearn", "torchvision", "jsonargparse")


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=lambda value: str(value))
def test_every_public_name_is_there_and_a_class_is_known_by_it(room: str, name: str) -> None:
    value: Any = getattr(sys.modules[room], name)
    assert name in dir(sys.modules[room])
    if isinstance(value, type) and value.__module__.startswith("lightning_meta"):
        path = public_path(value)
        assert path.count(".") <= 2, path
        assert import_class(path) is value
        assert import_class(real_path(path)) is value


NEEDS = {
    "": (),  # the package alone
    **dict.fromkeys(("ProtoNet", "MultiHead", "EpisodicDataModule", "nn.Conv4", "load"), ()),
    **{"sources.Table": (), "sources.Sinusoid": (), "sources.Omniglot": ("pooch", "PIL")},
}
# Lightning takes seconds to import: each part is used in a fork of one process that has done so.
USED = """
import json, os, sys, lightning.pytorch
from tests.forking import fork
before = set(sys.modules)
for name in json.loads(sys.argv[1]):
    if fork():
        os.wait()
        continue
    import lightning_meta as part
    for attribute in filter(None, name.split(".")):
        part = getattr(part, attribute)
    print(json.dumps([name, *(set(sys.modules) - before)]), flush=True)
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="os.fork")
def test_one_part_does_not_import_the_others() -> None:
    command = [sys.executable, "-c", USED, json.dumps(list(NEEDS))]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    loaded = {name: set(modules) for name, *modules in map(json.loads, done.stdout.splitlines())}
    assert {m for m in loaded[""] if m.startswith("lightning_meta")} == {
        "lightning_meta",
        "lightning_meta.public_names",
    }
    for name, needs in NEEDS.items():
        assert not loaded[name] & (set(HEAVY) - set(needs)), name
        parts = {module.split(".")[1] for module in loaded[name] if module.startswith("lightning_meta.")}
        assert not parts & {"cli", "estimators", "report", "pictures", "testing", "integrations"}, name
        assert name.startswith("sources") or "sources" not in parts, name


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"No lightning_meta attribute ProtoNets; did you mean ProtoNet\?"):
        lm.ProtoNets  # type: ignore[attr-defined]  # noqa: B018
    for room, name, close in [(lm, "Maml", "MAML"), (lm.sources, "glyphs_", "Glyphs"), (meta, "Protonet", "ProtoNet")]:
        with pytest.raises(AttributeError, match=rf"No {room.__name__} attribute {name}; did you mean {close}\?"):
            getattr(room, name)
    assert not hasattr(lm, "Quux")


def test_every_method_has_a_row_in_the_table_of_the_tests() -> None:
    shipped = {"META": lm.MetaModule, "MULTI_TASK": lm.MultiTaskModule}
    for table, base in shipped.items():
        rows = getattr(methods, table)
        assert set(rows) == {c.__name__ for c in make_tables.shipped(base)}, f"{table} in tests/methods.py"
        for name, make in rows.items():
            assert type(make()).__name__ == name
    for cls in make_tables.WEIGHTINGS:
        methods.weighting(cls)


@pytest.mark.parametrize("room", [meta, multitask], ids=lambda room: room.__name__)
def test_packages_of_methods_offer_their_public_names_as_before(room: ModuleType) -> None:
    names = {name for name in dir(lm) if getattr(getattr(lm, name), "__module__", "").startswith(f"{room.__name__}.")}
    assert set(room.__all__) == set(dir(room)) == names
    for name in names:
        assert getattr(room, name) is getattr(lm, name)
    with pytest.raises(AttributeError, match="Pool"):
        room.Pool  # noqa: B018 - a public name, but not of these packages


@pytest.mark.parametrize("make", [*methods.META.values(), *methods.MULTI_TASK.values()])
def test_a_method_remembers_every_argument_by_name(make: Callable[..., Any]) -> None:
    """Arguments of base classes are included, since a later version may change their defaults."""
    module = make()
    described = describe(module)["init_args"]
    family = [c for c in type(module).__mro__ if c.__module__.startswith("lightning_meta.") and "__init__" in vars(c)]
    names = {n for c in family for n in inspect.signature(vars(c)["__init__"]).parameters} - {"self", "options", "spec"}
    assert set(described) == names - fixed_options(type(module))
    assert describe(build(describe(module))) == describe(module)


def test_only_what_a_user_s_constructor_takes_is_remembered() -> None:
    class Looped(lm.ProtoNet):
        def __init__(self, backbone: nn.Module, **options: Any) -> None:
            super().__init__(backbone, strategy="loop", **options)

    assert set(describe(Looped(lm.nn.MLP(4), temperature=2.0))["init_args"]) == {"backbone", "temperature"}
