"""What `import lightning_meta as lm` gives, and what it costs."""

from __future__ import annotations

import json
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


NEEDS = {
    "": (),  # the package alone
    **dict.fromkeys(("ProtoNet", "MultiHead", "EpisodicDataModule", "nn.Conv4", "load"), ()),
    **{"sources.Table": (), "sources.Sinusoid": (), "sources.Omniglot": ("pooch", "PIL")},
}
# Lightning takes seconds to import: each part is used in a fork of one process that has done so.
USED = """
import json, os, sys, lightning.pytorch
before = set(sys.modules)
for name in json.loads(sys.argv[1]):
    if os.fork():
        os.wait()
        continue
    import lightning_meta as part
    for attribute in filter(None, name.split(".")):
        part = getattr(part, attribute)
    print(json.dumps([name, *(set(sys.modules) - before)]), flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="os.fork")
def test_one_part_does_not_import_the_others() -> None:
    command = [sys.executable, "-c", USED, json.dumps(list(NEEDS))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {name: set(modules) for name, *modules in map(json.loads, done.stdout.splitlines())}
    assert {m for m in loaded[""] if m.startswith("lightning_meta")} == {"lightning_meta"}
    for name, needs in NEEDS.items():
        assert not loaded[name] & (set(HEAVY) - set(needs)), name
        parts = {module.split(".")[1] for module in loaded[name] if module.startswith("lightning_meta.")}
        assert not parts & {"cli", "report", "pictures", "testing", "integrations"}, name
        assert name.startswith("sources") or "sources" not in parts, name


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="ProtoNets"):
        lm.ProtoNets  # type: ignore[attr-defined]  # noqa: B018
