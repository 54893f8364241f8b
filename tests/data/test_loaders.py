"""Loaders of both data modules: without a Trainer, for predicting, and where the Trainer overfits a few batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_meta.batches import Episode, TaskBatch
from lightning_meta.meta import MAML, ProtoNet
from lightning_meta.module import TrainedModule
from lightning_meta.multitask import MultiHead
from lightning_meta.nn import MLP, Conv4
from tests.devices.toys import EPISODES, MULTI_TASK, TASKS, Images, episodic

KINDS: dict[str, Any] = {**EPISODES, **MULTI_TASK}
FAMILIES = {
    "episodes": (lambda: ProtoNet(Conv4(1, 4, blocks=2)), EPISODES["images"]),
    "inner loop": (lambda: MAML(MLP(4, (8,)), 0.1, 1), EPISODES["vectors"]),
    "tasks": (lambda: MultiHead(MLP(4, (8,))), MULTI_TASK["own sets"]),
    "shared inputs": (lambda: MultiHead(MLP(4, (8,))), MULTI_TASK["missing labels"]),
}


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **{**quiet, "enable_checkpointing": False, **options})


def same(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


# Without a Trainer


@pytest.mark.parametrize("stage", ["train", "val", "test", "predict"])
@pytest.mark.parametrize("name", KINDS)
def test_a_loader_sets_its_data_up(name: str, stage: str) -> None:
    fresh, ready = KINDS[name](), KINDS[name]()
    ready.prepare_data()
    ready.setup("fit")
    loaders = [getattr(data, f"{stage}_dataloader")() for data in (fresh, ready)]
    if stage == "test" and name in MULTI_TASK:
        loaders = [loader[0] for loader in loaders]
    assert same(*(list(loader) for loader in loaders))


def test_every_loader_can_be_asked_for_after_any_other() -> None:
    data = episodic(Images())
    for stage in ("predict", "test", "val", "train", "predict"):
        assert isinstance(next(iter(getattr(data, f"{stage}_dataloader")())), Episode)
    assert data.spec is not None
    assert data.spec.classes == 6


def test_a_loader_that_was_asked_for_early_does_not_change_training(tmp_path: Path) -> None:
    weights = []
    for early in (False, True):
        make, kind = FAMILIES["tasks"]
        data = kind()
        if early:
            next(iter(data.train_dataloader()))
        torch.manual_seed(0)
        module: Any = make()
        trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(module, datamodule=data)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*weights)


# Predicting


@pytest.mark.parametrize("name", FAMILIES)
def test_the_trainer_predicts_every_test_example(name: str, tmp_path: Path) -> None:
    make, kind = FAMILIES[name]
    data = kind()
    module: Any = make()
    runs = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    runs.fit(module, datamodule=data)
    runs.test(module, datamodule=data, verbose=False)
    report = module.test_report["predictions"]
    predicted: list[Any] = runs.predict(module, datamodule=data) or []
    if isinstance(module, MultiHead):
        for number, task in enumerate(TASKS):
            whole = torch.cat([batch[task] for batch in predicted if task in batch])
            expected = torch.from_numpy(report["output"][report["task"] == number])
            expected = module.spec.tasks[task].readable(expected[:, : module.spec.tasks[task].outputs])
            torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)
    else:
        expected = torch.from_numpy(report["output"])
        torch.testing.assert_close(torch.cat(predicted), expected, rtol=1e-5, atol=1e-5)


def test_a_trained_module_predicts_with_a_new_trainer_and_a_new_data_module(tmp_path: Path) -> None:
    for make, kind in FAMILIES.values():
        module: Any = make()
        trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, datamodule=kind())
        assert trainer(tmp_path).predict(module, datamodule=kind())


# Overfitting


class Seen(L.Callback):
    def __init__(self) -> None:
        self.epochs: dict[int, list[Episode | TaskBatch]] = {}
        self.validated = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.epochs.setdefault(trainer.current_epoch, []).append(batch)

    def on_validation_batch_start(self, *args: Any) -> None:
        self.validated += 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trainer_that_overfits_meets_the_same_batches_in_every_epoch(name: str, tmp_path: Path) -> None:
    make, kind = FAMILIES[name]
    seen = Seen()
    runs = trainer(tmp_path, overfit_batches=2, max_epochs=3, callbacks=[seen], num_sanity_val_steps=0)
    runs.fit(make(), datamodule=kind())
    assert [len(batches) for batches in seen.epochs.values()] == [2, 2, 2]
    assert not same(*seen.epochs[0])
    for epoch in (1, 2):
        assert same(seen.epochs[0], seen.epochs[epoch])
    expected = iter(kind().train_dataloader())
    assert same(seen.epochs[0], [next(expected), next(expected)]), "those of the first epoch without it"
    assert seen.validated == 6


def test_a_trainer_that_overfits_learns_its_batches_by_heart(tmp_path: Path) -> None:
    losses = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
            losses.append(float(outputs["loss"]))

    make, kind = FAMILIES["tasks"]
    module: Any = make()
    module.optimizer = lambda p: torch.optim.Adam(p, lr=0.02)
    trainer(tmp_path, overfit_batches=1, max_epochs=200, limit_val_batches=0, callbacks=[Losses()]).fit(
        module, datamodule=kind()
    )
    assert losses[-1] < 0.1 * losses[0]


# Callbacks that copy the module in their own `setup`


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_averaged_of_a_whole_module(name: str, tmp_path: Path) -> None:
    make, kind = FAMILIES[name]
    averaging = StochasticWeightAveraging(0.01, swa_epoch_start=1)
    module: Any = make()
    assert isinstance(module, TrainedModule)
    trainer(tmp_path, max_epochs=4, callbacks=[averaging], num_sanity_val_steps=0).fit(module, datamodule=kind())
    assert averaging.n_averaged is not None
    assert averaging._average_model is not None
    assert int(averaging.n_averaged) > 0
    averaged = dict(averaging._average_model.named_parameters())
    assert averaged.keys() == dict(module.named_parameters()).keys()


def test_a_module_is_whole_when_callbacks_are_set_up(tmp_path: Path) -> None:
    class Sizes(L.Callback):
        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            self.parameters = sum(p.numel() for p in pl_module.parameters())

    for make, kind in FAMILIES.values():
        sizes, module = Sizes(), make()
        trainer(tmp_path, max_steps=1, callbacks=[sizes], limit_val_batches=0).fit(module, datamodule=kind())
        assert sizes.parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
def test_a_module_of_another_library_is_left_alone(tmp_path: Path) -> None:
    class Theirs(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.made = torch.nn.Linear(4, 1), 0

        def configure_model(self) -> None:
            self.made += 1

        def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
            assert isinstance(batch.inputs, Tensor)
            loss: Tensor = self.net(batch.inputs).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Theirs()
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, datamodule=MULTI_TASK["shared inputs"]())
    assert module.made == 1
