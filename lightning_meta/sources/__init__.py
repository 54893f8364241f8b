"""Sources: one file per data set, which finds, verifies and decodes its files."""

from lightning_meta.public_names import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
