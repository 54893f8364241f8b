"""Imports from scikit-learn, an optional dependency: one place reports that it is missing."""

from __future__ import annotations

from typing import Any

from lightning_meta.errors import UserError

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        check_array,
        check_consistent_length,
        check_is_fitted,
        column_or_1d,
        validate_data,  # scikit-learn 1.6
    )
except ImportError as error:
    raise UserError(
        f"lightning_meta.estimators needs scikit-learn 1.6 or newer ({error}); pip install 'lightning_meta[sklearn]'"
    ) from error

__all__ = [
    "BaseEstimator",
    "ClassifierMixin",
    "ConvergenceWarning",
    "RegressorMixin",
    "accuracy_score",
    "check_array",
    "check_classification_targets",
    "check_consistent_length",
    "check_is_fitted",
    "column_or_1d",
    "forget",
    "r2_score",
    "validate_data",
]


def forget(estimator: Any) -> None:
    """Delete the fitted attributes, so that a failing fit does not leave those of an earlier one."""
    for name in [name for name in vars(estimator) if name.endswith("_") and not name.startswith("_")]:
        delattr(estimator, name)
