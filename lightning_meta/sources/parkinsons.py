"""Parkinson's telemonitoring: the severity of the disease from the voice; the tasks are 42 people, or two scores."""

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

# The SHA-256 of all numbers as little-endian float64, with rows sorted by subject, then time, then the other columns.
CONTENT = "dcb5087cec47086c6e715599f6143c0eab8f81cb284d78521a43720c94b00321"

SESSION_GAP = 1.0  # days; the recordings of a session are minutes apart, sessions about a week
DIVISION: tuple[Split, ...] = ("train", "val", "train", "test", "train")  # of five consecutive sessions, or people

Extra = Literal["age", "sex", "test_time"]


class Parkinsons(TaskSource):
    """Parkinson's telemonitoring (Tsanas et al., IEEE Transactions on Biomedical Engineering 57, 2010).

    The data are 5,875 recordings of 42 people over half a year, with 16 measures of the voice and the motor and total
    UPDRS scores. With `tasks="subjects"` each person is a task with 101 to 168 recordings, `subject_01` to
    `subject_42`, and one score is predicted. With `tasks="targets"` the two scores are two tasks with the same inputs.

    Recordings were made in weekly sessions of about six, which are nearly the same, and the scores were interpolated in
    time between three visits to the clinic. Therefore, whole sessions are held out: recordings of a person less than a
    day apart are one session, and of every five sessions of a person, in order of time, the 2nd is for val and the 4th
    for test. The splits have about 60, 20 and 20 % of the recordings, and every person is in every split. Scores of
    neighbouring sessions are still close: the test measures interpolation for a known person, not a forecast.

    Inputs are standardised by the mean and standard deviation of all training rows.

    The file is read from `$LIGHTNING_META_DATA/parkinsons/parkinsons_updrs.data`, or downloaded from UCI (0.9 MB).

    At a glance:
        - Tasks: 42 people, or two scores of one recording.
        - Held out: whole recording sessions, or people.
        - From: UCI, or `LIGHTNING_META_DATA`.

    Args:
        tasks: What the tasks are: the `subjects`, or the `targets` motor and total UPDRS.
        target: Score predicted for each subject, by default `total_UPDRS`; cannot be combined with `tasks="targets"`.
        hold_out: What is held out: `sessions`, or `subjects`, which requires `tasks="targets"`. With `subjects`, of
            every five people, by number, the 2nd is for val and the 4th for test: 25, 9 and 8 people in train, val and
            test, and no person is in two splits.
        extra_features: Names of columns used in addition to the 16 measures of the voice. `age` and `sex` are constant
            for a subject; with `test_time` the interpolated scores can be predicted without the voice.
        url: URL from which to download the file.

    Raises:
        UserError: Options contradict each other.
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
        """Download the file if it is missing; runs in one process per machine."""
        self._rows  # noqa: B018 - reads the file

    def tasks(self) -> dict[str, Task]:
        """Return one regression task per subject, or one per score."""
        names = TARGETS if self.kind == "targets" else [subject_name(s) for s in range(1, SUBJECTS + 1)]
        return {name: Regression(1) for name in names}

    def sets(self) -> dict[Split, TaskSet]:
        """Return sets with inputs `(n, 16 + extra features)` and targets `(n_i, 1)` in points of the UPDRS."""
        rows = self._rows
        subjects = rows[:, 0].astype(np.int64)
        unit = subjects - 1 if self.hold_out == "subjects" else sessions(subjects, rows[:, 3])
        split_of = np.array(DIVISION)[unit % len(DIVISION)]
        x = torch.from_numpy(rows[:, [COLUMNS.index(name) for name in self.features]])
        x = Standardiser(x[split_of == "train"])(x)
        y = {name: torch.from_numpy(rows[:, [COLUMNS.index(name)]]).float() for name in TARGETS}
        sets: dict[Split, TaskSet] = {}
        for split in SPLITS:
            in_split = split_of == split
            if self.kind == "targets":
                all_present = torch.ones(int(in_split.sum()), dtype=torch.bool)
                columns = {name: values[in_split] for name, values in y.items()}
                sets[split] = TaskSet.of_columns(x[in_split], columns, dict.fromkeys(columns, all_present))
            else:
                masks = {subject_name(s): in_split & (subjects == s) for s in range(1, SUBJECTS + 1)}
                sets[split] = TaskSet.of_examples({n: Examples(x[m], y[self.target][m]) for n, m in masks.items()})
        return sets

    def descriptors(self) -> Mapping[str, tuple[float, ...]]:
        """Return age and sex of each subject, standardised over the subjects; empty if the tasks are the scores."""
        if self.kind == "targets":
            return {}
        by_subject = np.stack([self._rows[self._rows[:, 0] == s][0, 1:3] for s in range(1, SUBJECTS + 1)])
        z = Standardiser(torch.from_numpy(by_subject))(torch.from_numpy(by_subject))
        return {subject_name(s): tuple(row) for s, row in enumerate(z.tolist(), start=1)}

    @cached_property
    def _rows(self) -> NDArray[np.float64]:
        return read_rows(self.url)


def read_rows(url: str) -> NDArray[np.float64]:
    """Read the table `(5875, 22)`, sorted by subject, then time; it is downloaded if it is missing.

    Args:
        url: URL from which to download the file.
    """
    return read_official(OfficialFile("parkinsons/parkinsons_updrs.data", url), _read)


def sessions(subjects: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the sessions of each subject from 0 in order of time, and return the number for each row, `(n,)`.

    Args:
        subjects: Subject of each row, `(n,)`, sorted.
        times: Time of each row in days, `(n,)`, sorted within a subject.
    """
    new_subject = np.diff(subjects, prepend=subjects[0] - 1) > 0
    new_session = np.diff(times, prepend=times[0]) >= SESSION_GAP
    count = np.cumsum(new_subject | new_session)
    return count - np.maximum.accumulate(np.where(new_subject, count, 0))  # minus the count at the subject's first row


def subject_name(subject: int) -> str:
    """Return the name of the task of a subject; subjects are numbered from 1."""
    return f"subject_{subject:02}"


def _read(path: Path) -> NDArray[np.float64]:
    """Read and verify the table `(5875, 22)`, separated by commas or tabs, and sort its rows into canonical order."""
    try:
        lines = read_text(path).splitlines()
        delimiter = "\t" if "\t" in lines[0] else ","
        header = tuple(name.strip() for name in lines[0].split(delimiter))
        rows = np.array([line.split(delimiter) for line in lines[1:] if line.strip()], np.float64)
    except UserError:
        raise
    except (IndexError, ValueError) as error:
        raise WrongContentError(f"it is not a table of numbers ({error})") from error
    if header != COLUMNS or rows.shape != (ROWS, len(COLUMNS)):
        raise WrongContentError(f"it has {len(rows)} rows of {len(header)} columns, expected {ROWS} of {len(COLUMNS)}")
    rows = rows[np.lexsort(rows[:, [*range(4, len(COLUMNS))[::-1], 3, 0]].T)]
    sha256 = hashlib.sha256(rows.astype("<f8").tobytes()).hexdigest()
    if sha256 != CONTENT:
        raise WrongContentError(f"its numbers are not the official ones (their sha256 is {sha256})")
    return rows
