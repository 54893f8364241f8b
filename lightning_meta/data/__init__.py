"""Pools of examples, the episodes drawn from them, and the data module."""

from lightning_meta.public_names import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
