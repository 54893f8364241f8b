"""LightningModules for a fixed set of tasks: one method a file."""

import lazy_loader

from lightning_meta.public_names import public_names

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=public_names(__name__))
