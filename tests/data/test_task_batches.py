"""Batches of several tasks: what is drawn, by whom, in which order, and that evaluation sees everything once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_meta.batches import Examples, TaskBatch
from lightning_meta.data.loader import EvaluationSampler, TaskBatchSampler, TrainLoader, the_only
from lightning_meta.data.task_batches import AllExamples, TaskBatches, subset
from lightning_meta.data.task_draws import DrawnInputs, DrawnTasks
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError

# Under right draws a p-value falls below this once in a million; seeds are fixed, so tests do not flicker.
UNLIKELY = 1e-6
SIZES = {"a": 7, "b": 20, "c": 3}
EQUAL = {"a": 9, "b": 9, "c": 9}
Ids = dict[str, list[int]]


def apart(sizes: dict[str, int], shapes: bool = False) -> TaskSet:
    """A data set a task; input i of task t is (1000 t + i), its target as well."""
    made = {}
    for t, (name, n) in enumerate(sizes.items()):
        values = 1000 * t + torch.arange(n)
        made[name] = Examples(values.float()[:, None].expand(n, 1 + shapes * t).clone(), values)
    return TaskSet.of_examples(made)


def shared(labelled: Mapping[str, Sequence[int]], n: int) -> TaskSet:
    """Input i is i; its target for task t is 1000 t + i, where it has one."""
    columns = {name: 1000 * t + torch.arange(n) for t, name in enumerate(labelled)}
    present = {name: torch.isin(torch.arange(n), torch.tensor(list(rows))) for name, rows in labelled.items()}
    return TaskSet.of_columns(torch.arange(float(n))[:, None], columns, present)


LABELLED: dict[str, Sequence[int]] = {"a": range(0, 20), "b": [1, 5, 22], "c": range(10, 17)}
UNLABELLED = [20, 21, *range(23, 30)]


def incomplete() -> TaskSet:
    """Thirty inputs; most lack some label, and nine lack all."""
    return shared(LABELLED, 30)


def complete() -> TaskSet:
    """Twenty-four inputs, of which twenty-two have all labels and the others none."""
    labelled = [i for i in range(24) if i not in (2, 11)]
    return shared({"a": labelled, "b": labelled}, 24)


def weighted(data: TaskSet) -> TaskSet:
    return replace(data, weights={name: y.double().cos() for name, y in data.targets.items()})


def ids(batch: TaskBatch) -> Ids:
    return {name: i.tolist() for name, i in batch.ids.items()}


def inputs_of(batch: TaskBatch, name: str) -> Tensor:
    x = batch.inputs[name] if isinstance(batch.inputs, dict) else batch.inputs
    return x[batch.rows[name]]


def assert_consistent(data: TaskSet, batch: TaskBatch) -> None:
    """Each label stands with its own number and its own input."""
    for t, name in enumerate(data.names):
        if name not in batch.ids:
            continue
        assert torch.equal(batch.targets[name], data.targets[name][batch.ids[name]])
        assert torch.equal(inputs_of(batch, name)[:, 0] + (1000 * t if data.overlapping else 0), batch.targets[name])


def assert_equal(batch: TaskBatch, expected: TaskBatch) -> None:
    """Assert that all parts of two batches are equal, including the type of `rows`."""
    assert isinstance(batch.inputs, Tensor)
    assert isinstance(expected.inputs, Tensor)
    assert torch.equal(batch.inputs, expected.inputs)
    for part, of in zip(batch[1:], expected[1:], strict=True):
        assert type(part) is type(of)
        assert list(part or ()) == list(of or ())
        assert part is None or (of is not None and all(torch.equal(part[name], of[name]) for name in of))


DRAWN = {
    "tasks": lambda rank=0, ranks=1, seed=0: DrawnTasks(apart(SIZES), seed, 4, 2, 0.5, 12, rank, ranks),
    "all tasks": lambda rank=0, ranks=1, seed=0: DrawnTasks(apart(SIZES), seed, 4, rank=rank, ranks=ranks),
    "shapes": lambda rank=0, ranks=1, seed=0: DrawnTasks(apart(SIZES, True), seed, 4, 2, 0, 12, rank, ranks),
    "inputs": lambda rank=0, ranks=1, seed=0: DrawnInputs(incomplete(), seed, 6, rank=rank, ranks=ranks),
    "endless inputs": lambda rank=0, ranks=1, seed=0: DrawnInputs(incomplete(), seed, 6, 9, rank, ranks),
}
GATHERED_TOGETHER = {
    "equal tasks": lambda rank=0, ranks=1, seed=0: DrawnTasks(apart(EQUAL), seed, 4, rank=rank, ranks=ranks),
    "endless equal tasks": lambda rank=0, ranks=1, seed=0: DrawnTasks(apart(EQUAL), seed, 4, None, 0, 7, rank, ranks),
    "all of each task": lambda rank=0, ranks=1, seed=0: DrawnTasks(apart(EQUAL), seed, 9, None, 0, 7, rank, ranks),
    "weighted": lambda rank=0, ranks=1, seed=0: DrawnTasks(weighted(apart(EQUAL)), seed, 4, rank=rank, ranks=ranks),
    "complete inputs": lambda rank=0, ranks=1, seed=0: DrawnInputs(complete(), seed, 6, rank=rank, ranks=ranks),
    "endless complete inputs": lambda rank=0, ranks=1, seed=0: DrawnInputs(complete(), seed, 6, 9, rank, ranks),
    "weighted complete inputs": lambda rank=0, ranks=1, seed=0: DrawnInputs(
        weighted(complete()), seed, 6, None, rank, ranks
    ),
}
DRAWN |= GATHERED_TOGETHER
KINDS = pytest.mark.parametrize("kind", DRAWN)


def loader(kind: str, rank: int = 0, ranks: int = 1, workers: int = 0) -> TrainLoader:
    sampler = TaskBatchSampler(DRAWN[kind](rank, ranks), {"batch_size": 4})
    return TrainLoader(sampler, num_workers=workers, persistent_workers=workers > 0)


def epochs(training: TrainLoader, count: int = 2, first: int = 0) -> list[Ids]:
    seen = []
    for epoch in range(first, count):
        training.sampler.set_epoch(epoch)
        seen += [ids(batch) for batch in training]
    return seen


# The same batches, however they are asked for


@KINDS
def test_a_batch_is_a_function_of_its_number(kind: str) -> None:
    whole = DRAWN[kind]()
    numbers = range(2 * len(whole))
    expected = [ids(whole[b]) for b in numbers]
    assert [ids(batch) for batch in whole] == expected[: len(whole)]
    again = DRAWN[kind]()
    shuffled = torch.randperm(len(numbers)).tolist()
    found = {b: ids(again[b]) for b in shuffled}
    assert [found[b] for b in numbers] == expected
    drawn = {name: sorted(i.tolist()) for name, i in again.ids(3).items()}  # a batch has aligned tasks in order
    assert drawn == {name: sorted(i) for name, i in expected[3].items()}


@pytest.mark.parametrize("kind", GATHERED_TOGETHER)
def test_batches_that_are_gathered_together_are_those_gathered_one_by_one(kind: str) -> None:
    whole = DRAWN[kind]()
    assert whole.at_once > 1
    for b in range(3 * len(whole) + 2):
        assert_equal(whole[b], whole.single(b))
    assert whole._ahead
    assert_equal(whole[1], whole.single(1))


def offsets(batch: TaskBatch) -> list[int]:
    """Bytes by which each tensor begins after a multiple of 64; the rounding of matrix products depends on it."""
    tensors = [batch.inputs, *batch.targets.values(), *(batch.weights or {}).values()]
    return [tensor.data_ptr() % 64 for tensor in tensors if isinstance(tensor, Tensor)]


@pytest.mark.parametrize("kind", GATHERED_TOGETHER)
def test_batches_are_aligned_in_memory_in_the_same_way_wherever_a_run_begins(kind: str) -> None:
    expected = [offsets(DRAWN[kind]().single(b)) for b in range(3)]
    for first in range(3):
        whole = DRAWN[kind]()
        assert [offsets(whole[b]) for b in range(first, 3)] == expected[first:]
        assert all(tensor.is_contiguous() for tensor in whole[2].targets.values())


def test_orders_of_few_epochs_are_drawn_ahead_where_tasks_are_large() -> None:
    large = {name: Examples(torch.zeros(300_000, 1), torch.zeros(300_000)) for name in "abc"}
    assert DrawnTasks(TaskSet.of_examples(large), 0, 16, batches=1).at_once == 1
    assert DrawnTasks(TaskSet.of_examples(large), 0, 16).at_once > 8


def test_batches_in_another_order_are_gathered_one_by_one() -> None:
    whole = DRAWN["equal tasks"]()
    for b in (4, 2, 0, 3):
        assert_equal(whole[b], whole.single(b))
        assert not whole._ahead


def test_batches_that_were_gathered_in_inference_mode_can_be_trained_on() -> None:
    whole = DRAWN["equal tasks"]()
    with torch.inference_mode():
        whole[0], whole[1]
    assert whole._ahead
    kept = whole[2].inputs
    assert isinstance(kept, Tensor)
    assert not kept.is_inference()


@pytest.mark.parametrize("kind", GATHERED_TOGETHER)
def test_a_batch_that_was_changed_in_place_is_whole_again_when_it_is_asked_for_again(kind: str) -> None:
    whole = DRAWN[kind]()
    for b in (0, 1):
        first = whole[b]
        for tensor in (first.inputs, *first.targets.values()):
            assert isinstance(tensor, Tensor)
            tensor.zero_()
        assert_equal(whole[b], whole.single(b))
    assert_equal(whole[2], whole.single(2))


def test_large_batches_and_unequal_ones_are_gathered_one_by_one() -> None:
    images = {name: Examples(torch.zeros(9, 3, 84, 84), torch.zeros(9)) for name in "ab"}
    assert DrawnTasks(TaskSet.of_examples(images), 0, 9).at_once == 1
    assert all(DRAWN[kind]().at_once == 1 for kind in DRAWN if kind not in GATHERED_TOGETHER)
    assert all(DRAWN[kind](0, 3).at_once == 1 for kind in DRAWN)


@KINDS
def test_every_label_stands_with_its_input(kind: str) -> None:
    for ranks in (1, 3):
        whole = DRAWN[kind](0, ranks)
        for b in range(2 * len(whole)):
            assert_consistent(whole.data, whole[b])


@KINDS
def test_loader_processes_change_nothing(kind: str) -> None:
    assert epochs(loader(kind, workers=2)) == epochs(loader(kind))


@KINDS
@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_taken_mid_epoch_goes_on_with_the_next_batch(kind: str, workers: int) -> None:
    whole, stopped, resumed = epochs(loader(kind)), loader(kind, workers=workers), loader(kind, workers=workers)
    stopped.sampler.set_epoch(0)
    for _ in islice(stopped, 2):
        state = stopped.state_dict()
    resumed.load_state_dict(state)
    assert epochs(resumed) == whole[2:]


def test_a_state_goes_on_at_another_number_of_ranks() -> None:
    stopped = loader("tasks", 1, 2)
    for _ in islice(stopped, 5):
        state = stopped.state_dict()
    whole = epochs(loader("tasks"), 1)[5:]
    shares = []
    for rank in range(4):
        resumed = loader("tasks", rank, 4)
        resumed.load_state_dict(state)
        shares.append(epochs(resumed, 1))
    for expected, *parts in zip(whole, *shares, strict=True):
        assert joined(parts) == {name: sorted(i) for name, i in expected.items()}


@pytest.mark.parametrize("option", ["batch_size", "batches_per_epoch"])
def test_a_state_counted_in_other_sizes_is_refused(option: str) -> None:
    state = loader("tasks").state_dict() | {option: 3}
    with pytest.raises(UserError, match=f"{option}: the run to resume has 3, got"):
        loader("tasks").load_state_dict(state)


@KINDS
def test_every_epoch_and_every_seed_draws_anew(kind: str) -> None:
    first, second, other = DRAWN[kind](), DRAWN[kind](), DRAWN[kind](seed=1)
    one, two = ([ids(first[b]) for b in range(e * len(first), (e + 1) * len(first))] for e in range(2))
    assert one == [ids(batch) for batch in second]
    assert one != two
    assert one != [ids(batch) for batch in other]


# Ranks


def joined(parts: Sequence[Ids]) -> Ids:
    """The labelled examples of all ranks."""
    assert len({tuple(part) for part in parts}) == 1, "the ranks agree on which tasks are in the batch"
    return {name: sorted(i for part in parts for i in part[name]) for name in parts[0]}


@KINDS
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_shares_of_all_ranks_make_up_the_batch_of_one_process(kind: str, ranks: int) -> None:
    whole = DRAWN[kind]()
    if kind == "inputs" and ranks == 4:  # 21 inputs, so that the last batch has 3
        with pytest.raises(UserError, match="batch_size: 6 of 21 inputs make a batch of 3, fewer than the 4 ranks"):
            DRAWN[kind](0, ranks)
        return
    shares = [DRAWN[kind](rank, ranks) for rank in range(ranks)]
    for b in range(2 * len(whole)):
        parts = [ids(share[b]) for share in shares]
        assert joined(parts) == {name: sorted(i) for name, i in ids(whole[b]).items()}
        if "inputs" in kind:
            held = [len(share[b].inputs) for share in shares]
        else:
            held = [sum(map(len, part.values())) for part in parts]
        assert max(held) - min(held) <= 1
        assert min(held) >= 1


def test_shares_of_a_shared_input_keep_its_targets_together() -> None:
    shares = [DrawnInputs(incomplete(), 0, 6, rank=rank, ranks=2) for rank in range(2)]
    for b in range(8):
        first, second = (set(share[b].inputs.flatten().tolist()) for share in shares)  # type: ignore[union-attr]
        assert first.isdisjoint(second)


def test_a_batch_smaller_than_the_ranks_is_refused() -> None:
    data = apart({"a": 2, "b": 30})
    DrawnTasks(data, 0, 8, 1, ranks=2)
    with pytest.raises(UserError, match="batch_size: a batch may hold 2 examples, fewer than the 3 ranks"):
        DrawnTasks(data, 0, 8, 1, ranks=3)
    DrawnTasks(data, 0, 8, ranks=3)
    with pytest.raises(UserError, match=r"batch_size: .* 2 ranks"):
        DrawnInputs(incomplete(), 0, 1, ranks=2)
    with pytest.raises(UserError, match=r"batch_size: .* 2 ranks"):
        DrawnInputs(incomplete(), 0, 10, ranks=2)  # 21 inputs leave one for the third batch
    DrawnInputs(incomplete(), 0, 10, 5, ranks=2)  # no batch is smaller than the others


# Tasks, then examples of each


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=40)
def test_each_example_once_before_any_comes_again(sizes: list[int], batch_size: int, seed: int) -> None:
    data = apart({str(t): n for t, n in enumerate(sizes)})
    drawn = DrawnTasks(data, seed, batch_size, max(1, len(sizes) - 1), 0.5, 15)
    for epoch in range(2):
        streams: dict[str, list[int]] = {name: [] for name in data.names}
        for b in range(epoch * 15, epoch * 15 + 15):
            batch = ids(drawn[b])
            assert len(batch) == drawn.tasks_per_batch
            for name, i in batch.items():
                assert len(i) == min(batch_size, data.counts[name])
                streams[name] += i
        for name, stream in streams.items():
            n = data.counts[name]
            for first in range(0, len(stream), n):
                turn = stream[first : first + n]
                assert len(set(turn)) == len(turn)
                assert set(turn) <= set(range(n))


def test_examples_of_a_task_do_not_depend_on_the_others_nor_on_their_order() -> None:
    def stream(sizes: dict[str, int], name: str) -> list[list[int]]:
        drawn = DrawnTasks(apart(sizes), 0, 4, batches=9)
        return [ids(drawn[b])[name] for b in range(18)]

    for name, n in SIZES.items():
        expected = stream({name: n}, name)
        for order in permutations(SIZES):
            assert stream({o: SIZES[o] for o in order}, name) == expected
    assert stream({"a": 7}, "a") != stream({"z": 7}, "z"), "equal tasks draw different examples"


def test_which_tasks_are_drawn_does_not_depend_on_their_order() -> None:
    def present(order: Sequence[str]) -> list[set[str]]:
        drawn = DrawnTasks(apart({name: SIZES[name] for name in order}), 0, 4, 2, 1.0, 12)
        return [set(drawn[b].ids) for b in range(24)]

    assert present("abc") == present("cba") == present("bac")


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_tasks_are_drawn_in_proportion_to_n_to_the_alpha(exponent: float) -> None:
    sizes = {"a": 5, "b": 60, "c": 300, "d": 20}
    drawn = DrawnTasks(apart(sizes), 0, 1, 1, exponent, 4000)
    counts = Counter(name for b in range(4000) for name in drawn.ids(b))
    weights = torch.tensor(list(sizes.values()), dtype=torch.float64) ** exponent
    expected = (weights / weights.sum() * 4000).tolist()
    assert stats.chisquare([counts[name] for name in sizes], expected).pvalue > UNLIKELY


def test_pairs_of_tasks_are_drawn_one_after_the_other_without_replacement() -> None:
    sizes = {"a": 1, "b": 2, "c": 5, "d": 12}
    drawn = DrawnTasks(apart(sizes), 3, 1, 2, 1.0, 4000)
    counts = Counter(tuple(drawn.ids(b)) for b in range(4000))
    total = sum(sizes.values())
    expected = Counter[tuple[str, ...]]()
    for first, second in permutations(sizes, 2):
        share = sizes[first] / total * sizes[second] / (total - sizes[first])
        expected[tuple(sorted((first, second)))] += 4000 * share  # type: ignore[assignment]
    assert stats.chisquare([counts[p] for p in expected], list(expected.values())).pvalue > UNLIKELY


def test_examples_of_a_task_are_drawn_uniformly() -> None:
    drawn = DrawnTasks(apart({"a": 50, "b": 5}), 0, 7, 1, 0.0, 2)
    # The first batch in which the task is, of 3000 short epochs.
    counts = Counter(i for epoch in range(1500) for i in drawn.ids(2 * epoch).get("a", torch.tensor([])).tolist())
    assert stats.chisquare([counts[i] for i in range(50)]).pvalue > UNLIKELY


def test_sizes_that_differ_a_thousandfold() -> None:
    data = apart({"large": 20_000, "small": 20, "one": 1})
    every = DrawnTasks(data, 0, 64)
    assert [len(i) for i in every.ids(0).values()] == [64, 20, 1]
    small = [i for b in range(10) for i in every.ids(b)["small"].tolist()]
    assert Counter(small) == dict.fromkeys(range(20), 10)
    large = [i for b in range(len(every)) for i in every.ids(b)["large"].tolist()]
    assert len(set(large)) == len(large) == 64 * len(every)
    # The largest is all but always drawn, and the exponent does not overflow.
    steep = DrawnTasks(data, 0, 64, 1, 10.0, 200)
    assert {name for b in range(200) for name in steep.ids(b)} == {"large"}


@pytest.mark.parametrize(
    ("sizes", "batch_size", "per_batch", "exponent"),
    [
        ([30] * 12, 5, None, 0.0),
        ([30] * 12, 5, 1, 0.0),
        ([30] * 12, 5, 6, 0.0),
        ([30] * 12, 5, 11, 0.0),
        ([10, 20, 200, 3], 8, 2, 0.0),
        ([10, 20, 200, 3], 8, 2, 0.5),
        ([100, 200, 300, 50, 80, 90], 8, 1, 1.0),
        ([100, 200, 300, 50, 80, 90], 8, 3, 1.0),
    ],
)
def test_an_epoch_visits_as_many_examples_as_there_are(
    sizes: list[int], batch_size: int, per_batch: int | None, exponent: float
) -> None:
    drawn = DrawnTasks(apart({str(t): n for t, n in enumerate(sizes)}), 0, batch_size, per_batch, exponent)
    visited = [sum(len(i) for i in drawn.ids(b).values()) for b in range(40 * len(drawn))]
    mean = sum(visited) / len(visited)
    assert 0.95 * sum(sizes) < mean * len(drawn) < 1.05 * sum(sizes) + mean, "to within one batch"


@pytest.mark.parametrize("count", [0, 4])
def test_more_tasks_than_there_are_cannot_be_drawn(count: int) -> None:
    with pytest.raises(UserError, match=f"tasks_per_batch: 1 to 3 tasks can be drawn, got {count}"):
        DrawnTasks(apart(SIZES), 0, 4, count)


# Inputs with several targets


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=30)
def test_every_labelled_input_once_an_epoch(n: int, batch_size: int, seed: int) -> None:
    labelled = {"a": range(0, n, 2), "b": range(0, n, 3)}
    drawn = DrawnInputs(shared(labelled, n), seed, batch_size)
    rows = sorted({*labelled["a"], *labelled["b"]})
    assert len(drawn) == -(-len(rows) // batch_size)
    for epoch in range(2):
        batches = [drawn[b] for b in range(epoch * len(drawn), (epoch + 1) * len(drawn))]
        assert sorted(int(x) for batch in batches for x in batch.inputs) == rows
        for name in labelled:
            found = sorted(i for batch in batches for i in ids(batch).get(name, []))
            assert found == list(range(len(labelled[name])))


def test_inputs_without_any_label_are_never_drawn() -> None:
    for kind in ("inputs", "endless inputs"):
        drawn = DRAWN[kind]()
        seen = {int(x) for b in range(5 * len(drawn)) for x in drawn[b].inputs}
        assert seen == set(range(30)) - set(UNLABELLED)


def test_a_batch_holds_every_label_of_its_inputs() -> None:
    drawn = DrawnInputs(incomplete(), 0, 6)
    for batch in drawn:
        assert isinstance(batch.inputs, Tensor)
        here = batch.inputs.flatten().int().tolist()
        assert len(set(here)) == len(here)
        expected = {name: sorted(set(rows) & set(here)) for name, rows in LABELLED.items()}
        found = {name: sorted(inputs_of(batch, name).flatten().int().tolist()) for name in batch.ids}
        assert found == {name: rows for name, rows in expected.items() if rows}


def test_a_longer_epoch_of_inputs_goes_round_again() -> None:
    drawn = DrawnInputs(incomplete(), 0, 7, 6)
    visits = Counter(int(x) for batch in drawn for x in batch.inputs)
    assert set(visits.values()) == {2}
    assert len(visits) == 21


# Evaluation


def everything(data: TaskSet, batch_size: int, ranks: int) -> list[list[Ids]]:
    whole = AllExamples(data, batch_size)
    shares = []
    for rank in range(ranks):
        batches = list(DataLoader(whole, 1, sampler=EvaluationSampler(whole, ranks, rank), collate_fn=the_only))
        for batch in batches:
            assert_consistent(data, batch)
        shares.append([ids(batch) for batch in batches])
    return shares


SETS = {
    "apart": apart(SIZES),
    "shapes": apart(SIZES, True),
    "shared": shared({"a": range(30), "b": range(30)}, 30),
    "incomplete": incomplete(),
    "a task without examples": apart({"a": 4, "b": 0, "c": 9}),
    "shapes, a task without examples": apart({"a": 4, "b": 0, "c": 9}, True),
}


@pytest.mark.parametrize("data", SETS.values(), ids=SETS)
@pytest.mark.parametrize("batch_size", [1, 2, 8, 100])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_every_labelled_example_once(data: TaskSet, batch_size: int, ranks: int) -> None:
    shares = everything(data, batch_size, ranks)
    assert all(shares), "Lightning asks every rank for a batch"
    batches = len(AllExamples(data, batch_size))
    assert sum(map(len, shares)) == max(batches, ranks)
    counted: Counter[tuple[str, int]] = Counter()
    for rank, share in enumerate(shares):
        for batch in share if rank < batches else []:  # the others repeat the first batch, which counts once
            assert batch, "a batch holds something"
            counted += Counter((name, i) for name, numbers in batch.items() for i in numbers)
    assert counted == Counter({(name, i): 1 for name, n in data.counts.items() for i in range(n)})


def test_evaluation_runs_an_input_with_several_targets_once() -> None:
    whole = AllExamples(SETS["shared"], 8)
    assert sum(len(batch.inputs) for batch in whole) == 30
    assert max(len(batch.inputs) for batch in whole) == 8


# A fixed subset of the training examples


@pytest.mark.parametrize("data", [*SETS.values()], ids=[*SETS])
def test_the_training_subset_is_fixed_and_each_label_keeps_its_input(data: TaskSet) -> None:
    few = subset(data, 5)
    assert few.counts == {name: min(5, n) for name, n in data.counts.items()}
    for name in data.names:
        x = inputs_of(few.batch({name: torch.arange(few.counts[name])}), name)
        where = torch.isin(data.targets[name], few.targets[name]).nonzero()[:, 0]
        assert len(where) == few.counts[name]
        wanted = inputs_of(data.batch({name: where}), name)
        assert torch.equal(x[few.targets[name].argsort()], wanted)
    again = subset(data, 5)
    assert all(torch.equal(again.targets[name], few.targets[name]) for name in data.names)
    assert subset(data, 1000).counts == data.counts


def test_the_training_subset_of_a_task_does_not_depend_on_the_others() -> None:
    assert torch.equal(subset(apart({"b": 20}), 5).targets["b"] + 1000, subset(apart(SIZES), 5).targets["b"])


def test_batches_are_finite_to_iterate_over() -> None:
    drawn: TaskBatches = DRAWN["tasks"]()
    assert len(list(drawn)) == len(drawn) == 12
