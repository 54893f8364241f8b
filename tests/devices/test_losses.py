"""On an accelerator the loss is not read in every step; a loss that is not finite still ends training, by its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_meta as lm
from lightning_meta.batches import Examples
from lightning_meta.loss_watch import EVERY
from lightning_meta.meta.base import Outcome
from lightning_meta.nn import MLP
from lightning_meta.testing.toys import pictures
from tests.devices.pretend import Elsewhere, accelerator, trainer


class Fails(lm.ProtoNet):
    """A module whose loss is NaN in one step."""

    def __init__(self, at: int) -> None:
        super().__init__(MLP(256, (8,)))
        self.at, self.factor = at, 1.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.factor = float("nan") if self.global_step == self.at else 1.0

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        outcome = super().task_loss(support, query, ways)
        return outcome._replace(loss=outcome.loss * self.factor)


def fails(at: int, **options: Any) -> int:
    """The number of steps that were made until training ended, which names the one that failed."""
    with accelerator():
        runs = trainer(limit_val_batches=0, log_every_n_steps=10**6, **options)
        with pytest.raises(lm.NonFiniteLossError, match=f"became nan at step {at}$"):
            runs.fit(Fails(at), pictures())
    return runs.global_step


def test_the_failed_step_is_named_at_the_end_of_the_epoch() -> None:
    assert fails(4, max_epochs=9) == 6  # three steps an epoch


def test_losses_of_a_training_that_was_interrupted_are_forgotten() -> None:
    class Interrupted(Fails):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            if self.at == 0:
                raise MemoryError

    module = Interrupted(0)
    with accelerator():
        with pytest.raises(MemoryError):
            trainer(limit_val_batches=0, max_epochs=1).fit(module, pictures())
        module.at = -1
        for p in module.parameters():
            p.data.fill_(0.01)
        trainer(limit_val_batches=0, max_epochs=1).fit(module, pictures())


def test_a_long_epoch_is_looked_at_now_and_then() -> None:
    data = pictures()
    data.meta_batches_per_epoch = 3 * EVERY
    with accelerator():
        runs = trainer(limit_val_batches=0, max_epochs=1)
        with pytest.raises(lm.NonFiniteLossError, match=r"at step 7$"):
            runs.fit(Fails(7), data)
    assert runs.global_step < EVERY


def test_weights_of_a_loss_that_was_not_finite_are_not_stored(tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fails(2, max_epochs=9, callbacks=[saves], enable_checkpointing=True)
    assert [file.name for file in tmp_path.iterdir()] == ["step=2.ckpt"]


def test_an_ordinary_step_reads_nothing_from_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a value waits until the accelerator has finished all its work."""
    reads: list[str] = []
    dispatch = Elsewhere.__torch_dispatch__.__func__  # type: ignore[attr-defined]

    def counted(cls: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        target = (kwargs or {}).get("device")
        if name in ("_local_scalar_dense", "nonzero") or (name == "_to_copy" and target == torch.device("cpu")):
            reads.append(name)
        return dispatch(cls, func, types, args, kwargs)

    def listed(x: Elsewhere) -> Any:
        reads.append("tolist")
        return x.value.tolist()

    class Counts(lm.ProtoNet):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            reads.clear()

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            seen.append(list(reads))

    seen: list[list[str]] = []
    monkeypatch.setattr(Elsewhere, "__torch_dispatch__", classmethod(counted))
    monkeypatch.setattr(Elsewhere, "tolist", listed)
    with accelerator():
        trainer(limit_val_batches=0, max_epochs=1, log_every_n_steps=10**6).fit(Counts(MLP(256, (8,))), pictures())
    assert len(seen) == 3
    assert not any(seen[1:]), seen
