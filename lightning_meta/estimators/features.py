"""Features of the estimators as an array of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_meta.errors import UserError
from lightning_meta.estimators.needed import validate_data
from lightning_meta.estimators.wording import about, holds_text, refuse_dates, refuse_no_array, refuse_no_table


def read_features(estimator: Any, X: Any, **options: Any) -> Any:
    """Return what scikit-learn's `validate_data` returns for real features.

    Args:
        estimator: The estimator, which notes or compares the columns.
        X: Features `(n, F)`.
        **options: Further arguments of `validate_data`, such as `y` and `reset`.

    Raises:
        UserError: A column holds dates or text, or `X` has the wrong shape or number of columns.
        TypeError: A value is not a number.
    """
    refuse_no_array(X=X)
    refuse_dates("X", X)
    refuse_no_table("X", X)
    fitted = None if options.get("reset", True) else getattr(estimator, "feature_names_in_", None)
    other_columns = fitted is not None and list(getattr(X, "columns", fitted)) != list(fitted)
    try:
        with about("X", X, other_columns):
            return validate_data(estimator, X, dtype=np.float64, **options)
    except UserError as error:
        if not holds_text(X):
            raise
        raise UserError(
            f"{error}; encode columns of text first, such as by sklearn.compose.ColumnTransformer with a "
            "OneHotEncoder(sparse_output=False), in a Pipeline"
        ) from error
