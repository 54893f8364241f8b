"""Every module and data module on an accelerator: trained, tested, used, and the same as on the CPU.

See `pretend`: what mixes devices, reads an accelerator's tensor as NumPy or makes a float64 tensor there is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from lightning_meta.batches import Split
from lightning_meta.data.module import Place
from lightning_meta.data.task_set import TaskSet
from lightning_meta.multitask import GradientConflict, MultiHead
from lightning_meta.nn import MLP
from lightning_meta.pictures import ConfusionByClass, EpisodeEmbedding, EpisodeGrid, ShotAndWay
from lightning_meta.run.results import facts, write_report
from tests.devices.pretend import DEVICE, NotHere, accelerator, trainer
from tests.devices.toys import EPISODES, META, MULTI, MULTI_TASK, Tasks, multi_task

MODULES: dict[str, Any] = {**META, **MULTI}
OF_EACH_KIND = ("ProtoNet", "MAML", "MultiHead")  # run by default; the others are among the slow tests
PLACES: tuple[Place, ...] = ("cpu", "accelerator")


@pytest.fixture(autouse=True)
def _no_trial_of_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself crashes where a gradient is taken of pretended tensors within a function mode, without `vmap`."""
    monkeypatch.setattr("lightning_meta.meta.gradient_based.check_derivatives", lambda *_: None)


@pytest.fixture
def card() -> Iterator[torch.device]:
    with accelerator() as device:
        yield device


# The pretended device is as strict as it says


def test_it_refuses_what_an_accelerator_refuses(card: torch.device) -> None:
    x = torch.arange(3.0).to(card)
    with pytest.raises(NotHere, match="on the CPU"):
        x + torch.ones(3)
    with pytest.raises(NotHere, match="on the CPU"):
        torch.ones(3)[torch.tensor([0, 1], device=card)]
    with pytest.raises(NotHere, match="float64"):
        x.double()
    with pytest.raises(NotHere, match="float64"):
        torch.ones(3, dtype=torch.float64).to(card)
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="numpy"):
        np.asarray(x)
    assert x[torch.tensor([2, 0])].tolist() == [2, 0], "indices may lie on the CPU, as torch has it"
    assert (x + torch.tensor(1.0)).cpu().numpy().tolist() == [1, 2, 3]


def test_it_trains_as_the_cpu_does(card: torch.device) -> None:
    gradients = []
    for device in (torch.device("cpu"), card):
        torch.manual_seed(0)
        net = MLP(4, (8,)).to(device)
        net(torch.ones(3, 4, device=device)).square().sum().backward()
        gradients.append([p.grad.cpu() for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# Modules


class _Where(L.Callback):
    """Sees to it that all that a step takes lies where it should."""

    def __init__(self, device: str) -> None:
        self.device = device

    def on_train_batch_start(self, trainer: Any, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
        assert {t.device.type for t in [*tensors, *pl_module.parameters()]} == {self.device}


def results(name: str, place: Place | None) -> tuple[dict[str, float], Any, Any, str]:
    """The results of a short training: test metrics, the report, predictions and the fingerprint of the data."""
    make, kind = MODULES[name]
    data = {**EPISODES, **MULTI_TASK}[kind](pool_on=place or "cpu")
    torch.manual_seed(0)
    module = make()
    module.optimizer = partial(torch.optim.SGD, lr=0.05)  # Adam blows up the rounding of gradients near 0
    where = _Where(DEVICE.type if place else "cpu")
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options: dict[str, Any] = {"max_epochs": 1, "log_every_n_steps": 1, "callbacks": [where], **quiet}
    runs = trainer(**options) if place else L.Trainer(accelerator="cpu", enable_model_summary=False, **options)
    runs.fit(module, datamodule=data)
    runs.validate(module, datamodule=data, verbose=False)
    figures = {name: v for loader in runs.test(module, datamodule=data, verbose=False) for name, v in loader.items()}
    predictions = runs.predict(module, datamodule=data)
    assert facts(module, data, runs)["data_fingerprint"] == (data.fingerprint() or None)
    return figures, module.test_report, predictions, data.fingerprint()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OF_EACH_KIND else pytest.mark.slow) for name in MODULES]
)
def test_a_run_on_an_accelerator_is_that_on_the_cpu(name: str, tmp_path: Path) -> None:
    expected, report, predictions, fingerprint = results(name, None)
    for place in PLACES if name in OF_EACH_KIND else PLACES[1:]:
        with accelerator():
            found, reported, predicted, printed = results(name, place)
            write_report(tmp_path, reported)
        assert printed == fingerprint
        assert found.keys() == expected.keys()
        for metric, value in expected.items():
            assert found[metric] == pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True), metric
        for column, values in report["predictions"].items():
            assert reported["predictions"][column].dtype == values.dtype
            if values.dtype.kind == "f":
                np.testing.assert_allclose(reported["predictions"][column], values, rtol=1e-3, atol=1e-4)
            else:
                np.testing.assert_array_equal(reported["predictions"][column], values)
        assert len(predicted) == len(predictions)
        assert [row["task"] for row in reported["per_task"]] == [row["task"] for row in report["per_task"]]


@pytest.mark.parametrize("name", META)
def test_a_predictor_on_an_accelerator_takes_inputs_from_anywhere(name: str, card: torch.device) -> None:
    make, kind = META[name]
    data = EPISODES[kind]()
    module = make()
    trainer(max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
    batch = next(iter(data.test_dataloader()))
    module.to(card)
    (x, y), query = (part[0] for part in batch.support), batch.query.x[0]
    for device in (torch.device("cpu"), card):
        predictor = module.predictor(x.to(device), y.to(device))
        answers = predictor(query.to(device))
        assert len(answers) == len(query)
        assert predictor.depends_on_company in (True, False)


@pytest.mark.parametrize("place", PLACES)
def test_pictures_are_drawn_on_an_accelerator(place: Place, card: torch.device, tmp_path: Path) -> None:
    pictures = [EpisodeGrid(), ConfusionByClass(), EpisodeEmbedding(), ShotAndWay(ways=[2, 3], shots=[1, 2], tasks=4)]
    runs = trainer(max_steps=1, limit_val_batches=0, callbacks=pictures, default_root_dir=tmp_path)
    module, data = META["ProtoNet"][0](), EPISODES["images"](pool_on=place)
    runs.fit(module, datamodule=data)
    runs.test(module, datamodule=data, verbose=False)
    drawn = {file.stem for file in (tmp_path / "figures").glob("*.png")}
    assert drawn == {picture.file for picture in pictures}, "a picture that cannot be drawn is a warning, and no file"


@pytest.mark.parametrize("place", PLACES)
def test_gradients_are_recorded_on_an_accelerator(place: Place, card: torch.device, tmp_path: Path) -> None:
    module = MultiHead(MLP(4, (8,)))
    callback = GradientConflict(every_n_steps=1)
    runs = trainer(max_steps=2, limit_val_batches=0, callbacks=[callback], default_root_dir=tmp_path)
    runs.fit(module, datamodule=multi_task(Tasks("missing labels"), pool_on=place))
    rows = (tmp_path / "gradient_conflict.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 4 * 4


@pytest.mark.parametrize("name", EPISODES)
def test_a_pool_on_an_accelerator_gives_the_same_episodes(name: str, card: torch.device) -> None:
    expected = EPISODES[name]()
    data = EPISODES[name](pool_on="accelerator")
    data.trainer = trainer(max_steps=1)
    data.setup("fit")
    expected.setup("fit")
    for split in ("train", "val", "test"):
        here, there = (d.datasets[split].__getitems__([0]) for d in (expected, data))
        assert torch.equal(here.support.x, there.support.x.cpu())
        assert torch.equal(here.query.y, there.query.y.cpu())
        if name not in ("sine waves", "lines"):  # made on the CPU, and moved by the Trainer
            assert there.support.x.device.type == there.query.y.device.type == DEVICE.type


def test_what_is_stored_in_float64_is_narrowed_for_an_accelerator_without_it(card: torch.device) -> None:
    class Wide(Tasks):
        def sets(self) -> dict[Split, TaskSet]:
            return {split: self.widened(data) for split, data in super().sets().items()}

        @staticmethod
        def widened(data: TaskSet) -> TaskSet:
            assert isinstance(data.inputs, torch.Tensor)
            targets = {**data.targets, "b": data.targets["b"].double()}
            return TaskSet(data.inputs.double(), targets, data.rows)

    for place in PLACES:
        module, data = MultiHead(MLP(4, (8,))), multi_task(Wide("shared inputs"), pool_on=place)
        trainer(max_steps=2).fit(module, datamodule=data)
        assert module.spec.input_dtypes["a"] == "float64"
