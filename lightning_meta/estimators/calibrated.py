"""How sure the estimators of several targets are: sets of labels and intervals of numbers, from further rows."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_meta.errors import UserError
from lightning_meta.estimators.needed import check_consistent_length, check_is_fitted
from lightning_meta.estimators.targets import labelled_rows, labels_of, numbers_of, plain
from lightning_meta.multitask.calibration import LabelCalibration, NumberCalibration, fewest_labels


class PredictsSets:
    """The part of `MultiTaskClassifier` that says how sure it is."""

    _many: bool
    classes_: Any
    _outputs: Any

    def calibrate(self, X: Any, y: Any, error: float = 0.1) -> Self:
        r"""Learn from further labelled rows how large the sets of `predict_set` must be, for each target by itself.

        It is split conformal prediction (`lightning_meta.functional.conformal.conformal_quantile`). Labels and
        probabilities stay as they are. `fit` forgets it.

        Args:
            X: `(n, F)`, rows that were not in `fit`, of the kind that will be predicted.
            y: `(n,)` or `(n, T)` labels, all of them in `classes_`; NaN or None where missing.
            error: α in (0, 1): the share of new rows whose set may lack their label.

        Returns:
            The estimator.

        Raises:
            UserError: A label that was not learned, or a target with fewer than (1 − α) / α labels.
        """
        check_is_fitted(self)
        check_consistent_length(X, y)
        outputs = self._outputs(X)
        columns = _columns(labels_of(y), len(outputs), self._many)
        found = []
        for i, (column, (_, z)) in enumerate(zip(columns, outputs, strict=True)):
            there, known = labelled_rows(column), self.classes_[i] if self._many else self.classes_
            _check_count(i, int(there.sum()), error)
            labels = plain(column[there])
            if (strange := ~np.isin(labels, known)).any():
                raise UserError(
                    f"y: {str(labels[strange][0])!r} in column {i} is none of the classes that were learned; leave its "
                    "rows out"
                )
            numbers = torch.from_numpy(np.searchsorted(known, labels))
            found.append(LabelCalibration.of(1 - error, z[torch.from_numpy(there)], numbers))
        self.calibrations_ = found
        return self

    def predict_set(self, X: Any) -> Any:
        """Which labels a row may have, `(n, N)` bool; a list of them, one for each target, as `classes_` is.

        Of rows that are exchangeable with those of `calibrate`, the share whose set holds their label is 1 − α at
        least, for each target, on average over all that may be drawn for calibration and prediction. Sets may be empty.

        Args:
            X: `(n, F)`.
        """
        calibrations = _calibrations(self, "predict_set")
        sets = [of.sets(z).numpy() for of, (_, z) in zip(calibrations, self._outputs(X), strict=True)]
        return sets if self._many else sets[0]


class PredictsIntervals:
    """The part of `MultiTaskRegressor` that says how sure it is."""

    _many: bool
    predict: Any

    def calibrate(self, X: Any, y: Any, error: float = 0.1) -> Self:
        r"""Learn from further rows how wide the intervals of `predict_interval` must be, for each target by itself.

        It is split conformal prediction with absolute residuals: all rows have the same width. Predictions stay as they
        are. `fit` forgets it.

        Args:
            X: `(n, F)`, rows that were not in `fit`, of the kind that will be predicted.
            y: `(n,)` or `(n, T)`, NaN where missing.
            error: α in (0, 1): the share of new rows whose interval may lack their target.

        Returns:
            The estimator.

        Raises:
            UserError: A target with fewer than (1 − α) / α rows.
        """
        check_is_fitted(self)
        check_consistent_length(X, y)
        predicted = self.predict(X)
        tasks = predicted.shape[1] if self._many else 1
        residuals = np.abs(_columns(numbers_of(y), tasks, self._many) - predicted.reshape(len(predicted), -1).T)
        found = []
        for i, column in enumerate(residuals):
            there = ~np.isnan(column)
            _check_count(i, int(there.sum()), error)
            found.append(NumberCalibration.of(1 - error, torch.from_numpy(column[there])))
        self.calibrations_ = found
        return self

    def predict_interval(self, X: Any) -> NDArray[np.float64]:
        """Between which numbers a target may lie, `(n, 2)` or `(n, T, 2)`: the lower and the upper.

        Of rows that are exchangeable with those of `calibrate`, the share whose interval holds their target is 1 − α at
        least, for each target, on average over all that may be drawn for calibration and prediction.

        Args:
            X: `(n, F)`.
        """
        radii = np.array([of.radius for of in _calibrations(self, "predict_interval")])
        predicted = self.predict(X)
        around = radii if self._many else radii[0]
        intervals: NDArray[np.float64] = np.stack([predicted - around, predicted + around], axis=-1)
        return intervals


def _calibrations(estimator: Any, method: str) -> list[Any]:
    check_is_fitted(estimator)
    if not hasattr(estimator, "calibrations_"):
        raise UserError(f"{method}: call calibrate(X, y) first, with labelled rows that were not in fit")
    calibrations: list[Any] = estimator.calibrations_
    return calibrations


def _columns(y: NDArray[Any], tasks: int, many: bool) -> NDArray[Any]:
    """The targets by column, `(T, n)`, refused where they are not as in `fit`."""
    if (y.ndim == 2) != many or y.reshape(len(y), -1).shape[1] != tasks:
        expected = f"(n, {tasks})" if many else "(n,)"
        raise UserError(f"y: the shape {expected} of fit is needed, got {y.shape}")
    return y.reshape(len(y), -1).T


def _check_count(column: int, count: int, error: float) -> None:
    if not 0 < error < 1:
        raise UserError(f"error: a share above 0 and below 1 is needed, such as 0.1; got {error}")
    if count < (least := fewest_labels(1 - error)):
        larger = f"give {math.ceil(1000 / (count + 1)) / 1000:g} or more, or " if count else "give "
        raise UserError(
            f"error: {error:g} needs {least} rows with a target in each column of y, and column {column} has {count}; "
            f"{larger}more rows"
        )
