"""Calibration of the estimators for several targets: prediction sets and intervals, from rows not used in `fit`."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_meta.checks import probability, share
from lightning_meta.errors import UserError
from lightning_meta.estimators.needed import check_consistent_length, check_is_fitted
from lightning_meta.estimators.targets import columns_of, labelled_rows, labels_of, numbers_of, plain
from lightning_meta.multitask.calibration import LabelCalibration, NumberCalibration, fewest_labels
from lightning_meta.nn.normalization import refuse_batch_statistics

ROWS = "rows with a target in each column of y"


class PredictsSets:
    """Calibration methods of `MultiTaskClassifier`."""

    _many: bool
    classes_: Any
    module_: Any
    predict_proba: Any
    _outputs: Any

    def calibrate(self, X: Any, y: Any, error: float = 0.1) -> Self:
        r"""Calibrate the probabilities, the sets and the abstention on labelled rows, for each target separately.

        Afterwards `predict_proba` uses the temperature that fits these rows best, and `predict_set` and `abstain` keep
        to `error` (`lightning_meta.multitask.calibration.LabelCalibration`, as with `lightning-meta test --calibrate`).
        Predicted labels do not change. A new `fit` discards the calibration.

        Args:
            X: Features `(n, F)` of rows that were not used in `fit`, distributed like the rows to be predicted.
            y: Labels `(n,)` or `(n, T)`, all of them in `classes_`; NaN or None where missing.
            error: Error rate α in (0, 1), the largest fraction of new rows whose set does not contain their label, and
                of new rows for which `abstain` is True by default.

        Returns:
            The estimator.

        Raises:
            UserError: A label is not in `classes_`, a target has fewer than (1 − α) / α labels, or predictions depend
                on the other rows of a batch.
        """
        share(0.1, error=error)
        check_is_fitted(self)
        refuse_batch_statistics(self.module_, "backbone")
        y = labels_of(y)
        outputs = self._outputs(X)
        check_consistent_length(outputs[0][1], y)
        columns = columns_of(y, len(outputs), self._many)
        found = []
        for i, (column, (_, z)) in enumerate(zip(columns, outputs, strict=True)):
            there, known = labelled_rows(column), self.classes_[i] if self._many else self.classes_
            check_count(int(there.sum()), error, ROWS, f"column {i}")
            labels = plain(column[there])
            if (strange := ~np.isin(labels, known)).any():
                raise UserError(
                    f"y: {str(labels[strange][0])!r} in column {i} is not one of the classes of fit; leave its rows out"
                )
            numbers = torch.from_numpy(np.searchsorted(known, labels))  # `classes_` is sorted
            found.append(LabelCalibration.of(1 - error, z[torch.from_numpy(there)], numbers))
        self.calibrations_ = found
        return self

    def predict_set(self, X: Any) -> Any:
        """Predict the set of labels that each row may have.

        For rows that are exchangeable with those of `calibrate`, a set contains its label with probability at least
        1 − α, for each target, on average over the draw of the calibration rows. Sets may be empty.

        Args:
            X: Features `(n, F)`.

        Returns:
            Sets `(n, N)` as bool, with columns as in `classes_`; for several targets a list, one array per target.
        """
        calibrations = _calibrations(self, "predict_set")
        sets = [of.sets(z).numpy() for of, (_, z) in zip(calibrations, self._outputs(X), strict=True)]
        return sets if self._many else sets[0]

    def abstain(self, X: Any, threshold: float | None = None) -> NDArray[np.bool_]:
        """Return whether the largest probability is so small that the label should not be used, for each target.

        Args:
            X: Features `(n, F)`.
            threshold: Probability in [0, 1] that the largest one of `predict_proba` must reach; reliable only after
                `calibrate`. By default the threshold of `calibrate`, which applies to the probabilities without the
                temperature: of new rows like those of `calibrate`, it abstains from at most the fraction α.

        Returns:
            `(n,)`, or `(n, T)` for several targets, as `predict`.

        Raises:
            UserError: The threshold is not a probability, or is left out before `calibrate`.
        """
        if threshold is None:
            calibrations = _calibrations(self, "abstain")
            columns = [of.abstained(z).numpy() for of, (_, z) in zip(calibrations, self._outputs(X), strict=True)]
        else:
            probability(threshold=threshold)
            predicted = self.predict_proba(X)
            columns = [p.max(1) < threshold for p in (predicted if self._many else [predicted])]
        return np.stack(columns, axis=1) if self._many else columns[0]


class PredictsIntervals:
    """Calibration methods of `MultiTaskRegressor`."""

    _many: bool
    module_: Any
    predict: Any

    def calibrate(self, X: Any, y: Any, error: float = 0.1) -> Self:
        r"""Determine the width of the intervals of `predict_interval`, for each target separately.

        The method is split conformal prediction with absolute residuals, so all intervals of a target have the same
        width. It does not change predictions. A new `fit` discards the calibration.

        Args:
            X: Features `(n, F)` of rows that were not used in `fit`, distributed like the rows to be predicted.
            y: Targets `(n,)` or `(n, T)`; NaN where missing.
            error: Error rate α in (0, 1), the largest fraction of new rows whose interval does not contain their
                target.

        Returns:
            The estimator.

        Raises:
            UserError: A target has fewer than (1 − α) / α rows, or predictions depend on the other rows of a batch.
        """
        share(0.1, error=error)
        check_is_fitted(self)
        refuse_batch_statistics(self.module_, "backbone")
        y = numbers_of(y)
        predicted = self.predict(X)
        check_consistent_length(predicted, y)
        tasks = predicted.shape[1] if self._many else 1
        residuals = np.abs(columns_of(y, tasks, self._many) - predicted.reshape(len(predicted), -1).T)
        found = []
        for i, column in enumerate(residuals):
            there = ~np.isnan(column)
            check_count(int(there.sum()), error, ROWS, f"column {i}")
            found.append(NumberCalibration.of(1 - error, torch.from_numpy(column[there])))
        self.calibrations_ = found
        return self

    def predict_interval(self, X: Any) -> NDArray[np.float64]:
        """Predict the interval that contains the target of each row.

        For rows that are exchangeable with those of `calibrate`, an interval contains its target with probability at
        least 1 − α, for each target, on average over the draw of the calibration rows.

        Args:
            X: Features `(n, F)`.

        Returns:
            Lower and upper ends, `(n, 2)`, or `(n, T, 2)` for several targets.
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


def check_count(count: int, error: float, needed: str, where: str) -> None:
    """Check that there are enough labels for sets or intervals with an error rate.

    Args:
        count: Number of labels.
        error: Error rate α in (0, 1).
        needed: What is counted, for the message.
        where: Where the labels are, for the message.

    Raises:
        UserError: There are fewer than (1 − α) / α.
    """
    if count < (least := fewest_labels(1 - error)):
        larger = f"give {math.ceil(1000 / (count + 1)) / 1000:g} or more, or " if count else "give "
        raise UserError(f"error: {error:g} needs {least} {needed}, and {where} has {count}; {larger}more rows")
