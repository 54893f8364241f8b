"""The seed of a run that is made in Python, and whether its weights are of it."""

from __future__ import annotations

import logging
import os
from numbers import Integral

from lightning.pytorch import seed_everything

from lightning_meta.errors import UserError
from lightning_meta.fitting.checks import check_seed
from lightning_meta.fitting.place import Place

SEED = "PL_GLOBAL_SEED"  # where `lightning.seed_everything` notes it
# Stands before that number once a run has drawn from the seed. The number stays one to all that read it, and only
# seeding again, with the same seed as well, takes the sign away.
USED = "+"

_log = logging.getLogger(__name__)


def set_seed(seed: int | None, place: Place) -> tuple[int | bool, str]:
    """Set the seed where there is a reason to.

    Args:
        seed: As given; None where none was.
        place: Where the run lies.

    Returns:
        The seed of the run, and what must be said of it in `config.yaml`.

    Raises:
        UserError: It is none.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise UserError(f"seed: expected a whole number, got {seed!r}")
    check_seed(seed := None if seed is None else int(seed))
    before = os.environ.get(SEED)
    resumed = place.seed() if seed is None else True
    if resumed is False:  # of a command that set none: its data were drawn with the default
        os.environ.pop(SEED, None)
        return False, ""
    if seed is None and resumed is not True:
        seed = int(resumed)
    if seed is None and before is not None:
        again = place.checkpoint is None and before.startswith(USED)
        return int(before), "# The weights were drawn after an earlier run with this seed.\n" if again else ""
    if seed is None and place.checkpoint is None:
        _log.warning("the weights were drawn without a seed: call lightning.seed_everything before the module is made")
    used = int(seed_everything(seed or 0, workers=True, verbose=False))
    drawn = place.checkpoint is not None or before == str(used)
    return used, "" if drawn else "# The weights were drawn before this seed was set.\n"


def note_use_of_seed() -> None:
    """Note that the generators are no longer where the seed put them: weights drawn from now on are not of the seed."""
    seed = os.environ.get(SEED, "")
    if seed and not seed.startswith(USED):
        os.environ[SEED] = USED + seed
