"""Pure functions on tensors: random draws, inner loops, the task map, prototypes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
