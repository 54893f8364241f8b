"""Multi-task learning and meta-learning on PyTorch Lightning.

>>> import lightning_meta as lm
>>> data = lm.EpisodicDataModule(lm.sources.Glyphs(), shots=5)
>>> model = lm.ProtoNet(lm.nn.Conv4(in_channels=1))

Everything public is a name of this module, or of `lm.sources`, `lm.nn`, `lm.weightings`, `lm.tasks`, `lm.functional`,
`lm.estimators`, `lm.pictures` and `lm.testing`. A part is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
