"""The benchmark's arithmetic, and one row of it from the command line."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import benchmark
import pytest
import torch
from benchmarks import images, measure, methods, multi_task_graphs, pairs, peers, row, rows, work

import lightning_meta as lm
from lightning_meta.data import EpisodeShape, Pool
from lightning_meta.nn import Conv4
from lightning_meta.tasks import EpisodeSpec
from tests.methods import META


def test_a_ratio_is_that_of_the_medians() -> None:
    ours, theirs = measure.Timing.of([2.0, 1.0, 9.0]), measure.Timing.of([6.0, 8.0, 7.0])
    assert ours == (2.0, 1.0, 9.0)
    assert row.Row("work", ours, "peer", theirs).ratio == 3.5
    assert row.Row("work", ours, "peer", None).ratio is None


def test_contestants_are_measured_in_turn() -> None:
    order: list[str] = []
    contestants = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    measure.side_by_side(contestants, torch.device("cpu"), 3, 0)
    assert "".join(order).endswith("ababab")


def test_the_exponent_of_a_power_is_found() -> None:
    power, error = measure.exponent([1, 2, 4, 8], [3 * size**1.5 for size in (1, 2, 4, 8)])
    assert power == pytest.approx(1.5)
    assert error == pytest.approx(0, abs=1e-6)


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def function() -> None:
        first = torch.zeros(1000, 1000)
        second = first + 1
        del first
        _ = second * 2

    assert measure.peak_memory(function, torch.device("cpu")) == pytest.approx(8e6, rel=0.01)


def test_sides_that_differ_are_not_timed() -> None:
    with pytest.raises(RuntimeError, match=r"sines: the two sides differ by 1\.0e"):
        row.check_equal(torch.ones(2), torch.zeros(2), "sines")


def test_a_row_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert benchmark.main(["--short", "--rows", "evaluation", "--repeats", "1", "--out", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    with (tmp_path / "table.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert line["work"] == "evaluating 1000 ProtoNet tasks from embeddings"
    assert 0 < float(line["ours_low"]) <= float(line["ours"]) <= float(line["ours_high"])
    assert "evaluating" in capsys.readouterr().out


def test_a_row_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(rows.ROWS, "sampling", lambda setting: 1 / 0)
    assert benchmark.main(["--rows", "sampling", "--out", str(tmp_path)]) == 1
    assert "benchmark: error: sampling: division by zero" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", multi_task_graphs.CASES)
def test_multi_task_steps_are_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    seconds, replays, _ = multi_task_graphs.seconds(name, "auto", torch.device("cpu"), steps=4, warm_up=2)
    assert seconds > 0
    assert replays == 0  # on a CPU


def test_operations_are_counted() -> None:
    a, b = torch.rand(3, 4), torch.rand(4, 5)
    assert measure.operations(lambda: a @ b) == 2 * 3 * 4 * 5
    products = r"0\.0 GFLOP, 0 ms at the \d+ GFLOP/s of a matrix product"
    copies = r"0\.00 GB, 0 ms at the \d+ GB/s of a copy"
    assert re.fullmatch(f"{products}; beside them {copies}", measure.floor(0, 0, torch.device("cpu"), 64))


def test_bytes_are_counted_once_a_tensor_and_not_for_views_or_products() -> None:
    a = torch.rand(10, 10)
    assert measure.traffic(lambda: a.T + 1) == 2 * 400
    assert measure.traffic(lambda: (a + 1).relu()) == 4 * 400
    assert measure.traffic(lambda: a @ a) == measure.traffic(lambda: torch.empty(9)) == 0
    assert measure.traffic(lambda: a.expand(3, 10, 10).sum()) == 400 + 4  # what is spread is read once


def test_learn2learns_own_network_computes_what_ours_does() -> None:
    l2l = pytest.importorskip("learn2learn")
    for module in (work.image_maml(5, 1, 28, torch.device("cpu")), images.protonet_module(torch.device("cpu"))):
        x = torch.rand(10, 1, 28, 28)
        torch.testing.assert_close(peers.own_network(l2l, module)(x), module.network(x), rtol=1e-4, atol=1e-4)


def test_every_few_shot_method_has_a_step_and_an_evaluation_in_the_benchmark() -> None:
    steps = {pair.name for each in pairs.KINDS.values() for pair in each}
    evaluated = {pair.name for pair in pairs.FROM_EMBEDDINGS + pairs.GRADIENT_BASED + pairs.OF_SINES}
    assert steps == evaluated == set(META)


@pytest.mark.slow
def test_steps_are_timed_beside_a_peer_with_the_same_loss() -> None:
    pytest.importorskip("learn2learn")
    timed = list(methods.method_steps(row.Setting(torch.device("cpu"), 1, 0, short=True)))
    assert len(timed) == len(pairs.KINDS)
    assert all(step.ratio is not None for step in timed)


def test_a_step_needs_no_trainer() -> None:
    pool = Pool(torch.rand(12, 1, 8, 8), torch.full((3,), 4), ("a", "b", "c"), ("",) * 3)
    spec = EpisodeSpec("classification", (1, 8, 8), 2, 3)
    module = lm.ProtoNet(Conv4(width=4, blocks=1), episodes=spec).train()
    step = work.training_step(module, work.drawn(pool, 2, EpisodeShape(2, 1, 2)), torch.device("cpu"))
    assert step() != step()
