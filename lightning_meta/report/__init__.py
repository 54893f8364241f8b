"""Figures and tables of runs, and in `transfer` the comparison of multi-task runs."""

from lightning_meta.public_names import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
