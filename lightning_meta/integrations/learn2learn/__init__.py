"""Support for learn2learn's task sets, gradient transforms, networks and MAML checkpoints.

learn2learn 0.2.0 does not build on current Python versions without changes; `python scripts/build_learn2learn.py`
builds it. Its vision models can be used as backbones by their class path; their batch normalisation becomes per task.
"""

from lightning_meta.public_names import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
