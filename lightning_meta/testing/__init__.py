"""Tests to inherit: subclass one, say what to test by one method, and run pytest.

>>> from lightning_meta.meta import ProtoNet
>>> from lightning_meta.nn import Conv4
>>> from lightning_meta.testing import MetaModuleTests
>>> class TestMine(MetaModuleTests):
...     def make(self):
...         return ProtoNet(Conv4(in_channels=1, width=4, blocks=2))

Each test that fails says what is wrong with the class under test. Nothing here imports pytest.
"""

from lightning_meta.public_names import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
