"""Pure functions on tensors: random draws, inner loops, the task map, prototypes."""

from lightning_meta.public_names import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
