"""The seed of a run started in Python, and whether its weights were drawn with that seed."""

from __future__ import annotations

import logging
import os
from numbers import Integral

from lightning.pytorch import seed_everything

from lightning_meta.errors import UserError
from lightning_meta.fitting.checks import check_seed
from lightning_meta.fitting.place import Place

SEED = "PL_GLOBAL_SEED"  # environment variable in which `lightning.seed_everything` stores the seed
# Prefix of the stored seed after a run has drawn random numbers from it. "+1" still parses as a number, and only
# seeding again, with any seed, removes the prefix.
USED = "+"

_log = logging.getLogger(__name__)


def set_seed(seed: int | None, place: Place, drawn: bool = True) -> tuple[int | bool, str]:
    """Seed the random generators, unless the current random state is to be used.

    Args:
        seed: The `seed` of `fit`; None if it was not given.
        place: Location of the run.
        drawn: Whether the result depends on the weights that were drawn, as those of a linear model do not.

    Returns:
        The seed of the run, and a comment about it for `config.yaml`.

    Raises:
        UserError: The seed is not a whole number, or out of range.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise UserError(f"seed: expected a whole number, got {seed!r}")
    check_seed(seed := None if seed is None else int(seed))
    before = os.environ.get(SEED)
    resumed = place.seed() if seed is None else True
    if resumed is False:  # the command ran with `seed_everything: false`, so its data were drawn with the default seed
        os.environ.pop(SEED, None)
        return False, ""
    if seed is None and resumed is not True:
        seed = int(resumed)
    if seed is None and before is not None:
        again = place.checkpoint is None and before.startswith(USED)
        return int(before), "# The weights were drawn after an earlier run with this seed.\n" if again else ""
    if seed is None and place.checkpoint is None and drawn:
        _log.warning("the weights were drawn without a seed: call lightning.seed_everything before creating the module")
    used = int(seed_everything(seed or 0, workers=True, verbose=False))
    reproducible = place.checkpoint is not None or before == str(used) or not drawn
    return used, "" if reproducible else "# The weights were drawn before this seed was set.\n"


def note_use_of_seed() -> None:
    """Mark the seed as used: weights drawn from now on do not follow from the seed alone."""
    seed = os.environ.get(SEED, "")
    if seed and not seed.startswith(USED):
        os.environ[SEED] = USED + seed
