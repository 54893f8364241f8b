"""The comparison of predicted and true gains, as it is run."""

from __future__ import annotations

import csv
import re
from itertools import combinations
from pathlib import Path

import group_glyphs
import numpy as np
import pytest
from scipy.stats import spearmanr

import lightning_meta as lm


def test_every_pair_and_every_script_alone_is_in_one_round() -> None:
    rounds = group_glyphs.rounds(group_glyphs.SCRIPTS)
    assert all(sorted(name for group in groups for name in group) == sorted(group_glyphs.SCRIPTS) for groups in rounds)
    groups = [tuple(group) for of_round in rounds for group in of_round]
    expected = [*combinations(group_glyphs.SCRIPTS, 2), *((name,) for name in group_glyphs.SCRIPTS)]
    assert sorted(groups) == sorted(expected)


def test_the_correlations_are_those_of_scipy() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 4, 4))
    every, within, pairs = group_glyphs.correlations(a, b)
    directed = [(i, j) for i in range(4) for j in range(4) if i != j]
    assert every == pytest.approx(spearmanr(*([m[p] for p in directed] for m in (a, b))).statistic)
    of_task = [spearmanr(*([m[i, j] for i in range(4) if i != j] for m in (a, b))).statistic for j in range(4)]
    assert within == pytest.approx(np.mean(of_task))
    both = [[m[i, j] + m[j, i] for i, j in combinations(range(4), 2)] for m in (a, b)]
    assert pairs == pytest.approx(spearmanr(*both).statistic)


@pytest.mark.slow
def test_it_goes_on_from_its_files_to_the_same_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--out", str(tmp_path), "--steps", "4", "--width", "4", "--every_n_steps", "2", "--groups", "2"]
    command += ["--seeds", "1", "--scripts", "Digit", "Symbol", "Georgian"]
    group_glyphs.main(command)
    printed = capsys.readouterr().out
    assert re.search(r"\| affinity \| test loss \|( -?[01]\.\d\d \|){3}", printed)
    assert re.search(r"all together, [\d.]+ with recording \([\d.]+ times\)", printed)
    (file,) = tmp_path.glob("*/runs.csv")
    with file.open(newline="") as rows:
        found = [row for row in csv.DictReader(rows) if not row["run"].startswith("groups")]
    assert len(found) == 15  # three scripts in each of five runs
    monkeypatch.setattr(lm, "fit", None)  # nothing is trained again
    group_glyphs.main(command)
    tables = [text[text.index("\n| predictor") :] for text in (printed, capsys.readouterr().out)]
    assert tables[0] == tables[1]
