"""The tests that all trained modules must pass: checkpoints, several ranks, and evaluation."""

from __future__ import annotations

import tempfile
import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.loading import load
from lightning_meta.module import TrainedModule
from lightning_meta.testing.comparing import differing, named_tensors
from lightning_meta.testing.ranks import reach, weights_on


class TrainedModuleTests:
    """The tests of modules of any kind."""

    allow: tuple[str | type, ...] = ()
    """Classes that `lightning_meta.load` may instantiate besides the module's own class."""

    tolerance = 1e-12
    """Relative tolerance of float64 weights after training on two ranks instead of one process."""

    @abstractmethod
    def make(self) -> Any:
        """A new untrained module; its weights must depend only on the seed of `torch.manual_seed`."""

    @abstractmethod
    def make_data(self) -> LightningDataModule:
        """The training data; the same in each call."""

    def made(self, exact: bool = False) -> Any:
        """The module in its initial state; with `exact`, it is trained by plain gradient descent."""
        torch.manual_seed(0)
        module = self.make()
        assert isinstance(module, TrainedModule), f"make() returned a {type(module).__name__}; expected a TrainedModule"
        if exact:
            module.optimizer = _descent
        return module

    def trainer(self, steps: int = 2, **options: Any) -> L.Trainer:
        """A silent Trainer on the CPU."""
        given: dict[str, Any] = {"devices": 1, "strategy": "auto", "enable_checkpointing": False, **options}
        return L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            **given,
        )

    def test_evaluation_leaves_no_trace(self) -> None:
        """Validation and test change no parameter, no buffer and no random state."""
        module, data, trainer = self.made(), self.make_data(), self.trainer(1)
        trainer.fit(module, datamodule=data)
        before, random = named_tensors(module), torch.get_rng_state()
        trainer.limit_val_batches = 1.0
        trainer.validate(module, datamodule=data, verbose=False)
        trainer.test(module, datamodule=data, verbose=False)
        changed = differing(before, named_tensors(module))
        assert not changed, (
            f"validation or test changed {changed}; expected the module to stay as it was: evaluate on copies, with "
            "functional calls"
        )
        assert torch.equal(random, torch.get_rng_state()), (
            "validation or test drew from torch's global random stream; expected its state to stay as it was"
        )

    def test_a_checkpoint_is_enough(self) -> None:
        """`lightning_meta.load` makes the same module from the checkpoint's path alone."""
        module, data, trainer = self.made(), self.make_data(), self.trainer()
        trainer.fit(module, datamodule=data)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.ckpt"
            trainer.save_checkpoint(path)
            try:
                again = load(path, allow=[*self.allow, type(module)])
            except UserError as error:
                raise AssertionError(
                    f"expected the checkpoint to load by its path alone; load raised: {error}"
                ) from error
        lost = differing(named_tensors(module), named_tensors(again))
        assert not lost, (
            f"in a loaded module {lost} have other values; expected those that were saved: register tensors as "
            "parameters or buffers"
        )
        before = trainer.test(module, datamodule=data, verbose=False)
        after = trainer.test(again, datamodule=data, verbose=False)
        assert before == after, (
            f"a loaded module has other test figures, {after}; expected {before}, as before it was saved: is all state "
            "saved?"
        )

    def test_a_subclass_may_set_attributes_late(self) -> None:
        """`build` sees what a subclass sets after `super().__init__()`, whoever says what the data look like."""
        module, data = self.made(), self.make_data()
        data.prepare_data()
        data.setup("fit")
        late = _late(type(module))
        described = {**module._init_args, module.spec_name: data.spec}  # type: ignore[attr-defined]
        first = late(**described)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = {"state_dict": first.state_dict()}
            first.on_save_checkpoint(checkpoint)
            torch.save(checkpoint, Path(folder) / "late.ckpt")
            again = load(Path(folder) / "late.ckpt", allow=[*self.allow, type(module), late])
        lost = differing(named_tensors(first), named_tensors(again))
        assert not lost, f"in a loaded module {lost} have other values; expected those that were saved"

    def test_a_resumed_run_is_exact(self) -> None:
        """Four steps, and two steps with two more after a restart, give the same weights to the last bit."""
        whole, resumed = self.made(), self.made()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the callback that only the first part has
            self.trainer(4).fit(whole, datamodule=self.make_data())
            within_training = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
            first = self.trainer(2, enable_checkpointing=True, callbacks=[within_training])
            first.fit(self.made(), datamodule=self.make_data())
            self.trainer(4).fit(resumed, datamodule=self.make_data(), ckpt_path=Path(folder) / "step=2.ckpt")
        different = differing(named_tensors(whole), named_tensors(resumed))
        assert not different, (
            f"after a resume {different} differ; expected the weights of an uninterrupted run: does the checkpoint "
            "lack some of the training state?"
        )

    def test_two_ranks_train_as_one_process(self) -> None:
        """In float64, on the same batches: the ranks' shares together are what one process sees."""
        one = self.trained_on(1)
        two = self.trained_on(2)
        assert one.keys() == two.keys(), (
            f"two ranks have the parameters {sorted(two)}; expected those of one process, {sorted(one)}"
        )
        different = [name for name in one if float((one[name] - two[name]).abs().max()) > self.tolerance]
        assert not different, (
            f"after training on two ranks {different} differ by more than {self.tolerance:g}; expected the weights of "
            "one process: is something not reduced over ranks?"
        )

    def trained_on(self, world: int) -> dict[str, Tensor]:
        """The weights after three steps on `world` ranks, trained in separate processes."""
        file, name = reach(type(self))
        return weights_on(world, file, [name])[name]


def _late(cls: type[TrainedModule]) -> type[TrainedModule]:
    """A subclass whose `build` needs an attribute that its constructor sets last."""

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        cls.__init__(self, *args, **options)
        self.set_late = 1

    def build(self: Any, spec: Any) -> None:
        assert self.set_late == 1
        cls.build(self, spec)

    return type(f"Late{cls.__name__}", (cls,), {"__init__": __init__, "build": build})


def _descent(parameters: Any) -> torch.optim.Optimizer:
    # Not Adam, which amplifies the rounding error of a zero gradient to the size of its steps.
    return torch.optim.SGD(parameters, 0.05)
