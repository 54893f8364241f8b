"""Small inputs beside which users make mistakes: three configurations, a table, a folder of images."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

TRAINER = {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}


def of(class_path: str, **init_args: Any) -> dict[str, Any]:
    """A class of the package and its arguments, as a configuration has them."""
    return {"class_path": f"lightning_meta.{class_path}", "init_args": init_args}


MAML = {
    "model": of("meta.MAML", backbone=of("nn.MLP", hidden=[4]), inner_steps=1),
    "data": of(
        "data.EpisodicDataModule",
        source=of("data.sources.Sinusoid"),
        shots=5,
        queries=5,
        meta_batches_per_epoch=2,
        val_tasks=2,
        test_tasks=2,
    ),
    "checkpoint": {"monitor": "val/mse", "mode": "min"},
    "trainer": TRAINER,
}
TABLE = {
    "model": of("multitask.MultiHead", backbone=of("nn.MLP", in_features=2, hidden=[4])),
    "data": of(
        "data.MultiTaskDataModule",
        source=of("data.sources.Table", path="houses.csv", targets={"price": "regression", "style": None}),
        batches_per_epoch=2,
    ),
    "checkpoint": {"monitor": "val/score"},
    "trainer": TRAINER,
}
IMAGES = {
    "model": of("meta.ProtoNet", backbone=of("nn.Conv4", in_channels=3, width=4, blocks=2)),
    "data": of(
        "data.EpisodicDataModule",
        source=of("data.sources.ImageFolder", root="pets", image_size=8),
        ways=2,
        shots=1,
        queries=1,
        meta_batches_per_epoch=2,
        val_tasks=2,
        test_tasks=2,
    ),
    "trainer": TRAINER,
}
CONFIGS = {"maml": MAML, "table": TABLE, "images": IMAGES}


def changed(config: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> str:
    """The text of a configuration after a change in place."""
    config = copy.deepcopy(config)
    change(config)
    return yaml.safe_dump(config, sort_keys=False)


def write_inputs(folder: Path) -> None:
    """Write all of them, and `texts`, into a folder."""
    for name, config in CONFIGS.items():
        folder.joinpath(f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for name, text in TEXTS.items():
        folder.joinpath(name).write_text(text)
    folder.joinpath("latin.csv").write_bytes("größe,rooms,price,style\n1,2,3,ä\n".encode("latin-1"))
    draws = np.random.default_rng(0)
    rows = [f"{i % 7},{i % 5},{i * 1.5},{'abc'[i % 3]}" for i in range(40)]
    folder.joinpath("houses.csv").write_text("\n".join(["size,rooms,price,style", *rows, ""]))
    for number in range(11):
        for i in range(3):
            file = folder / ("pets" if number < 10 else "few") / f"class_{number}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
    folder.joinpath("mini.zip").write_text("this is no archive")
    with zipfile.ZipFile(folder / "config.zip", "w") as archive:
        archive.writestr("maml.yaml", "x")


def _callbacks(*specs: Any) -> str:
    return changed(MAML, lambda c: c["trainer"].update(callbacks=list(specs)))


def _source(change: Callable[[dict[str, Any]], Any], config: dict[str, Any] = TABLE) -> str:
    return changed(config, lambda c: change(c["data"]["init_args"]["source"]))


_SCHEDULE = "torch.optim.lr_scheduler."
TEXTS = {
    "tabs.yaml": "model:\n\tclass_path: lightning_meta.MAML\n",
    "indent.yaml": "model:\n  class_path: lightning_meta.MAML\n   init_args:\n",
    "beside.yaml": changed(MAML, lambda c: c["model"].update(inner_lr=0.1)),
    "flat.yaml": _callbacks({"class_path": "EarlyStopping", "monitor": "val/mse"}),
    "twice.yaml": changed(MAML, lambda c: None) + "trainer:\n  max_steps: 3\n",
    "twice_inside.yaml": changed(MAML, lambda c: None).replace(
        "inner_steps: 1", "inner_steps: 1\n    inner_steps: 2", 1
    ),
    "empty.yaml": "",
    "list.yaml": "- model\n- data\n",
    "train.py": "import torch\nprint(torch.__version__)\n",
    "broken.json": '{"model": ',
    "ladder.yaml": "rungs:\n  a: 1\nseeds: [0]\n",
    "ladder_twice.yaml": "rungs:\n  a: 1\nrungs:\n  b: 1\n",
    "sweep.yaml": "program: scripts/fit.py\nmethod: random\nmetric: {name: val/mse, goal: minimize}\n"
    "command: ['${program}', --config=maml.yaml, '${args}']\n"
    "parameters:\n  model.init_args.inner_lr:\n    values: [0.1]\n",
    "sweep_twice.yaml": "method: random\nparameters: {a: {values: [1]}}\nparameters: {b: {values: [1]}}\n",
    "stopping.yaml": _callbacks({"class_path": "LearningRateMonitor"}, {"class_path": "EarlyStopping"}),
    "cosine.yaml": changed(
        MAML, lambda c: c["model"]["init_args"].update(lr_scheduler={"class_path": f"{_SCHEDULE}CosineAnnealingLR"})
    ),
    "no_backbone.yaml": changed(MAML, lambda c: c["model"]["init_args"].pop("backbone")),
    "no_source.yaml": changed(MAML, lambda c: c["data"]["init_args"].pop("source")),
    "a_number.yaml": changed(MAML, lambda c: c.update(trainer=5)),
    "empty_section.yaml": changed(MAML, lambda c: c.update(checkpoint=None)),
    "no_data.yaml": changed(MAML, lambda c: c.pop("data")),
    "no_targets.yaml": _source(lambda s: s["init_args"].pop("targets")),
    "no_root.yaml": _source(lambda s: s.pop("init_args"), IMAGES),
    "no_width.yaml": changed(
        MAML,
        lambda c: c["model"]["init_args"].update(
            backbone={"class_path": "torch.nn.Linear", "init_args": {"in_features": 1}}
        ),
    ),
    "maml_on_table.yaml": changed(TABLE, lambda c: c.update(model=MAML["model"])),
    "semicolons.csv": "size;rooms;price;style\n1;2;3;a\n",
    "header.csv": "size,rooms,price,style\n",
    "two_rows.csv": "size,rooms,price,style\n1,2,3,a\n2,3,4,b\n",
    "book.xlsx": "PK",
    "damaged.parquet": "PK",
}
