"""The memory of an evaluation grows by the arrays that it returns, not with its number of batches."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data import EpisodicDataModule, Pool
from lightning_meta.data.source import Source
from lightning_meta.meta import MAML, Baseline, MetaModule, ProtoNet
from lightning_meta.meta.scores import TaskScores
from lightning_meta.multitask.records import TaskRecords
from lightning_meta.nn import MLP
from lightning_meta.tasks import Classification, Regression
from lightning_meta.tasks.together import Losses
from tests.devices.toys import Tasks, multi_task

WAYS, QUERIES, TASKS = 100, 5, 2


class ManyClasses(Source):
    """100 classes of 8 examples, six numbers each."""

    def pools(self) -> dict[Split, Pool]:
        names = {split: tuple(f"{split}{c}" for c in range(WAYS)) for split in SPLITS}
        x = torch.randn(8 * WAYS, 6, generator=torch.Generator().manual_seed(0))
        sizes = torch.full((WAYS,), 8)
        return {split: Pool(x + i, sizes, names[split], names[split]) for i, split in enumerate(SPLITS)}


@pytest.fixture(autouse=True)
def _new_objects_alone() -> Iterator[None]:
    """Freeze the objects of earlier tests, so that they are not searched after every batch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held() -> int:
    """Bytes of all tensors that were made since the test began and are alive, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter):
            with contextlib.suppress(RuntimeError, NotImplementedError):  # what other tests traced has no memory
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Held(L.Callback):
    """Records the memory in use after each batch, when the tensors of the batch have been freed."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def on_validation_batch_start(self, *args: Any) -> None:
        self.bytes.append(held())

    def on_test_batch_start(self, *args: Any) -> None:
        self.bytes.append(held())


def evaluated(
    make: Callable[[], MetaModule], stage: str, batches: int, accelerator: str = "cpu"
) -> tuple[list[int], MetaModule]:
    count = TASKS * batches
    data = EpisodicDataModule(
        ManyClasses(), ways=WAYS, shots=1, queries=QUERIES, val_tasks=count, test_tasks=count, meta_batch_size=1,
        evaluation_meta_batch_size=TASKS, seed=0,
    )  # fmt: skip
    callback, module = Held(), make()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator=accelerator, devices=1, enable_checkpointing=False, callbacks=[callback], **quiet)
    getattr(trainer, stage)(module, datamodule=data, verbose=False)
    assert len(callback.bytes) == batches
    return callback.bytes, module


MODULES: dict[str, Callable[[], MetaModule]] = {
    "ProtoNet": lambda: ProtoNet(MLP(6, (8,))),
    "MAML": lambda: MAML(MLP(6, (8,)), 0.1, 3),
    "Baseline": lambda: Baseline(MLP(6, (8,)), head_steps=2),
}
OUTPUTS = TASKS * WAYS * QUERIES * WAYS * 4  # bytes of a batch's predictions


@pytest.mark.parametrize("name", MODULES)
def test_validation_holds_no_more_after_many_batches_than_after_one(name: str) -> None:
    steps, _ = evaluated(MODULES[name], "validate", 8)
    assert steps[7] - steps[1] < OUTPUTS / 100, f"{(steps[7] - steps[1]) / 6:.0f} bytes a batch, of {OUTPUTS}"


@pytest.mark.parametrize("name", MODULES)
def test_testing_holds_what_it_writes_and_no_more(name: str) -> None:
    steps, module = evaluated(MODULES[name], "test", 8)
    written = sum(module.test_report["predictions"][column].nbytes for column in ("output", "target")) / 8
    growth = (steps[7] - steps[1]) / 6
    assert written * 0.99 < growth < written * 1.01, f"{growth:.0f} bytes a batch, of which {written:.0f} are written"


def test_scores_hold_no_view_of_what_they_are_given() -> None:
    for keep in (False, True):
        scores = TaskScores(keep_outputs=keep)
        outputs, targets = torch.randn(4, 11, 30, 5), torch.zeros(3, 4, 30)
        tasks, loss, score = torch.arange(12), torch.zeros(12), torch.zeros(12, 2)
        scores.update(tasks[:4], loss[:4], score[:4], outputs[:, -1], targets[1])
        kept = [t for name in ("tasks", "loss", "scores", "outputs", "targets") for t in getattr(scores, name)]
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in kept)
        assert scores.outputs[0].numel() == (4 * 30 * 5 if keep else 0)


def test_records_hold_no_view_of_what_they_are_given() -> None:
    records = TaskRecords({"a": Classification(3), "b": Regression(2)})
    whole = {"ids": torch.arange(100), "losses": torch.zeros(100), "outputs": torch.zeros(100, 9)}
    ids, losses, outputs = whole["ids"][:4], whole["losses"][:4], whole["outputs"][:4]
    for name, width, targets in (("a", 3, torch.arange(100)), ("b", 2, torch.zeros(100, 2))):
        of_task = {name: ids}, {name: outputs[:, :width]}, {name: targets[:4]}
        records.update([Losses([name], [4], losses)], *of_task)
    names = ("task_numbers", "ids", "kinds", "losses", "outputs", "targets")
    kept = [t for name in names for t in getattr(records, name)]
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in kept)


@pytest.mark.parametrize("kind", ["own sets", "missing labels"])
def test_a_loader_of_training_batches_holds_no_more_after_many_epochs(kind: str) -> None:
    data = multi_task(Tasks(kind))
    loader, bytes_held = data.train_dataloader(), []
    for _ in range(6):
        for _ in loader:
            pass
        bytes_held.append(held())
    assert bytes_held[5] < 1.05 * bytes_held[1]
