"""Base of the data modules: seeds, ranks and loader options."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from lightning_meta.batches import Split
from lightning_meta.checks import whole
from lightning_meta.data.loader import FirstBatches, ResumableSampler, TrainLoader
from lightning_meta.data.validation import check_validates
from lightning_meta.describing import RemembersArguments
from lightning_meta.errors import UserError, one_of
from lightning_meta.functional.precision import HAS_FLOAT64
from lightning_meta.overrides import check_overrides

Place = Literal["cpu", "accelerator"]


class SourceDataModule(RemembersArguments, LightningDataModule, ABC):
    """Base of the data modules.

    Args:
        seed: Seed of the training draws; by default that of `seed_everything`, or 0.
        num_workers: Number of loader processes.
        pool_on: Location of the stored examples: RAM ("cpu") or "accelerator".
    """

    def __init__(self, seed: int | None, num_workers: int, pool_on: Place) -> None:
        super().__init__()
        check_overrides(type(self))
        one_of("pool_on", pool_on, Place)
        whole(0, num_workers=num_workers)
        if pool_on == "accelerator" and num_workers:
            raise UserError(
                f"num_workers: {num_workers} loader processes cannot reach a pool on the accelerator; "
                "use num_workers=0 or pool_on=cpu"
            )
        self.seed, self.num_workers, self.pool_on = seed, num_workers, pool_on

    @property
    def train_seed(self) -> int:
        """The seed of the training draws."""
        return self.seed if self.seed is not None else run_seed()

    @property
    def ranks(self) -> tuple[int, int]:
        """The number of ranks, and the number of this rank."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    @property
    def pool_device(self) -> torch.device:
        """The device of the stored examples."""
        on_accelerator = self.pool_on == "accelerator" and self.trainer is not None
        return self.trainer.strategy.root_device if on_accelerator else torch.device("cpu")  # type: ignore[union-attr]

    @property
    def has_float64(self) -> bool:
        """Whether the accelerator supports float64."""
        return self.trainer is None or self.trainer.strategy.root_device.type in HAS_FLOAT64

    def undo_reset(self) -> None:
        """Restore the random state that the strategy replaced; sources then draw the same for any number of ranks."""
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        if hasattr(module, "undo_reset"):  # a module of this package
            module.undo_reset()

    def configure_module(self) -> None:
        """Let the module create the parameters that depend on the tasks.

        Lightning calls `configure_model` after the `setup` of the callbacks, which is too late for those that copy the
        module there.
        """
        trainer = self.trainer
        module = None if trainer is None else trainer.lightning_module
        if trainer is None or module is None or not (hasattr(module, "episodes") or hasattr(module, "tasks")):
            return  # not a module of this package
        contexts = trainer.strategy.tensor_init_context(), trainer.strategy.model_sharded_context()
        with contexts[0], contexts[1], trainer.precision_plugin.module_init_context():  # as the Trainer does
            module.configure_model()

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the examples, recorded with the results; "" if there is none."""

    @abstractmethod
    def division(self) -> dict[Split, str]:
        """Return a hash of the examples by split, compared on resume; empty if no examples are stored."""

    def training_hash(self) -> str:
        """Return the entry of the training split in `division`, after the setup of any stage; "" if there is none."""
        return self.division().get("train", "")

    def provenance(self) -> dict[str, str]:
        """Return what else identifies the test tasks, recorded with the results."""
        return {}

    def training_loader(self, sampler: ResumableSampler) -> DataLoader[Any]:
        """Return a loader of training batches; with `overfit_batches`, of the same ones in every epoch."""
        if self.trainer is not None:
            check_validates(self.trainer, sampler.batches)
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            options = {"batch_size": sampler.share, "collate_fn": sampler.collate, **self.loader_options()}
            return DataLoader(sampler.dataset, sampler=FirstBatches(sampler), **options)
        return TrainLoader(sampler, **self.loader_options())

    def loader_options(self) -> dict[str, Any]:
        """Return the options of every `torch.utils.data.DataLoader`."""
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": self.num_workers,
            "pin_memory": on_cuda and self.pool_on == "cpu",
            "persistent_workers": self.num_workers > 0,
            # Loaders always draw a seed for workers; a separate generator keeps torch's global stream unchanged.
            "generator": torch.Generator(),
        }


def run_seed() -> int:
    """Return the seed of `lightning.seed_everything`, or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
