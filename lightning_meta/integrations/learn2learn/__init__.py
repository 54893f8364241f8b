"""What a learn2learn user brings along: task sets, gradient transforms, networks and MAML checkpoints.

learn2learn 0.2.0 does not build on a current Python as it stands: `python scripts/build_learn2learn.py` builds it.
Its vision models are backbones here by their class path; their batch normalisation becomes per task.
"""

from lightning_meta.integrations.learn2learn.checkpoints import convert_maml
from lightning_meta.integrations.learn2learn.gbml import GBML
from lightning_meta.integrations.learn2learn.tasksets import FromTasksets

__all__ = ["GBML", "FromTasksets", "convert_maml"]
