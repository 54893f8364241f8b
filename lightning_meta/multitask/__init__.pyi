# For type checkers alone. The list is that of `lightning_meta`; see `public_names`.
from lightning_meta import *  # noqa: F403
