"""Parkinson's telemonitoring as few-shot regression: 42 people, some of whom are held out for validation and test."""

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

    An episode has recordings of one person, a few for the support set and others for the query set; a person has 101 to
    168. The inputs are 16 measures of the voice, and the target is a UPDRS score. Of every five people, by number, the
    2nd is for val and the 4th for test: 25, 9 and 8 people in train, val and test. Inputs and targets are standardised
    with the statistics of the training people's recordings.

    Recordings of a session are nearly the same, and the scores of a person were interpolated in time between three
    visits to the clinic. The rows of an episode are therefore close to each other, and most of what can be learned
    about a person is the level of the scores.

    The file is read from `$LIGHTNING_META_DATA/parkinsons/parkinsons_updrs.data`, or downloaded from UCI (0.9 MB).
    `Parkinsons` has the same data as a fixed set of tasks.

    At a glance:
        - Classes: 25 / 9 / 8 people (regression).
        - Examples: 101 to 168.
        - From: UCI, or `LIGHTNING_META_DATA`.

    Args:
        target: Score to predict.
        url: URL from which to download the file.
    """

    regression = True

    def __init__(self, target: Literal["motor_UPDRS", "total_UPDRS"] = "total_UPDRS", url: str = URL) -> None:
        one_of("ParkinsonsFewShot target", target, Literal["motor_UPDRS", "total_UPDRS"])
        self.target, self.url = target, url

    def prepare(self) -> None:
        """Download the file if it is missing; runs in one process per machine."""
        self._rows  # noqa: B018 - reads the file

    def pools(self) -> dict[Split, Pool]:
        """Return pools with inputs `(n, 16)` and targets `(n, 1)` in points of the UPDRS, sorted by person and time."""
        rows = self._rows
        subjects = rows[:, 0].astype(np.int64)
        split_of = np.array(DIVISION)[(subjects - 1) % len(DIVISION)]
        x = torch.from_numpy(rows[:, [COLUMNS.index(name) for name in VOICE]])
        x = Standardiser(x[split_of == "train"])(x)
        y = torch.from_numpy(rows[:, [COLUMNS.index(self.target)]])
        pools: dict[Split, Pool] = {}
        for split in SPLITS:
            people = [s for s in range(1, SUBJECTS + 1) if DIVISION[(s - 1) % len(DIVISION)] == split]
            in_split = split_of == split
            labels = np.searchsorted(people, subjects[in_split]).tolist()
            pools[split] = Pool.from_examples(x[in_split], labels, list(map(subject_name, people)), targets=y[in_split])
        return pools

    def fingerprint(self) -> str:
        """Return the SHA-256 of all examples in the pools."""
        return of_pools(self.pools()).whole

    @cached_property
    def _rows(self) -> NDArray[np.float64]:
        return read_rows(self.url)
