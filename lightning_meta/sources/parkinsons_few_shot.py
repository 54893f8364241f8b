"""Parkinson's telemonitoring as few-shot regression: 42 people, of whom some are new in validation and test."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.hashes import of_pools
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source
from lightning_meta.errors import one_of
from lightning_meta.sources.parkinsons import COLUMNS, DIVISION, SUBJECTS, URL, VOICE, read_rows, subject_name
from lightning_meta.sources.scaling import Standardiser


class ParkinsonsFewShot(Source):
    """Parkinson's telemonitoring, people as tasks (Tsanas et al., IEEE Trans. on Biomedical Engineering 57, 2010).

    An episode is of one person: a few of the 101 to 168 recordings, 16 measures of the voice, with a score of the
    UPDRS each, and others to predict. Of each five people, by number, the 2nd is for val, the 4th for test: 25, 9 and 8
    people. Inputs are standardised by the recordings of the people for training, and so are targets.

    Recordings of a session are nearly alike, and a person's scores were interpolated in time between three visits at
    the clinic: the rows of an episode are close to each other, and most of what can be learned of a person is the level
    of the scores.

    Found as `$LIGHTNING_META_DATA/parkinsons/parkinsons_updrs.data`, or downloaded from UCI (0.9 MB). For named tasks
    there is `Parkinsons`.

    At a glance:
        - Classes: 25 / 9 / 8 people (regression).
        - Examples: 101 to 168.
        - From: UCI, or `LIGHTNING_META_DATA`.

    Args:
        target: The score that is predicted.
        url: Where to download the file from.
    """

    regression = True

    def __init__(self, target: Literal["motor_UPDRS", "total_UPDRS"] = "total_UPDRS", url: str = URL) -> None:
        one_of("ParkinsonsFewShot target", target, Literal["motor_UPDRS", "total_UPDRS"])
        self.target, self.url = target, url

    def prepare(self) -> None:
        """Download the file if it is not there; runs in one process per machine."""
        self._rows  # noqa: B018 - which reads it

    def pools(self) -> dict[Split, Pool]:
        """Inputs `(n, 16)` and targets `(n, 1)` in points of the UPDRS, person by person and by time."""
        rows = self._rows
        subjects = rows[:, 0].astype(np.int64)
        split_of = np.array(DIVISION)[(subjects - 1) % len(DIVISION)]
        x = torch.from_numpy(rows[:, [COLUMNS.index(name) for name in VOICE]])
        x = Standardiser(x[split_of == "train"])(x)
        y = torch.from_numpy(rows[:, [COLUMNS.index(self.target)]])
        pools: dict[Split, Pool] = {}
        for split in SPLITS:
            people = [s for s in range(1, SUBJECTS + 1) if DIVISION[(s - 1) % len(DIVISION)] == split]
            here = split_of == split
            labels = np.searchsorted(people, subjects[here]).tolist()
            pools[split] = Pool.from_examples(x[here], labels, list(map(subject_name, people)), targets=y[here])
        return pools

    def fingerprint(self) -> str:
        """The sha256 of all examples as `pools` gives them."""
        return of_pools(self.pools()).whole

    @cached_property
    def _rows(self) -> NDArray[np.float64]:
        return read_rows(self.url)
