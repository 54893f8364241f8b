"""The base class of all trained modules: deferred building, optimiser, checkpoints and input conversion."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from math import isfinite
from typing import Any, ClassVar, Literal, Self

import torch
import torch.distributed
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_meta.arrays import plain_numbers
from lightning_meta.backbone_rate import check_schedule, groups_of, keep_in_search, scale_rates
from lightning_meta.building import is_rebuilt
from lightning_meta.checks import factory, instance, positive
from lightning_meta.describing import Described, describe, options_of, refuse_unknown
from lightning_meta.errors import NonFiniteLossError, UserError, one_of
from lightning_meta.factories import LRSchedulerCallable, OptimizerCallable
from lightning_meta.functional.generators import cpu_states, just_seeded, set_cpu_states
from lightning_meta.functional.ranks import world_size
from lightning_meta.loss_watch import LossWatch
from lightning_meta.migration import LAYOUT, layout_of, renamed_weights, take_precision
from lightning_meta.modes import check_mode
from lightning_meta.nn.checks import check_sizes
from lightning_meta.nn.features import as_input, zeros_like_inputs
from lightning_meta.nn.normalization import statistics_from, task_norms
from lightning_meta.nn.step_graph import StepGraphs
from lightning_meta.overrides import check_overrides
from lightning_meta.resuming import check_groups, check_resumed
from lightning_meta.specifications import marked, unknown_parts

_log = logging.getLogger(__name__)

Graph = Literal["off", "auto", False]  # YAML reads `off` as False

# Attributes that may change between steps without changing what a step computes; see `step_key`.
_NOT_OF_A_STEP = (frozenset(vars(LightningModule())) - {"training"}) | {
    *("calls", "collected", "statistics"),  # of `TaskBatchNorm`, within a pass
    *("_graphs", "_init_args", "_loss_watch", "_progress_reads", "_stored_groups"),
    *("run_record", "test_report"),
    *("_needs_exact_derivatives", "_plan_of_tensors", "_sequences"),  # caches of `nn.stateless`
}
_PLAIN = (str, int, bool, type(None))


def trains_in_copies(trainer: Trainer) -> bool:
    """Whether a Trainer starts copies of this process, as `ddp_spawn`, `ddp_fork` and `ddp_notebook` do.

    Only weights that the module has before training return from them.
    """
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


class _BuiltWhenConstructed(ABCMeta):
    """Metaclass that builds a module after its outermost constructor, so that `build` sees attributes of subclasses."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        check_overrides(cls)
        module = super().__call__(*args, **kwargs)
        if not hasattr(module, "_modules"):
            raise UserError(f"{cls.__name__}: its constructor must call super().__init__()")
        if module.backbone_weights is not None:
            module.take_first_weights()
        if module.ready_to_build:
            module.configure_model()
        return module


class TrainedModule(Described, LightningModule, metaclass=_BuiltWhenConstructed):
    """A LightningModule that is built in two steps, and whose checkpoints need only their path to load.

    The constructor takes the backbone. Parts that depend on the data, such as heads, are made by `build`, which is
    called once the constructor has returned and an argument or the trainer's data module has described the data.

    Args:
        backbone: The shared feature network.
        spec: Description of the data; None to take it from the data module.
        optimizer: Factory of the optimiser, called with the parameters.
        lr_scheduler: Factory of the learning-rate schedule, called with the optimiser; it steps once per training step.
        backbone_lr_factor: Learning rate of the backbone's parameters as a multiple of the optimiser's, > 0.
        backbone_weights: Run directory or checkpoint whose backbone initialises the backbone of a new module. It is
            not stored in checkpoints and ignored when one is loaded.
        graph: Whether `_graphs` captures steps as CUDA graphs.

    Attributes:
        spec_name: Name of the constructor's argument that describes the data.
        spec_type: Type of that argument.
        wrong_data: End of the error message for data of the wrong kind, which says what the module learns from.
    """

    spec_name: ClassVar[str]
    spec_type: ClassVar[type]
    wrong_data: ClassVar[str]
    monitor: ClassVar[str] = "val/accuracy"
    """The validation metric by which `lightning_meta.fit` chooses the best checkpoint by default."""
    sets_first_weights: ClassVar[tuple[str, ...]] = ("backbone_weights",)
    """Arguments, besides those of base classes, that only set the initial weights; a resumed run cannot change them."""
    fixed_options: ClassVar[tuple[str, ...]] = ()
    """Arguments of base classes that the constructor of a method sets itself and does not accept."""
    not_of_a_step: ClassVar[tuple[str, ...]] = ()
    """Attributes of a class that may change between steps without changing what a step computes; see `step_key`."""
    backbone: nn.Module
    run_record: Any = None  # of the run whose checkpoint the module was loaded from; None after more training

    def __init__(
        self,
        backbone: nn.Module,
        spec: Any,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        backbone_lr_factor: float = 1.0,
        backbone_weights: str | None = None,
        graph: Graph = "off",
    ) -> None:
        super().__init__()
        graph = "off" if graph is False else graph
        one_of("graph", graph, Literal["off", "auto"])
        ignored = [name for base in type(self).__mro__ for name in vars(base).get("not_of_a_step", ())]
        self.graph, self._graphs = graph, StepGraphs(_NOT_OF_A_STEP.union(ignored))
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
        self._stored_groups: list[dict[str, Any]] | None = None  # optimiser states of the checkpoint to resume from
        self._loss_watch = LossWatch()
        self._progress_reads = 0
        self._states_before_reset: Any = None

    def take_first_weights(self) -> None:
        """Load the backbone's initial weights from `backbone_weights`, unless a checkpoint provides all weights."""
        if is_rebuilt():  # all weights come from the checkpoint; an untrusted one could name any path here
            self.backbone_weights = None
            if "backbone_weights" in options_of(type(self)):
                self.update_init_args(backbone_weights=None)
            return
        from lightning_meta.first_weights import take_backbone  # imported here because few modules need it

        assert self.backbone_weights is not None
        take_backbone(self.backbone, self.backbone_weights)

    def parameter_groups(self) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
        """Return the trainable parameters, or groups of them, for the optimiser.

        Frozen parameters are left out; add them to the optimiser when they are unfrozen. The learning rate of a group
        is multiplied by its `lr_factor`, if it has one.
        """
        return groups_of(self.parameters(), [self.backbone], self.backbone_lr_factor)

    @abstractmethod
    def build(self, spec: Any) -> None:
        """Make the parameters that depend on the data. Called once, after the constructor.

        Args:
            spec: Description of the data.
        """

    @abstractmethod
    def check_data(self, spec: Any) -> None:
        """Check that the trainer's data fit the module; warn of differences that it can handle.

        Args:
            spec: Description of the trainer's data.

        Raises:
            UserError: The data do not fit; the message names the difference.
        """

    @property
    @abstractmethod
    def spec(self) -> Any:
        """Description of the data.

        Raises:
            UserError: The data have not been described yet.
        """

    @property
    def ready_to_build(self) -> bool:
        """Whether the data have been described, so that `build` can be called."""
        return getattr(self, self.spec_name) is not None

    def spec_of_data(self) -> Any:
        """Return the description by the trainer's data module; None without a data module or before its setup."""
        trainer = self._trainer
        return getattr(getattr(trainer, "datamodule", None), "spec", None)

    def configure_callbacks(self) -> Any:
        """Record the random state; it is the last hook before the strategy starts."""
        self._states_before_reset = cpu_states()
        return super().configure_callbacks()

    def undo_reset(self) -> None:
        """Restore the random state that the strategy replaced when it started; later calls in a run do nothing.

        Strategies of several ranks, such as DDP, seed the generators again with the seed of `seed_everything`. The
        parts that `build` makes would then differ from those in a single process and repeat the random numbers of the
        backbone. Generators of accelerators are left alone: nothing is drawn on them before training, unless a network
        is made there.
        """
        states, self._states_before_reset = self._states_before_reset, None
        if states is not None and just_seeded():
            set_cpu_states(states)

    def setup(self, stage: str) -> None:
        """Take the description of the data from the data module if there was none, and check that the data fit."""
        spec = self._take_spec()
        if spec is not None:
            self.check_data(spec)

    def configure_model(self) -> None:
        """Make the parts that depend on the data, at the first call. Callbacks may call it before `setup`."""
        self.undo_reset()
        if not self._built:
            self._configure_parts()
        if self._trainer is not None:
            self._check_precision()
            _wrap_only_what_trains(self._trainer.strategy, self)

    def _configure_parts(self) -> None:
        self._take_spec()
        self.make_parts()
        like = next(self.backbone.parameters(), None)
        if like is not None and like.device.type != "cpu":
            self.to(like.device)  # a callback may have moved the module to its device before `setup`
        own = self.dtype if like is not None and like.dtype == self.dtype else torch.float32
        if torch.get_default_dtype() == torch.float32 != own:  # the user has converted the module, as by `double()`
            self.to(own)
        self._built = True

    def make_parts(self) -> None:
        """Call `build`; base classes of a family of methods override it to add common parts."""
        self.build(self.spec)

    def _take_spec(self) -> Any:
        """Return the data module's description, or None without a data module; store it if the module had none."""
        spec = self.spec_of_data()
        if spec is None:
            return None
        if not isinstance(spec, self.spec_type):
            raise UserError(f"{type(self).__name__} {self.wrong_data}")
        if not self.ready_to_build:
            self._check_launch()
            setattr(self, self.spec_name, spec)
            self.update_init_args(**{self.spec_name: spec})
        return spec

    def _check_launch(self) -> None:
        """Refuse to build a module in a copy of the process, whose original would not have the trained parts."""
        if trains_in_copies(self.trainer) and self.trainer.state.fn == "fit":
            raise UserError(
                f"strategy: it trains in copies of this process, and {type(self).__name__} outside of them would lack "
                "the parts that are made for the data, such as heads; make them before training: data.prepare_data(), "
                f"data.setup('fit'), then give the module {self.spec_name}=data.spec; or run a script with strategy ddp"
            )

    @property
    def synchronises_batch_norm(self) -> bool:
        """Whether `sync_batchnorm` of the Trainer is set and its strategy supports it."""
        strategy = self.trainer.strategy
        # Lightning keeps the option nowhere else.
        return isinstance(strategy, ParallelStrategy) and strategy._layer_sync is not None

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input of the backbone."""

    @property
    @abstractmethod
    def input_dtype(self) -> str:
        """The dtype of the backbone's stored inputs, such as "uint8"; "" if it is not known."""

    def inputs(self, x: Tensor) -> Tensor:
        """Convert stored inputs to the module's dtype; uint8 images are scaled to [0, 1]."""
        assert isinstance(self.dtype, torch.dtype)
        return as_input(x, self.dtype)

    @property
    def lr(self) -> float | None:
        """Initial learning rate of the optimiser; None if `optimizer` neither sets it nor has a default.

        It can be set, which replaces `optimizer`; `Tuner(trainer).lr_find(module)` does so.
        """
        factory = self.optimizer
        rate = factory.keywords.get("lr") if isinstance(factory, partial) else None
        if rate is None:
            rate = getattr(inspect.signature(_class_of(factory)).parameters.get("lr"), "default", None)
        return float(rate) if isinstance(rate, int | float) else None

    @lr.setter
    def lr(self, value: float) -> None:
        if isinstance(self.optimizer, partial | type):
            self.optimizer = partial(self.optimizer, lr=value)
        else:
            self.optimizer = partial(_with_rate, self.optimizer, lr=value)
        self.update_init_args(optimizer=self.optimizer)

    def configure_optimizers(self) -> Any:
        """Make the optimiser and its schedule, which steps every training step (`ReduceLROnPlateau`: every epoch)."""
        if not any(p.requires_grad for p in self.parameters()):
            if self._trainer is not None and self._trainer.max_steps == 0:
                return []
            raise UserError(
                f"all weights of {type(self).__name__} are frozen (requires_grad is False), so there is nothing to "
                "train; set max_steps=0 to test and save it unchanged, use a backbone that is not frozen, or call "
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
                "lr_scheduler: ReduceLROnPlateau needs a metric; use lightning.pytorch.cli.ReduceLROnPlateau "
                "with monitor, such as val/loss"
            )
        check_mode("lr_scheduler: ReduceLROnPlateau", monitor, scheduler.mode)
        options = {"scheduler": scheduler, "monitor": monitor, "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": options}

    def on_fit_start(self) -> None:
        """Put a loaded module, which is in evaluation mode, into training mode, except for frozen norm layers.

        Raises:
            UserError: The run to resume has a different optimiser, checkpoints of the module could not be loaded, or it
                has a lazy layer.
        """
        self._check_description()
        check_sizes(self)
        self.run_record = None
        self._loss_watch = LossWatch()  # drop the losses of a previous, interrupted fit
        if self._stored_groups is not None:
            check_groups(self.trainer.optimizers, self._stored_groups)
            self._stored_groups = None
        if not self.training:
            frozen_norms = [norm for norm in task_norms(self).values() if norm.frozen]
            self.train()
            for norm in frozen_norms:
                norm.eval()

    def on_train_start(self) -> None:
        """Make `Tuner.lr_find` apply `backbone_lr_factor` to the learning rates that it tries."""
        for schedule in self.trainer.lr_scheduler_configs:
            keep_in_search(schedule.scheduler)

    def _check_precision(self) -> None:
        """Refuse a network that does not take inputs in float32, to which the Trainer converts them.

        A network in another precision may convert its inputs itself, so it is run. A Trainer of another precision sets
        the default dtype here, and converts the module afterwards.
        """
        dtypes = {p.dtype for p in self.backbone.parameters() if p.is_floating_point()}
        if torch.get_default_dtype() != torch.float32 or not dtypes or self.dtype in dtypes:
            return
        assert isinstance(self.dtype, torch.dtype)
        copied, like = copy.deepcopy(self.backbone).eval(), torch.zeros((), dtype=self.dtype, device=self.device)
        try:
            with torch.no_grad(), statistics_from(copied, "stored"):
                copied(zeros_like_inputs(self.input_shape, self.input_dtype, like))
        except Exception as error:  # a network may check its inputs itself
            network, own = (str(dtype).removeprefix("torch.") for dtype in (min(dtypes, key=str), self.dtype))
            remedy = "give the Trainer precision='64-true'" if network == "float64" else f"convert it to {own}"
            raise UserError(
                f"backbone: its parameters are {network}, but the Trainer computes in {own}; {remedy}"
            ) from error

    def _check_description(self) -> None:
        """Warn of arguments that a checkpoint cannot describe and that must therefore be passed to `load`."""
        described = describe(self)
        if marked(described, "instance"):
            refuse_unknown(self)
        unknown = {name.partition(".")[0]: made for name, made in unknown_parts(described["init_args"])}
        if unknown and self.trainer.is_global_zero:
            _log.warning(
                "checkpoints will not say how %s was made: load them by load(path, %s)",
                " and ".join(f"{name} ({made})" for name, made in unknown.items()),
                ", ".join(f"{name}=..." for name in unknown),
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
        """Load a trained module; see `lightning_meta.load`, which this calls.

        Args:
            checkpoint_path: Checkpoint file or run directory.
            map_location: Device of the loaded module.
            hparams_file: Must be None, because the checkpoint contains the arguments.
            strict: True or None, because all weights must fit.
            weights_only: True or None, because code in a checkpoint is never run.
            **overrides: Constructor arguments that replace the stored ones.

        Returns:
            The module, in evaluation mode.

        Raises:
            UserError: The checkpoint is of another class, or cannot be loaded.
        """
        if hparams_file is not None:
            raise UserError("hparams_file: the checkpoint holds the arguments; leave it out, or give them by name")
        if strict not in (None, True):
            raise UserError(f"strict: all weights of a checkpoint must fit, got {strict}; leave it out")
        if weights_only not in (None, True):
            raise UserError(f"weights_only: code in a checkpoint is never run, got {weights_only}; leave it out")
        from lightning_meta.loading import load  # not at the top: it imports every family of modules

        module = load(checkpoint_path, allow=[cls], map_location=map_location or "cpu", **overrides)
        if not isinstance(module, cls):
            raise UserError(f"{checkpoint_path} is a checkpoint of {type(module).__name__}, not of {cls.__name__}")
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the class and constructor arguments, so that `load` needs only the path.

        `WeightAveraging` has replaced the state by averages, which integers and extra states, such as the best scores
        so far, do not have: these are stored as they are in the module.

        Raises:
            NonFiniteLossError: A training loss so far was not finite.
        """
        self._check_losses()
        for name, value in checkpoint.get("current_model_state", {}).items():
            averaged = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
            if name.endswith("_extra_state") or not averaged:
                checkpoint["state_dict"][name] = value
        described = describe(self)
        if marked(described, "class_path"):  # that file may no longer exist when the checkpoint is loaded
            described["init_args"].pop("backbone_weights", None)
        checkpoint["lightning_meta"] = {**described, "layout": LAYOUT}
        # Numbers of NumPy, such as a learning rate from `np.logspace`, are pickled as objects, which `load` refuses.
        checkpoint.update({name: plain_numbers(of) for name, of in checkpoint.items() if name != "state_dict"})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Convert the module to the checkpoint's dtype, so that Lightning does not round the weights.

        Raises:
            UserError: The run to resume is of another class, has a different optimiser, or was written by version 0.1,
                whose optimiser states list the weights in a different order.
        """
        if self.trainer.state.fn == "fit":
            check_resumed(self, checkpoint, self.trainer.ckpt_path, self.trainer.callbacks)  # type: ignore[attr-defined]
            self._stored_groups = checkpoint.get("optimizer_states")
        if "lightning_meta" in checkpoint and layout_of(checkpoint) < LAYOUT:
            if self.trainer.state.fn == "fit":
                raise UserError(
                    "the checkpoint was written by version 0.1, whose runs cannot be resumed; its weights load by "
                    "lightning_meta.load and `test`: finish the run with that version, or start a new run"
                )
            checkpoint["state_dict"] = renamed_weights(checkpoint["state_dict"], self)
        take_precision(self, checkpoint["state_dict"])

    def check_finite(self, loss: Tensor) -> None:
        """Stop training if the loss is not finite: at once on a CPU, within `loss_watch.EVERY` steps on other devices.

        With several ranks, all of them stop after the backward pass. All losses so far are also checked before each
        validation and before a checkpoint is written.

        Args:
            loss: Scalar training loss.

        Raises:
            NonFiniteLossError: The loss is not finite; the message gives its value and the step.
        """
        alone = loss.is_cpu and world_size() == 1
        if alone and isfinite(loss.item()):  # without the lists that several losses need
            return
        self._loss_watch.note(loss, self.global_step)
        if alone:
            self._check_losses()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step the optimiser, unless the loss of a rank was not finite.

        Raises:
            NonFiniteLossError: A loss was not finite; raised on every rank with the loss, its rank and the step.
        """

        def checked() -> Any:
            result = optimizer_closure() if optimizer_closure else None
            if self.device.type == "cpu" or self._loss_watch.is_due:
                self._check_losses()
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, checked)

    def on_validation_start(self) -> None:
        """Check the training losses so far."""
        if self.trainer.state.fn == "fit":
            self._check_losses()

    def on_train_epoch_end(self) -> None:
        """Check the training losses of the epoch, and warn if manual optimisation has taken no step in the first."""
        self._check_losses()
        idle = not self.automatic_optimization and self.trainer.global_step == 0
        if idle and self.trainer.current_epoch == 0 and self.trainer.is_global_zero:
            _log.warning(
                "%s.training_step: automatic_optimization is False, and self.optimizers() took no step in the first "
                "epoch; unless this is on purpose, call self.manual_backward(loss) and self.optimizers().step() in it",
                type(self).__name__,
            )

    def _check_losses(self) -> None:
        """Check the recorded losses. A collective operation: all ranks must call it.

        Raises:
            NonFiniteLossError: A loss is not finite; raised on every rank for the first such loss.
        """
        if self._loss_watch.is_empty:  # the same on all ranks, since each records the loss of every batch
            return
        first_bad, ranks = self._loss_watch.first_bad(), world_size()
        if ranks == 1:
            if first_bad is not None:
                raise NonFiniteLossError(f"the training loss became {first_bad[1]} at step {first_bad[0]}")
            return
        # Each rank reports (step + 1, loss). A NaN need not reach other ranks by gradients: these may be local or None.
        by_rank = torch.zeros(ranks, 2, dtype=torch.float64, device=self.device)
        if first_bad is not None:
            step, loss = first_bad
            by_rank[torch.distributed.get_rank()] = torch.tensor([step + 1, loss], dtype=torch.float64)
        torch.distributed.all_reduce(by_rank)
        bad = [(int(step) - 1, rank, loss) for rank, (step, loss) in enumerate(by_rank.tolist()) if step]
        if bad:
            step, rank, loss = min(bad)
            error = NonFiniteLossError(f"the training loss of rank {rank} became {loss} at step {step}")
            error.on_all_ranks = True
            raise error

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; plain values at once, since Lightning sets one more than 40 times in a step."""
        if type(value) in _PLAIN and name in self.__dict__:
            object.__setattr__(self, name, value)  # no parameter, buffer or module, so there is none to replace
        else:
            super().__setattr__(name, value)

    @property
    def global_step(self) -> int:
        """Number of optimiser steps so far. A training step that reads it is not captured as a CUDA graph."""
        self._progress_reads += 1
        return super().global_step

    @property
    def current_epoch(self) -> int:
        """Number of the current epoch. A training step that reads it is not captured as a CUDA graph."""
        self._progress_reads += 1
        return super().current_epoch

    def logs_this_step(self) -> bool:
        """Whether the loggers write this training step. Logging can cost more than the step of a small model."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.global_step + 1) % every == 0


def _class_of(factory: Any) -> Any:
    """Return the optimiser class of a factory; the factory itself if it is not a class or partial."""
    if isinstance(factory, partial):  # jsonargparse passes the class as an argument
        return next((c for c in (*factory.args, factory.func) if isinstance(c, type)), factory.func)
    return factory


def _wrap_only_what_trains(strategy: Any, module: nn.Module) -> None:
    """Keep DDP from wrapping a module without trainable parameters, which DDP does not accept."""
    if isinstance(strategy, DDPStrategy):
        attributes = vars(strategy)
        attributes.pop("configure_ddp", None)  # set for a previous module
        if not any(p.requires_grad for p in module.parameters()):
            attributes["configure_ddp"] = _nothing


def _nothing() -> None:
    """Replacement of `configure_ddp` that does not wrap the module."""


def _made(name: str, factory: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return factory(argument)
    except (TypeError, ValueError) as error:  # a value that torch rejects, or a missing argument
        raise UserError(f"{name}: {error}") from error


def _with_rate(factory: Callable[[Any], Any], parameters: Any, lr: float) -> Any:
    optimizer = factory(parameters)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer
