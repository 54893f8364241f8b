from .checkpoints import convert_maml as convert_maml
from .gbml import GBML as GBML
from .tasksets import FromTasksets as FromTasksets
