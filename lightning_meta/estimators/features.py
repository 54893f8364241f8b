"""Features of the estimators as an array of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_meta.errors import UserError
from lightning_meta.estimators.needed import validate_data


def read_features(estimator: Any, X: Any, **options: Any) -> Any:
    """Return what scikit-learn's `validate_data` returns for real features.

    Args:
        estimator: The estimator, which notes or compares the columns.
        X: Features `(n, F)`.
        **options: Further arguments of `validate_data`, such as `y` and `reset`.

    Raises:
        UserError: A column holds dates or text.
    """
    if (dates := first_dates(X)) is not None:
        raise UserError(f"X: column {dates!r} holds dates; give numbers, such as days since the first date")
    try:
        return validate_data(estimator, X, dtype=np.float64, **options)
    except ValueError as error:
        if "could not convert string" not in str(error):
            raise
        raise UserError(
            f"X: {error}; encode columns of text first, such as by sklearn.compose.ColumnTransformer with a "
            "OneHotEncoder, in a Pipeline"
        ) from error


def first_dates(X: Any) -> Any:
    """Return the name of the first column of a DataFrame that holds dates or durations; None if there is none."""
    dtypes: Any = getattr(X, "dtypes", None)
    kinds = dtypes.items() if hasattr(dtypes, "items") else ()
    return next((name for name, dtype in kinds if getattr(dtype, "kind", "") in ("m", "M")), None)
