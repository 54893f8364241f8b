"""scikit-learn estimators for several targets, trained with any multi-task method."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, Self, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_meta.batches import TaskBatch
from lightning_meta.checks import needed, not_negative, positive, share, switch, whole, widths
from lightning_meta.data.multi_task import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError, meant
from lightning_meta.estimators.calibrated import PredictsIntervals, PredictsSets
from lightning_meta.estimators.features import read_features
from lightning_meta.estimators.needed import (
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
    accuracy_score,
    check_classification_targets,
    check_consistent_length,
    check_is_fitted,
    forget,
    r2_score,
)
from lightning_meta.estimators.targets import columns_of, labelled_rows, labels_of, numbers_of, plain
from lightning_meta.estimators.training import LOGGERS, Arrays, device_of, held_out_rows, train
from lightning_meta.fitting.checks import check_machine
from lightning_meta.functional.generators import seeded_generators
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.linear import Linear
from lightning_meta.nn.likeness import check_outputs
from lightning_meta.nn.mlp import MLP
from lightning_meta.nn.stateless import untouched
from lightning_meta.silence import silence
from lightning_meta.tasks import Classification, Regression, Task

ROWS = 4096  # rows per prediction batch


class _MultiTask(BaseEstimator, ABC):  # type: ignore[misc]  # scikit-learn has no types
    """Base of both estimators; see `MultiTaskRegressor` for the arguments."""

    def __init__(
        self,
        method: str | type[MultiTaskModule] = "MultiHead",
        hidden: Sequence[int] = (64, 64),
        backbone: nn.Module | None = None,
        options: Mapping[str, Any] | None = None,
        learning_rate: float = 0.003,
        weight_decay: float = 0.01,
        batch_size: int = 32,
        max_epochs: int = 200,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        patience: int = 20,
        standardise: bool = True,
        random_state: int | np.random.RandomState | None = 0,
        accelerator: str = "cpu",
    ) -> None:
        self.method = method
        self.hidden = hidden
        self.backbone = backbone
        self.options = options
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.standardise = standardise
        self.random_state = random_state
        self.accelerator = accelerator

    @abstractmethod
    def _read_targets(self, y: Any) -> tuple[list[Task], list[NDArray[Any]], list[NDArray[np.bool_]]]:
        """Return for each task its kind, its targets `(n, ...)` and the mask `(n,)` of the labelled rows."""

    @abstractmethod
    def _groups(self, targets: list[NDArray[Any]], present: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
        """Return row masks `(n,)`; training needs at least one row of each."""

    def fit(self, X: Any, y: Any) -> Self:
        """Train on rows and their targets.

        Args:
            X: Features `(n, F)`, without missing values.
            y: Targets `(n,)` or `(n, T)`; NaN (or None among labels) marks a missing target.

        Returns:
            The estimator.

        Raises:
            UserError: An option is invalid, a target has no label, or there are too few rows.
        """
        cls = self._checked()
        forget(self)
        if y is None:
            raise UserError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        X = read_features(self, X, reset=True)
        tasks, targets, present = self._read_targets(y)
        check_consistent_length(X, targets[0])
        if not all(there.any() for there in present):
            empty = next(i for i, there in enumerate(present) if not there.any())
            raise UserError(f"y: column {empty} has no label, all of its rows are NaN; leave it out")
        seed = _seed_of(self.random_state)
        held = np.zeros(len(X), np.bool_)
        if self.early_stopping:
            held = held_out_rows(self._groups(targets, present), self.validation_fraction, seed)
            if not any((there & held).any() for there in present):
                raise UserError(
                    f"X: n_samples={len(X)} leave no row for validation, as training needs one of every target and "
                    "class; give more rows, or early_stopping=False"
                )
        rows = X[~held]
        self.mean_, self.scale_ = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if self.standardise:
            with np.errstate(over="ignore", invalid="ignore"):
                self.mean_, scale = rows.mean(0), rows.std(0)
                differ = np.ptp(rows, 0) > 0
            if (wrong := differ & ~((scale > 0) & np.isfinite(scale))).any():  # squares over- or underflow in float64
                extent = "widely" if np.isnan(scale[wrong]).any() or scale[wrong].max() > 1 else "little"
                raise UserError(f"X: column {wrong.argmax()} varies too {extent} to be scaled; give it in another unit")
            # Training rows do not tell what other values of a constant column mean. Its std may be a rounding error.
            self.scale_ = np.where(differ, scale, np.inf)
        inputs = torch.from_numpy(((X - self.mean_) / self.scale_).astype(np.float32))
        if not torch.isfinite(inputs).all():
            raise UserError("X: a column spreads wider than float32 holds; scale it")
        names = [f"y{i}" for i in range(len(tasks))]
        columns = dict(zip(names, map(torch.from_numpy, targets), strict=True))

        def part(rows: NDArray[np.bool_]) -> TaskSet:
            labelled = {n: torch.from_numpy(p & rows) for n, p in zip(names, present, strict=True)}
            return TaskSet.of_columns(inputs, columns, labelled)

        self._constant = [len(np.unique(y[there & ~held])) == 1 for y, there in zip(targets, present, strict=True)]
        train_set = part(~held)
        source = Arrays(dict(zip(names, tasks, strict=True)), train_set, part(held) if held.any() else train_set)
        data = MultiTaskDataModule(source, batch_size=self.batch_size, seed=seed)
        with silence(*LOGGERS), seeded_generators(device_of(self.accelerator), seed):
            module = self._module(cls, X.shape[1])
            patience = self.patience if self.early_stopping else None
            self.n_iter_ = train(
                module, data, max_epochs=self.max_epochs, patience=patience, accelerator=self.accelerator
            )
        self.module_ = module.double()  # in float32, predictions vary with the other rows of the batch
        return self

    def _checked(self) -> type[MultiTaskModule]:
        """Validate the options and return the class of the method."""
        name = type(self).__name__
        if not isinstance(self.options, Mapping | None) or not all(isinstance(key, str) for key in self.options or ()):
            raise UserError(f"options: a dict of arguments by name is needed, got {self.options!r}")
        if "backbone" in (self.options or ()):
            raise UserError(f"options: backbone is an argument of its own, {name}(backbone=...)")
        needed(batch_size=self.batch_size, max_epochs=self.max_epochs, patience=self.patience)
        whole(1, batch_size=self.batch_size, max_epochs=self.max_epochs, patience=self.patience)
        widths(hidden=self.hidden)
        positive(learning_rate=self.learning_rate)
        not_negative(weight_decay=self.weight_decay)
        switch(early_stopping=self.early_stopping, standardise=self.standardise)
        share(0.1, validation_fraction=self.validation_fraction)
        check_machine({"accelerator": self.accelerator})
        import lightning_meta as lm

        cls = getattr(lm, self.method, None) if isinstance(self.method, str) else self.method
        if not _is_method(cls):
            methods = [each for each in dir(lm.multitask) if _is_method(getattr(lm.multitask, each, None))]
            raise UserError(
                f"method: {name} takes a multi-task method, such as 'MultiHead', 'Independent' or 'Conditioned', or "
                f"its class; got {self.method!r}{meant(self.method, methods)}"
            )
        return cls

    def _module(self, cls: type[MultiTaskModule], features: int) -> MultiTaskModule:
        options = copy.deepcopy(dict(self.options or {}))  # a weighting may have trainable parameters
        if issubclass(cls, Linear):
            return cls(**options)
        backbone = MLP(features, tuple(self.hidden)) if self.backbone is None else _copy(self.backbone)
        optimizer = partial(torch.optim.AdamW, lr=self.learning_rate, weight_decay=self.weight_decay)
        return cls(backbone, **{"optimizer": optimizer, **options})

    @torch.no_grad()
    def _outputs(self, X: Any) -> list[tuple[Task, Tensor]]:
        """Return the kind of each task and its outputs `(n, outputs)`."""
        check_is_fitted(self)
        X = read_features(self, X, reset=False)
        inputs = torch.from_numpy((X - self.mean_) / self.scale_)
        module = self.module_
        parts: dict[str, list[Tensor]] = {name: [] for name in module.names}
        with untouched(module):
            for x in inputs.split(ROWS):
                rows = dict.fromkeys(module.names, torch.arange(len(x)))
                stems = len(module.stems)
                batch = TaskBatch(dict.fromkeys(rows, x) if stems else x, {}, rows, {})
                for name, y in module.selected_outputs(batch).items():
                    parts[name].append(check_outputs(y))
        outputs = [torch.cat(of_task) for of_task in parts.values()]
        # Outputs are in standard units, and 0 is the mean. For a target that is constant in training there is no scale.
        outputs = [y * 0 if constant else y for y, constant in zip(outputs, self._constant, strict=True)]
        return list(zip(module.spec.tasks.values(), outputs, strict=True))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "module_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags


class MultiTaskRegressor(PredictsIntervals, RegressorMixin, _MultiTask):  # type: ignore[misc]
    r"""Regression of one or more targets with a multi-task network; `method` decides what the targets share.

    Inputs and targets are standardised with the statistics of the training rows. By default a tenth of the rows is held
    out: training stops when the mean R² over targets on these rows no longer improves, and the weights of the best
    epoch are kept. A target that is NaN is missing: its row is used for the other targets. The prediction for a target
    that is constant in the training rows is this constant.

    Fitting prints nothing, writes no file and leaves the global random generators unchanged.

        >>> import numpy as np
        >>> from lightning_meta.estimators import MultiTaskRegressor
        >>> X = np.random.default_rng(0).normal(size=(200, 3))
        >>> y = np.stack([X[:, 0] + X[:, 1], X[:, 0] - X[:, 2]], axis=1)
        >>> y[::4, 0] = np.nan
        >>> MultiTaskRegressor(max_epochs=3).fit(X, y).predict(X[:5]).shape
        (5, 2)

    Args:
        method: Name of a multi-task method (`MultiHead`, `Independent`, `Conditioned`, `CrossStitch`,
            `MixtureOfExperts`, `CGC`, `PLE`, `MTAN`, `LoRA`, `Linear`), or a subclass of `MultiTaskModule`.
        hidden: Layer widths of the backbone, a `lightning_meta.nn.MLP`.
        backbone: Network that maps `(M, F)` to `(M, features)`, used instead of the MLP; a copy of it is trained.
        options: Further arguments of the method, such as `{"weighting": lm.weightings.Uncertainty()}`.
        learning_rate: Learning rate of AdamW, > 0; ignored if `options` has an `optimizer`.
        weight_decay: Weight decay of AdamW, at least 0; ignored if `options` has an `optimizer`.
        batch_size: Number of rows per step; number of rows per target if no row has more than one target.
        max_epochs: Largest number of passes over the training rows.
        early_stopping: Whether to hold out rows and stop when the score on them no longer improves; otherwise training
            takes `max_epochs`.
        validation_fraction: Share of the held-out rows, in (0, 1).
        patience: Number of epochs without improvement after which training stops.
        standardise: Whether to scale each column of `X` to mean 0 and standard deviation 1. A column that is constant
            in the training rows is then an input of 0, whatever its values in new rows.
        random_state: Seed of the weights, the batches and the held-out rows, or a generator from which to draw it; None
            draws a new seed for each fit.
        accelerator: Accelerator of the `lightning.pytorch.Trainer` for training, such as "gpu" or "cuda"; predictions
            are made on the CPU.

    Attributes:
        module_: The trained module, in double precision.
        mean_: Offset subtracted from the columns of `X`, `(F,)`.
        scale_: Divisor of the columns after that, `(F,)`; infinity for constant columns.
        n_iter_: Epoch of the weights, counted from 1.
        n_features_in_: F.
        feature_names_in_: Column names of `X`; only after a fit to a DataFrame.
    """

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return predictions in the units and the shape of `y`: `(n,)` or `(n, T)`.

        Args:
            X: Features `(n, F)`.
        """
        columns = [task.readable(y)[:, 0].numpy() for task, y in self._outputs(X)]
        return np.stack(columns, axis=1) if self._many else columns[0]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the mean R² over targets, each computed over its labelled rows; at most 1.

        Args:
            X: Features `(n, F)`.
            y: Targets `(n,)` or `(n, T)`; NaN marks a missing target.
            sample_weight: Weights of the rows, `(n,)`.
        """
        predicted, y = self.predict(X), numbers_of(y)
        check_consistent_length(predicted, y)
        predicted = predicted.reshape(len(y), -1).T
        targets = columns_of(y, len(predicted), self._many)
        return _mean_score(r2_score, targets, predicted, ~np.isnan(targets), sample_weight)

    def _read_targets(self, y: Any) -> tuple[list[Task], list[NDArray[Any]], list[NDArray[np.bool_]]]:
        numbers = numbers_of(y)
        self._many = numbers.ndim == 2
        columns = list(numbers.reshape(len(numbers), -1).T)
        targets = [np.nan_to_num(column)[:, None] for column in columns]
        return [Regression(1) for _ in columns], targets, [~np.isnan(column) for column in columns]

    def _groups(self, targets: list[NDArray[Any]], present: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
        return present


class MultiTaskClassifier(PredictsSets, ClassifierMixin, _MultiTask):  # type: ignore[misc]
    r"""Classification of one or more targets with a multi-task network; `method` decides what the targets share.

    It is trained like `MultiTaskRegressor`; early stopping uses the mean over targets of the accuracy, or of the AUROC
    for targets with more than 80 % of the labels in one class. A label that is NaN or None is missing. scikit-learn
    cannot stratify by missing labels: pass `cv=KFold(5)` to its cross-validation.

        >>> import numpy as np
        >>> from lightning_meta.estimators import MultiTaskClassifier
        >>> X = np.random.default_rng(0).normal(size=(200, 3))
        >>> y = np.stack([X[:, 0] > 0, X[:, 1] > X[:, 2]], axis=1)
        >>> classifier = MultiTaskClassifier(max_epochs=3).fit(X, y)
        >>> [p.shape for p in classifier.predict_proba(X[:5])]
        [(5, 2), (5, 2)]

    The arguments, their defaults and the other attributes are those of `MultiTaskRegressor`.

    Attributes:
        classes_: Sorted labels `(N,)`; a list with one such array per target if `y` has two dimensions.
        calibrations_: The `lightning_meta.multitask.calibration.LabelCalibration` of each target; only after
            `calibrate`.
    """

    def predict_proba(self, X: Any) -> Any:
        """Return the class probabilities `(n, N)`, or a list with one such array per target, like `classes_`.

        After `calibrate`, the logits are divided by the temperature of their target.

        Args:
            X: Features `(n, F)`.
        """
        outputs = self._outputs(X)
        if hasattr(self, "calibrations_"):
            pairs = zip(self.calibrations_, outputs, strict=True)
            probabilities = [calibration.probabilities(y).numpy() for calibration, (_, y) in pairs]
        else:
            probabilities = [task.for_classes(y).numpy() for task, y in outputs]
        return probabilities if self._many else probabilities[0]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable labels, `(n,)` or `(n, T)`.

        Args:
            X: Features `(n, F)`.
        """
        best = [y.argmax(1).numpy() for _, y in self._outputs(X)]
        if not self._many:
            labels: NDArray[Any] = self.classes_[best[0]]
            return labels
        columns = [classes[numbers] for classes, numbers in zip(self.classes_, best, strict=True)]
        kinds = {column.dtype.kind for column in columns}
        mixed = len(kinds) > 1 and not kinds <= set("iuf")  # NumPy would convert numbers to text, and truth to numbers
        return np.stack([column.astype(object) for column in columns] if mixed else columns, axis=1)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the mean accuracy over targets, each computed over its labelled rows; in [0, 1].

        Args:
            X: Features `(n, F)`.
            y: Labels `(n,)` or `(n, T)`; NaN or None marks a missing label.
            sample_weight: Weights of the rows, `(n,)`.
        """
        predicted, y = self.predict(X), labels_of(y)
        check_consistent_length(predicted, y)
        predicted = predicted.reshape(len(y), -1).T
        labels = columns_of(y, len(predicted), self._many)
        there = np.stack([labelled_rows(column) for column in labels])
        return _mean_score(_accuracy, labels, predicted, there, sample_weight)

    def _read_targets(self, y: Any) -> tuple[list[Task], list[NDArray[Any]], list[NDArray[np.bool_]]]:
        labels = labels_of(y)
        self._many = labels.ndim == 2
        tasks: list[Task] = []
        targets, all_classes, present = [], [], []
        for i, column in enumerate(labels.reshape(len(labels), -1).T):
            there = labelled_rows(column)
            labelled = plain(column[there])
            if there.any():
                check_classification_targets(labelled)
            classes, numbers = np.unique(labelled, return_inverse=True)
            if len(classes) == 1:
                raise UserError(f"y: column {i} has 1 class, {str(classes[0])!r}; at least 2 classes are needed")
            target = np.zeros(len(column), np.int64)
            target[there] = numbers
            tasks.append(Classification(len(classes)))
            targets.append(target)
            all_classes.append(classes)
            present.append(there)
        self.classes_: Any = all_classes if self._many else all_classes[0]
        return tasks, targets, present

    def _groups(self, targets: list[NDArray[Any]], present: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
        pairs = zip(targets, present, strict=True)
        return [there & (target == label) for target, there in pairs for label in np.unique(target[there])]


def _is_method(cls: Any) -> TypeGuard[type[MultiTaskModule]]:
    return isinstance(cls, type) and issubclass(cls, MultiTaskModule) and cls is not MultiTaskModule


def _accuracy(labels: NDArray[Any], predicted: NDArray[Any], sample_weight: Any) -> float:
    return float(accuracy_score(plain(labels), plain(predicted), sample_weight=sample_weight))


def _mean_score(score: Any, targets: Any, predicted: Any, present: Any, sample_weight: Any) -> float:
    scores = []
    for y, guess, there in zip(targets, predicted, present, strict=True):
        if there.any():
            weights = None if sample_weight is None else np.asarray(sample_weight)[there]
            scores.append(score(y[there], guess[there], sample_weight=weights))
    return float(np.mean(scores)) if scores else float("nan")


def _seed_of(random_state: int | np.random.RandomState | None) -> int:
    """Return a 32-bit seed; global generators are not used."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**32))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, Integral) and 0 <= random_state < 2**32:
        return int(random_state)
    raise UserError(f"random_state: a whole number from 0 to 2^32 - 1, a RandomState or None, got {random_state!r}")


def _copy(backbone: Any) -> Any:
    if not isinstance(backbone, nn.Module):
        raise UserError(f"backbone: a network is needed, got {type(backbone).__name__}")
    return copy.deepcopy(backbone)
