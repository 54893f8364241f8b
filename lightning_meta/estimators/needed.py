"""scikit-learn, which this package does without elsewhere."""

from __future__ import annotations

from lightning_meta.errors import UserError

INSTALL = "pip install 'lightning_meta[sklearn]'"

try:
    from sklearn.utils.validation import validate_data  # scikit-learn 1.6
except ImportError as error:
    raise UserError(f"lightning_meta.estimators needs scikit-learn 1.6 or newer ({error}); {INSTALL}") from error

__all__ = ["validate_data"]
