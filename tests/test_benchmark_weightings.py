"""The cost table of weightings, as it is run."""

from __future__ import annotations

import re

import benchmark_weightings
import pytest


@pytest.mark.slow
def test_it_prints_the_cost_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_weightings.main(["--tasks", "8", "--steps", "5", "--methods", "PCGrad", "PCGrad, rep_grad"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"\| PCGrad, rep_grad \| [^|]*\(0.5 MB of gradients\)", printed
    )  # 8 tasks, 64 images, 256 features
    (ratio,) = re.findall(r"\| PCGrad \| ([\d.]+) x", printed)
    assert float(ratio) > 1.5  # nine backward passes in place of one
    assert re.search(r"\| Equal \| 1.00 x \(\d+ ms\), \+0 MB", printed)
