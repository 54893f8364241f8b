"""What every module that is trained here shares: when it is built, its optimiser, its checkpoints, its inputs."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.distributed
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_meta.backbone_rate import check_schedule, groups_of, keep_in_search, scale_rates
from lightning_meta.building import is_rebuilt
from lightning_meta.checks import factory, instance, positive
from lightning_meta.configuration import Described, describe, options_of, refuse_unknown, unknown_parts
from lightning_meta.errors import NonFiniteLossError, UserError
from lightning_meta.factories import LRSchedulerCallable, OptimizerCallable
from lightning_meta.functional.ranks import world_size
from lightning_meta.loss_watch import LossWatch
from lightning_meta.migration import LAYOUT, layout_of, renamed_weights, take_precision
from lightning_meta.modes import check_mode
from lightning_meta.nn.features import as_input
from lightning_meta.nn.normalization import task_norms
from lightning_meta.resuming import check_groups, check_resumed
from lightning_meta.specifications import marked

_log = logging.getLogger(__name__)


class _BuiltWhenConstructed(ABCMeta):
    """Builds a module once its outermost constructor is done, so that `build` sees what a subclass has set."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            module = super().__call__(*args, **kwargs)
        except TypeError as error:
            _refuse_unknown_option(cls, kwargs, error)
            raise
        if not hasattr(module, "_modules"):
            raise UserError(f"{cls.__name__}: its constructor must call super().__init__()")
        if module.backbone_weights is not None:
            module.take_first_weights()
        if module.ready_to_build:
            module.configure_model()
        return module


def _refuse_unknown_option(cls: type, given: Mapping[str, Any], error: TypeError) -> None:
    """Name an option that no constructor of a class takes; Python names the base that it was passed on to."""
    name = next((name for name in given if f"unexpected keyword argument '{name}'" in str(error)), None)
    if name is None:
        return
    close = [other for other in difflib.get_close_matches(name, options_of(cls), n=1) if other != name]
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"{name}: there is no such option of {cls.__name__}{hint}") from error


class TrainedModule(Described, LightningModule, metaclass=_BuiltWhenConstructed):
    """A LightningModule that is built in two steps, and whose checkpoints load by their path alone.

    The constructor takes the backbone. What depends on the data, such as heads, is made by `build` as soon as both are
    known: the constructor is done, and the data have been described, by an argument or by the trainer's data module.

    Args:
        backbone: The network that a method builds on.
        spec: What the data look like; None until the data module says so.
        optimizer: Makes the optimiser of the parameters.
        lr_scheduler: Makes the schedule of the optimiser; it steps once per training step.
        backbone_lr_factor: Learning rate of the backbone's parameters, as a multiple of the optimiser's, > 0.
        backbone_weights: A run directory or checkpoint: the backbone starts from the weights of its backbone, when the
            module is made anew. A checkpoint of the module does not refer to it.

    Attributes:
        spec_name: The constructor's argument that describes the data.
        spec_type: Its type.
        wrong_data: What a module of this kind learns from, for the error where the data are of another kind.
    """

    spec_name: ClassVar[str]
    spec_type: ClassVar[type]
    wrong_data: ClassVar[str]
    monitor: ClassVar[str] = "val/accuracy"
    """The validation metric by which `lightning_meta.fit` chooses the best checkpoint by default."""
    sets_first_weights: ClassVar[tuple[str, ...]] = ("backbone_weights",)
    """Arguments that, beside those of base classes, only set the first weights: a resumed run cannot change them."""
    fixed_options: ClassVar[tuple[str, ...]] = ()
    """Arguments of base classes that the constructor of a method sets itself, so that nobody gives them."""
    backbone: nn.Module

    def __init__(
        self,
        backbone: nn.Module,
        spec: Any,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        backbone_lr_factor: float = 1.0,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        factory("optimizer", optimizer, "torch.optim.Adam or partial(torch.optim.Adam, lr=0.001)")
        if lr_scheduler is not None:
            factory("lr_scheduler", lr_scheduler, "partial(torch.optim.lr_scheduler.StepLR, step_size=100)")
        instance("backbone", backbone, nn.Module)
        if spec is not None:
            instance(self.spec_name, spec, self.spec_type)
        setattr(self, self.spec_name, spec)
        self.backbone = backbone
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        positive(backbone_lr_factor=backbone_lr_factor)
        if backbone_weights is not None:
            instance("backbone_weights", backbone_weights, (str, os.PathLike))
        self.backbone_lr_factor, self.backbone_weights = backbone_lr_factor, backbone_weights
        self._built = False
        self._stored_groups: list[dict[str, Any]] | None = None  # optimisers' states in the checkpoint to resume from
        self._loss_watch = LossWatch()
        self._progress_reads = 0

    def take_first_weights(self) -> None:
        """Give the backbone the weights that `backbone_weights` names; a checkpoint that is loaded has its own."""
        if is_rebuilt():  # and a file of somebody else's may name any path
            self.backbone_weights = None
            if "backbone_weights" in options_of(type(self)):
                self.update_init_args(backbone_weights=None)
            return
        from lightning_meta.first_weights import take_backbone  # reads checkpoints, which few modules need

        assert self.backbone_weights is not None
        take_backbone(self.backbone, self.backbone_weights)

    def parameter_groups(self) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
        """What the optimiser is given: weights that are frozen can be added when they are unfrozen.

        The learning rate of a group with `lr_factor` is multiplied by it.
        """
        return groups_of(self.parameters(), self.backbone, self.backbone_lr_factor)

    @abstractmethod
    def build(self, spec: Any) -> None:
        """Make the parameters that depend on the data; it is called once, after the constructor.

        Args:
            spec: What the data look like.
        """

    @abstractmethod
    def check_data(self, spec: Any) -> None:
        """Refuse data of another kind than those that the module was made for, and warn of others that differ.

        Args:
            spec: What the trainer's data look like.

        Raises:
            UserError: What differs.
        """

    @property
    @abstractmethod
    def spec(self) -> Any:
        """What the data look like.

        Raises:
            UserError: It is not known yet.
        """

    @property
    def ready_to_build(self) -> bool:
        """Whether it is known what the data look like."""
        return getattr(self, self.spec_name) is not None

    def spec_of_data(self) -> Any:
        """What the trainer's data module says of its data; None where there is none, or it is not set up."""
        trainer = self._trainer
        return getattr(getattr(trainer, "datamodule", None), "spec", None)

    def setup(self, stage: str) -> None:
        """Take from the data module what the data look like, or check that they fit."""
        spec = self._take_spec()
        if spec is not None:
            self.check_data(spec)

    def configure_model(self) -> None:
        """Make what depends on the data, once. Callbacks may call it before `setup`."""
        if not self._built:
            self._configure_parts()
        if self._trainer is not None:
            _wrap_only_what_trains(self._trainer.strategy, self)

    def _configure_parts(self) -> None:
        self._take_spec()
        self.make_parts()
        like = next(self.backbone.parameters(), None)
        if like is not None and like.device.type != "cpu":
            self.to(like.device)  # a callback may copy the module to its device before `setup`
        self._built = True

    def make_parts(self) -> None:
        """Call `build`; a family of methods adds what all of them have."""
        self.build(self.spec)

    def _take_spec(self) -> Any:
        """What the trainer's data look like, noted where it was not known; None where there is no data module."""
        spec = self.spec_of_data()
        if spec is None:
            return None
        if not isinstance(spec, self.spec_type):
            raise UserError(f"{type(self).__name__} {self.wrong_data}")
        if not self.ready_to_build:
            setattr(self, self.spec_name, spec)
            self.update_init_args(**{self.spec_name: spec})
        return spec

    @property
    def synchronises_batch_norm(self) -> bool:
        """Whether the Trainer was given `sync_batchnorm`, and its strategy will obey."""
        strategy = self.trainer.strategy
        return isinstance(strategy, ParallelStrategy) and strategy._layer_sync is not None

    def inputs(self, x: Tensor) -> Tensor:
        """Stored inputs as the network takes them: uint8 images become numbers in [0, 1]."""
        assert isinstance(self.dtype, torch.dtype)
        return as_input(x, self.dtype)

    @property
    def lr(self) -> float | None:
        """The learning rate that the optimiser starts with; None where `optimizer` does not say it.

        Setting it changes `optimizer`: `Tuner(trainer).lr_find(module)` does.
        """
        made = self.optimizer
        given = made.keywords.get("lr") if isinstance(made, partial) else None
        parameter = inspect.signature(_class_of(made)).parameters.get("lr")
        default = given if given is not None else getattr(parameter, "default", None)
        return float(default) if isinstance(default, int | float) else None

    @lr.setter
    def lr(self, value: float) -> None:
        if isinstance(self.optimizer, partial | type):
            self.optimizer = partial(self.optimizer, lr=value)
        else:
            self.optimizer = partial(_with_rate, self.optimizer, lr=value)
        self.update_init_args(optimizer=self.optimizer)

    def configure_optimizers(self) -> Any:
        """The optimiser, and its schedule: it steps with the optimiser, one that watches a metric after validation."""
        if not any(p.requires_grad for p in self.parameters()):
            if self._trainer is not None and self._trainer.max_steps == 0:
                return []
            raise UserError(
                f"all weights of {type(self).__name__} are frozen (requires_grad is False), so there is nothing to "
                "train; give max_steps=0 to test and keep it as it is, give a backbone that is not frozen, or call "
                "unfreeze()"
            )
        optimizer = _made("optimizer", self.optimizer, self.parameter_groups())
        scale_rates(optimizer)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = _made("lr_scheduler", self.lr_scheduler, optimizer)
        check_schedule(optimizer, scheduler)
        if not isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        monitor = getattr(scheduler, "monitor", None)
        if monitor is None:
            raise UserError(
                "lr_scheduler: ReduceLROnPlateau must know its metric; use lightning.pytorch.cli.ReduceLROnPlateau "
                "with monitor, such as val/loss"
            )
        check_mode("lr_scheduler: ReduceLROnPlateau", monitor, scheduler.mode)
        options = {"scheduler": scheduler, "monitor": monitor, "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": options}

    def on_fit_start(self) -> None:
        """Put a module that was loaded, which is in evaluation mode, into training mode; layers that were held stay.

        Raises:
            UserError: The run to resume has another optimiser, or checkpoints could not be loaded.
        """
        self._check_description()
        self._loss_watch = LossWatch()  # without the losses of a training that was interrupted
        if self._stored_groups is not None:
            check_groups(self.trainer.optimizers, self._stored_groups)
            self._stored_groups = None
        if not self.training:
            held = [norm for norm in task_norms(self).values() if norm.frozen]
            self.train()
            for norm in held:
                norm.eval()

    def on_train_start(self) -> None:
        """Keep the backbone's learning rate in proportion where `Tuner.lr_find` searches for the other."""
        for schedule in self.trainer.lr_scheduler_configs:
            keep_in_search(schedule.scheduler)

    def _check_description(self) -> None:
        """Say which arguments must be given to `load`, since a checkpoint cannot store how they were made."""
        described = describe(self)
        if marked(described, "instance"):
            refuse_unknown(self)
        named = {name.partition(".")[0]: made for name, made in unknown_parts(described["init_args"])}
        if named and self.trainer.is_global_zero:
            _log.warning(
                "checkpoints will not say how %s was made: load them by load(path, %s)",
                " and ".join(f"{name} ({made})" for name, made in named.items()),
                ", ".join(f"{name}=..." for name in named),
            )

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = "cpu",
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Load a trained module as `lightning_meta.load` does, which says more.

        Args:
            checkpoint_path: A checkpoint, or a run directory.
            map_location: The device.
            hparams_file: None; the checkpoint holds the arguments.
            strict: True or None; all weights must fit.
            weights_only: True or None; code in a checkpoint is never run.
            **overrides: Constructor arguments to use in place of the stored ones.

        Raises:
            UserError: The checkpoint is of another class, or does not load.
        """
        if hparams_file is not None:
            raise UserError("hparams_file: the checkpoint holds the arguments; leave it out, or give them by name")
        if strict not in (None, True):
            raise UserError(f"strict: all weights of a checkpoint must fit, got {strict}; leave it out")
        if weights_only not in (None, True):
            raise UserError(f"weights_only: code in a checkpoint is never run, got {weights_only}; leave it out")
        from lightning_meta.loading import load  # it knows every family of modules

        module = load(checkpoint_path, allow=[cls], map_location=map_location or "cpu", **overrides)
        if not isinstance(module, cls):
            raise UserError(f"{checkpoint_path} is a checkpoint of {type(module).__name__}, not of {cls.__name__}")
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store how the module was made, so that it loads by path alone.

        Raises:
            NonFiniteLossError: The weights came from a loss that was not finite.
        """
        self._check_losses()
        described = describe(self)
        if marked(described, "class_path"):  # the run that the first weights were taken from may be gone by then
            described["init_args"].pop("backbone_weights", None)
        checkpoint["lightning_meta"] = {**described, "layout": LAYOUT}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's precision before its weights, which Lightning would round to that of a new module.

        Raises:
            UserError: The run to resume is of another class, has another optimiser, or is of an earlier layout: its
                optimiser has the weights in another order.
        """
        if self.trainer.state.fn == "fit":
            check_resumed(self, checkpoint, self.trainer.ckpt_path, self.trainer.callbacks)  # type: ignore[attr-defined]
            self._stored_groups = checkpoint.get("optimizer_states")
        if "lightning_meta" in checkpoint and layout_of(checkpoint) < LAYOUT:
            if self.trainer.state.fn == "fit":
                raise UserError(
                    "the checkpoint was written by version 0.1, whose runs cannot be resumed; its weights load by "
                    "lightning_meta.load and `test`: finish the run with that version, or train anew"
                )
            checkpoint["state_dict"] = renamed_weights(checkpoint["state_dict"], self)
        weights = checkpoint["state_dict"]
        take_precision(self, weights)

    def check_finite(self, loss: Tensor) -> None:
        """Stop training where its loss is not finite: at once on a CPU, within `loss_watch.EVERY` steps elsewhere.

        With several ranks all of them stop after the backward pass. Before a checkpoint is written, and before a
        validation, all losses so far are looked at.

        Raises:
            NonFiniteLossError: The loss and the step.
        """
        self._loss_watch.note(loss, self.global_step)
        if loss.device.type == "cpu" and world_size() == 1:
            self._check_losses()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, unless the loss of some rank was not finite.

        Raises:
            NonFiniteLossError: The loss, its rank and the step, on every rank.
        """

        def checked() -> Any:
            result = optimizer_closure() if optimizer_closure else None
            if self.device.type == "cpu" or self._loss_watch.is_due:
                self._check_losses()
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, checked)

    def on_validation_start(self) -> None:
        """Look at the losses of training so far."""
        if self.trainer.state.fn == "fit":
            self._check_losses()

    def on_train_epoch_end(self) -> None:
        """Look at the losses of the epoch."""
        self._check_losses()

    def _check_losses(self) -> None:
        """Look at the losses that were noted; with several ranks all must call it.

        Raises:
            NonFiniteLossError: The first that is not finite, on every rank.
        """
        if self._loss_watch.is_empty:  # on all ranks alike: each notes the loss of every batch
            return
        found, ranks = self._loss_watch.first_bad(), world_size()
        if ranks == 1:
            if found is not None:
                raise NonFiniteLossError(f"the training loss became {found[1]} at step {found[0]}")
            return
        # Whatever gradients this rank has: some may be its own alone, or sparse, or none.
        of_ranks = torch.zeros(ranks, 2, dtype=torch.float64, device=self.device)
        if found is not None:
            of_ranks[torch.distributed.get_rank()] = torch.tensor([found[0] + 1, found[1]], dtype=torch.float64)
        torch.distributed.all_reduce(of_ranks)
        bad = [(int(step) - 1, rank, loss) for rank, (step, loss) in enumerate(of_ranks.tolist()) if step]
        if bad:
            step, rank, loss = min(bad)
            error = NonFiniteLossError(f"the training loss of rank {rank} became {loss} at step {step}")
            error.on_all_ranks = True
            raise error

    @property
    def global_step(self) -> int:
        """The number of optimiser steps so far. A step that reads it is not recorded as a graph."""
        self._progress_reads += 1
        return super().global_step

    @property
    def current_epoch(self) -> int:
        """The number of the epoch. A step that reads it is not recorded as a graph."""
        self._progress_reads += 1
        return super().current_epoch

    def logs_this_step(self) -> bool:
        """Whether the loggers write this training step. Logging costs more than a small model's step."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.global_step + 1) % every == 0


def _class_of(factory: Any) -> Any:
    """The optimiser that a factory makes, where it says so."""
    if isinstance(factory, partial):  # jsonargparse's has the class among its arguments
        return next((c for c in (*factory.args, factory.func) if isinstance(c, type)), factory.func)
    return factory


def _wrap_only_what_trains(strategy: Any, module: nn.Module) -> None:
    """Keep DDP from wrapping a module of which nothing is trained, which it would refuse: there are no gradients."""
    if isinstance(strategy, DDPStrategy):
        own = vars(strategy)
        own.pop("configure_ddp", None)  # of the module before
        if not any(p.requires_grad for p in module.parameters()):
            own["configure_ddp"] = _nothing


def _nothing() -> None:
    """What is done in place of wrapping."""


def _made(name: str, factory: Callable[[Any], Any], of: Any) -> Any:
    try:
        return factory(of)
    except (TypeError, ValueError) as error:  # what torch refuses, or an argument that is missing
        raise UserError(f"{name}: {error}") from error


def _with_rate(factory: Callable[[Any], Any], parameters: Any, lr: float) -> Any:
    optimizer = factory(parameters)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer
