"""The cost table of several tasks, as it is run."""

from __future__ import annotations

import re

import benchmark_multi_task
import pytest


@pytest.mark.slow
def test_it_prints_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--tasks", "2", "--validated", "5", "--repeats", "1", "--seconds", "0"]
    assert benchmark_multi_task.main(["--parts", "steps", "trainer", "validation", *few]) == 0
    printed = capsys.readouterr().out
    for work, peer in (("step", "plain torch"), ("under the Trainer", "Lightning")):
        assert len(re.findall(rf"{work}, 2 tasks, (?:own rows|rows shared) .*{peer} .*\| [\d.]+ \|", printed)) == 2
    assert len(re.findall(r"validation, 5 tasks, .*\| [\d.]+ \|", printed)) == 4
