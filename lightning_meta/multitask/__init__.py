"""LightningModules for a fixed set of tasks: one method a file."""

from lightning_meta.public_names import attach

__getattr__, __dir__, __all__ = attach(__name__)
