"""Parkinson's telemonitoring: how ill a person is, told from the voice; 42 people, or two scores, as tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_meta.batches import SPLITS, Examples, Split
from lightning_meta.data.files import OfficialFile, WrongContentError, read_official
from lightning_meta.data.source import TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError, one_of
from lightning_meta.reading import read_text
from lightning_meta.sources.scaling import Standardiser
from lightning_meta.tasks import Regression, Task

URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/parkinsons/telemonitoring/parkinsons_updrs.data"

TARGETS = ("motor_UPDRS", "total_UPDRS")
VOICE = (
    *("Jitter(%)", "Jitter(Abs)", "Jitter:RAP", "Jitter:PPQ5", "Jitter:DDP"),
    *("Shimmer", "Shimmer(dB)", "Shimmer:APQ3", "Shimmer:APQ5", "Shimmer:APQ11", "Shimmer:DDA"),
    *("NHR", "HNR", "RPDE", "DFA", "PPE"),
)
COLUMNS = ("subject#", "age", "sex", "test_time", *TARGETS, *VOICE)
ROWS = 5875
SUBJECTS = 42

# The sha256 of all numbers as little-endian float64, the rows sorted by subject, then time, then the other columns.
CONTENT = "dcb5087cec47086c6e715599f6143c0eab8f81cb284d78521a43720c94b00321"

SESSION_GAP = 1.0  # days; the recordings of a session lie minutes apart, sessions about a week
DIVISION: tuple[Split, ...] = ("train", "val", "train", "test", "train")  # of five sessions, or people, in their order

Extra = Literal["age", "sex", "test_time"]


class Parkinsons(TaskSource):
    """Parkinson's telemonitoring (Tsanas et al., IEEE Transactions on Biomedical Engineering 57, 2010).

    5,875 recordings of 42 people over half a year: 16 measures of the voice, and the scores motor and total UPDRS. With
    `tasks="subjects"` each person is a task with 101 to 168 recordings, `subject_01` to `subject_42`, and one score is
    predicted. With `tasks="targets"` the two scores are two tasks of one input.

    Recordings come in weekly sessions of about six that are nearly alike, and the scores were interpolated in time
    between three visits at the clinic, so whole sessions are held out: recordings of a person less than a day apart are
    one session, and of each five sessions of a person, by time, the 2nd is for val, the 4th for test: about 60, 20 and
    20 %, every person in every split. Scores of neighbouring sessions are still close: what is measured is how well a
    known person is followed in between, not a forecast.

    Inputs are standardised by the mean and scale of all training rows together.

    Found as `$LIGHTNING_META_DATA/parkinsons/parkinsons_updrs.data`, or downloaded from UCI (0.9 MB).

    At a glance:
        - Tasks: 42 people, or two scores of one recording.
        - Held out: whole recording sessions, or people.
        - From: UCI, or `LIGHTNING_META_DATA`.

    Args:
        tasks: What the tasks are: the `subjects`, or the `targets` motor and total UPDRS.
        target: The score that subjects' tasks predict, by default `total_UPDRS`; not with `tasks="targets"`.
        hold_out: `sessions`; or `subjects`, with `tasks="targets"` alone: of each five people, by number, the 2nd is
            for val, the 4th for test, so that 25, 9 and 8 people are in the splits and nobody is in two.
        extra_features: Columns that join the 16 measures of the voice. `age` and `sex` are constant for a subject, and
            with `test_time` the interpolated scores can be read off the calendar, without listening.
        url: Where to download the file from.

    Raises:
        UserError: Options that do not go together.
    """

    def __init__(
        self,
        tasks: Literal["subjects", "targets"] = "subjects",
        target: Literal["motor_UPDRS", "total_UPDRS"] | None = None,
        hold_out: Literal["sessions", "subjects"] = "sessions",
        extra_features: Sequence[Extra] = (),
        url: str = URL,
    ) -> None:
        one_of("Parkinsons tasks", tasks, Literal["subjects", "targets"])
        one_of("Parkinsons hold_out", hold_out, Literal["sessions", "subjects"])
        for column in extra_features:
            one_of("Parkinsons extra_features", column, Extra)
        if len(set(extra_features)) != len(extra_features):
            raise UserError(f"Parkinsons extra_features={list(extra_features)}: a column is named twice")
        if target is not None:
            one_of("Parkinsons target", target, Literal["motor_UPDRS", "total_UPDRS"])
            if tasks == "targets":
                raise UserError('Parkinsons target: with tasks="targets" both scores are predicted; leave it out')
        if tasks == "subjects" and hold_out == "subjects":
            raise UserError(
                'Parkinsons hold_out="subjects": a subject that is a task has to be in every split; '
                'hold out "sessions", or set tasks="targets"'
            )
        self.kind, self.target, self.hold_out, self.url = tasks, target or "total_UPDRS", hold_out, url
        self.features = (*VOICE, *extra_features)

    def prepare(self) -> None:
        """Download the file if it is not there; runs in one process per machine."""
        self._rows  # noqa: B018 - which reads it

    def tasks(self) -> dict[str, Task]:
        """One regression a subject, or one a score."""
        names = TARGETS if self.kind == "targets" else [subject_name(s) for s in range(1, SUBJECTS + 1)]
        return {name: Regression(1) for name in names}

    def sets(self) -> dict[Split, TaskSet]:
        """Inputs `(n, 16)` and more with extra features; targets `(n_i, 1)` in points of the UPDRS."""
        rows = self._rows
        subjects = rows[:, 0].astype(np.int64)
        place = subjects - 1 if self.hold_out == "subjects" else sessions(subjects, rows[:, 3])
        split_of = np.array(DIVISION)[place % len(DIVISION)]
        x = torch.from_numpy(rows[:, [COLUMNS.index(name) for name in self.features]])
        x = Standardiser(x[split_of == "train"])(x)
        y = {name: torch.from_numpy(rows[:, [COLUMNS.index(name)]]).float() for name in TARGETS}
        sets: dict[Split, TaskSet] = {}
        for split in SPLITS:
            here = split_of == split
            if self.kind == "targets":
                everywhere = torch.ones(int(here.sum()), dtype=torch.bool)
                columns = {name: values[here] for name, values in y.items()}
                sets[split] = TaskSet.of_columns(x[here], columns, dict.fromkeys(columns, everywhere))
            else:
                of = {subject_name(s): here & (subjects == s) for s in range(1, SUBJECTS + 1)}
                sets[split] = TaskSet.of_examples({n: Examples(x[m], y[self.target][m]) for n, m in of.items()})
        return sets

    def descriptors(self) -> Mapping[str, tuple[float, ...]]:
        """Age and sex of each subject, standardised over subjects; nothing where the scores are the tasks."""
        if self.kind == "targets":
            return {}
        of_subject = np.stack([self._rows[self._rows[:, 0] == s][0, 1:3] for s in range(1, SUBJECTS + 1)])
        z = Standardiser(torch.from_numpy(of_subject))(torch.from_numpy(of_subject))
        return {subject_name(s): tuple(row) for s, row in enumerate(z.tolist(), start=1)}

    @cached_property
    def _rows(self) -> NDArray[np.float64]:
        return read_rows(self.url)


def read_rows(url: str) -> NDArray[np.float64]:
    """The table `(5875, 22)`, sorted by subject, then time; downloaded if it is not there.

    Args:
        url: Where to download the file from.
    """
    return read_official(OfficialFile("parkinsons/parkinsons_updrs.data", url), _read)


def sessions(subjects: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of each row's session among those of its subject, from 0, by time.

    Args:
        subjects: `(n,)`, sorted.
        times: `(n,)` days, sorted within a subject.
    """
    new_subject = np.diff(subjects, prepend=subjects[0] - 1) > 0
    later = np.diff(times, prepend=times[0]) >= SESSION_GAP
    count = np.cumsum(new_subject | later)
    return count - np.maximum.accumulate(np.where(new_subject, count, 0))


def subject_name(subject: int) -> str:
    """The name of the task of a person, from 1."""
    return f"subject_{subject:02}"


def _read(path: Path) -> NDArray[np.float64]:
    """The table `(5875, 22)` in canonical order, verified; commas or tabs divide its columns."""
    try:
        lines = read_text(path).splitlines()
        divider = "\t" if "\t" in lines[0] else ","
        header = tuple(name.strip() for name in lines[0].split(divider))
        rows = np.array([line.split(divider) for line in lines[1:] if line.strip()], np.float64)
    except UserError:
        raise
    except (IndexError, ValueError) as error:
        raise WrongContentError(f"it is no table of numbers ({error})") from error
    if header != COLUMNS or rows.shape != (ROWS, len(COLUMNS)):
        raise WrongContentError(f"it has {len(rows)} rows of {len(header)} columns, expected {ROWS} of {len(COLUMNS)}")
    rows = rows[np.lexsort(rows[:, [*range(4, len(COLUMNS))[::-1], 3, 0]].T)]
    found = hashlib.sha256(rows.astype("<f8").tobytes()).hexdigest()
    if found != CONTENT:
        raise WrongContentError(f"its numbers are not the official ones (their sha256 is {found})")
    return rows
