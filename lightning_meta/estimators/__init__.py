"""Estimators with the interface of scikit-learn, which needs `pip install 'lightning_meta[sklearn]'`."""

from lightning_meta.public_names import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
