"""What a learn2learn user brings along: task sets, gradient transforms, networks and MAML checkpoints.

learn2learn 0.2.0 does not build on a current Python as it stands: `python scripts/build_learn2learn.py` builds it.
Its vision models are backbones here by their class path; their batch normalisation becomes per task.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
