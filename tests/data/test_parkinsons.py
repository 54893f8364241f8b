from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.sources import Parkinsons, parkinsons
from lightning_meta.tasks import Regression

FILE = "parkinsons/parkinsons_updrs.data"


@pytest.fixture
def table(data_folder: Path) -> np.ndarray:
    """The file as numpy reads it, in its own order."""
    return np.loadtxt(data_folder / FILE, delimiter="\t", skiprows=1)


def rows_of(table: np.ndarray, source: Parkinsons, split: Split) -> dict[str, list[int]]:
    """The rows of the file in a split, by task; they are found by their standardised measures."""
    train = np.array([of == "train" for of in reference_split(table)])
    z = (table[:, 6:] - table[train, 6:].mean(0)) / table[train, 6:].std(0)
    data, found = source.sets()[split], {}
    assert isinstance(data.inputs, torch.Tensor)
    for name in data.names:
        apart = torch.cdist(data.inputs[data.rows[name]].double(), torch.from_numpy(z))
        assert apart.min(1).values.max() < 1e-4
        found[name] = apart.argmin(1).tolist()
    return found


def reference_split(table: np.ndarray) -> list[str]:
    split = [""] * len(table)
    for subject in range(1, 43):
        rows = sorted(np.flatnonzero(table[:, 0] == subject), key=lambda i: table[i, 3])
        session, last = -1, -1e9
        for i in rows:
            session += table[i, 3] - last >= 1.0
            last = table[i, 3]
            split[i] = ("train", "val", "train", "test", "train")[session % 5]
    return split


@pytest.mark.data
def test_the_42_subjects(table: np.ndarray) -> None:
    source = Parkinsons()
    sets, expected = source.sets(), reference_split(table)
    assert list(source.tasks()) == [f"subject_{s:02}" for s in range(1, 43)]
    assert all(isinstance(task, Regression) and task.outputs == 1 for task in source.tasks().values())
    for split in SPLITS:
        assert sets[split].names == list(source.tasks())
        assert not sets[split].overlapping
        for s, name in enumerate(sets[split].names, start=1):
            wanted = [table[i, 5] for i in range(len(table)) if table[i, 0] == s and expected[i] == split]
            assert sorted(sets[split].targets[name][:, 0].tolist()) == pytest.approx(sorted(wanted))
    shares = [sum(sets[split].counts.values()) / 5875 for split in SPLITS]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.02)
    assert sum(sum(sets[split].counts.values()) for split in SPLITS) == 5875
    assert source.fingerprint() == "32dc67a4e505948ddecd564152f4e46db9dd9044a16d2031203317b96b1cb8f0"


@pytest.mark.data
def test_a_session_lies_in_one_split(table: np.ndarray) -> None:
    """In the real data, two recordings of a person in different splits are a day or more apart."""
    source = Parkinsons()
    time = {}
    for split in SPLITS:
        for name, rows in rows_of(table, source, split).items():
            time[split, name] = table[rows, 3]
            assert len(set(rows)) == source.sets()[split].counts[name]
    for s in range(1, 43):
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            apart = np.abs(time[a, f"subject_{s:02}"][:, None] - time[b, f"subject_{s:02}"])  # type: ignore[index]
            assert apart.min() > 0.9


@pytest.mark.data
@pytest.mark.parametrize("hold_out", ["sessions", "subjects"])
def test_the_two_scores_of_one_input(table: np.ndarray, hold_out: Any) -> None:
    source = Parkinsons(tasks="targets", hold_out=hold_out)
    sets = source.sets()
    assert list(source.tasks()) == ["motor_UPDRS", "total_UPDRS"]
    assert source.descriptors() == {}
    pairs = {tuple(row) for row in table[:, 4:6].astype(np.float32)}
    for data in sets.values():
        assert isinstance(data.inputs, torch.Tensor)
        assert data.counts == dict.fromkeys(source.tasks(), len(data.inputs))
        assert data.rows["motor_UPDRS"].tolist() == list(range(len(data.inputs)))
        assert {tuple(r) for r in torch.cat(list(data.targets.values()), 1).numpy()} <= pairs
    people = {s: {table[i, 0] for i in rows_of_subjects(table, sets[s])} for s in SPLITS}
    if hold_out == "subjects":
        assert [len(people[s]) for s in SPLITS] == [25, 9, 8]
        assert not people["train"] & people["val"] | people["train"] & people["test"] | people["val"] & people["test"]
        assert sum(len(s.inputs) for s in sets.values()) == 5875


def rows_of_subjects(table: np.ndarray, data: TaskSet) -> list[int]:
    pairs = torch.cat(list(data.targets.values()), 1).numpy()
    scores = table[:, 4:6].astype(np.float32)
    return [int(np.flatnonzero((scores == pair).all(1))[0]) for pair in np.unique(pairs, axis=0)]


@pytest.mark.data
def test_inputs_are_standardised_on_training_rows(table: np.ndarray) -> None:
    source = Parkinsons()
    expected = np.array(reference_split(table))
    scaler = StandardScaler().fit(table[expected == "train", 6:])
    for split in SPLITS:
        x = source.sets()[split].inputs
        assert isinstance(x, torch.Tensor)
        wanted = scaler.transform(table[expected == split, 6:])
        np.testing.assert_allclose(np.sort(x.numpy(), axis=0), np.sort(wanted, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.data
def test_descriptors_and_extra_features(table: np.ndarray) -> None:
    z = Parkinsons().descriptors()
    people = np.array([table[table[:, 0] == s][0, 1:3] for s in range(1, 43)])
    np.testing.assert_allclose(np.array(list(z.values())), StandardScaler().fit_transform(people), rtol=1e-5)
    assert list(z) == list(Parkinsons().tasks())
    plain, more = Parkinsons().sets()["test"], Parkinsons(extra_features=["test_time", "sex"]).sets()["test"]
    assert plain.input_shapes["subject_01"] == (16,)
    assert more.input_shapes["subject_01"] == (18,)
    assert torch.equal(more.inputs[:, :16], plain.inputs)  # type: ignore[index, arg-type]
    assert len(more.inputs[:, 17].unique()) == 2  # type: ignore[index]
    motor = Parkinsons(target="motor_UPDRS").sets()["test"]
    assert not torch.equal(motor.targets["subject_01"], plain.targets["subject_01"])


def test_sessions_are_counted_for_each_subject() -> None:
    subjects = np.array([1, 1, 1, 1, 2, 2, 2])
    times = np.array([5.0, 5.2, 12.0, 12.9, 12.8, 20.0, 21.1])
    assert parkinsons.sessions(subjects, times).tolist() == [0, 0, 1, 1, 0, 1, 2]


@pytest.mark.data
def test_order_of_rows_and_the_divider_do_not_matter(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Parkinsons().fingerprint()
    header, *lines = (data_folder / FILE).read_text().splitlines()
    other = tmp_path / FILE
    other.parent.mkdir()
    other.write_text("\r\n".join([header, *random.Random(0).sample(lines, len(lines))]).replace("\t", ","))
    monkeypatch.setenv("LIGHTNING_META_DATA", str(tmp_path))
    assert Parkinsons().fingerprint() == expected

    for change, message in (
        (lambda text: text.replace("5.6431", "5.6432", 1), "its numbers are not the official ones"),
        (lambda text: text[:5000], "it is not a table of numbers|it has"),
        (lambda text: text.replace("DFA", "DFB", 1), "it has 5875 rows"),
        (lambda text: text.replace("5.6431", "=1+1", 1), "it is not a table of numbers"),
        (lambda text: "", "it is not a table of numbers"),
        (lambda text: "\udcff" + text, "it is not a table of numbers"),
    ):
        text = change((data_folder / FILE).read_text())
        other.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=message) as error:
            Parkinsons().sets()
        assert str(error.value).startswith(f"{other}: ")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "people"}, "tasks: expected 'subjects' or 'targets', got 'people'"),
        ({"target": "UPDRS"}, "target: expected"),
        ({"hold_out": "rows"}, "hold_out: expected"),
        ({"hold_out": "subjects"}, 'has to be in every split; hold out "sessions", or set tasks="targets"'),
        ({"tasks": "targets", "target": "motor_UPDRS"}, "both scores are predicted; leave it out"),
        ({"extra_features": ["age", "age"]}, "named twice"),
        ({"extra_features": ["motor_UPDRS"]}, "extra_features: expected"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Parkinsons(**options)
    assert "\n" not in str(error.value)
