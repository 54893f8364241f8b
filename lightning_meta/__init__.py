"""Multi-task learning and meta-learning on PyTorch Lightning.

>>> import lightning_meta
>>> model = lightning_meta.load("runs/protonet_glyphs/0")  # doctest: +SKIP
"""

from lightning_meta.batches import Episode, Examples
from lightning_meta.errors import UserError
from lightning_meta.loading import load

__all__ = ["Episode", "Examples", "UserError", "load"]
__version__ = "0.1.0"
