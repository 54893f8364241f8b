"""Multi-task learning and meta-learning on PyTorch Lightning.

>>> import lightning_meta as lm
>>> data = lm.EpisodicDataModule(lm.sources.Glyphs(), shots=5)
>>> model = lm.ProtoNet(lm.nn.Conv4(in_channels=1))

Everything public is a name of this module, or of `lm.sources`, `lm.nn`, `lm.weightings`, `lm.tasks`, `lm.functional`,
`lm.estimators`, `lm.pictures` and `lm.testing`. A part is imported when it is first used.
"""

from lightning_meta.public_names import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
__version__ = "0.1.0"
