"""torchjd's aggregators in training: every one, on the rows of the tasks present, with draws of its own, resumed."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchjd.aggregation as jd
from torch import Tensor, nn
from torchjd import Stateful
from torchjd.linalg import Matrix

import lightning_meta as lm
from lightning_meta.batches import SPLITS
from lightning_meta.building import build
from lightning_meta.data.task_set import TaskSet
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.functional import random_bits
from lightning_meta.functional.generators import seeded_generators
from lightning_meta.multitask import MultiHead
from lightning_meta.tasks import Regression, Task
from lightning_meta.weightings import TorchJD
from tests.multitask.toys import Given, data, train, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP")

OPTIONS: dict[str, dict[str, Any]] = {
    "CAGrad": {"c": 0.5},
    "FairGrad": {"alpha": 1.0},
    "Krum": {"n_byzantine": 0},
    "NashMTL": {"n_tasks": 4},
    "TrimmedMean": {"trim_number": 1},
}
NOT_ON_THE_COMMAND_LINE = {"Constant"}  # takes a tensor; it is `Fixed`
BASES = {"Aggregator", "WeightedAggregator", "GramianWeightedAggregator"}
PUBLIC = [getattr(jd, name) for name in jd.__all__]
AGGREGATORS = [c.__name__ for c in PUBLIC if issubclass(c, jd.Aggregator) and c.__name__ not in BASES]
STATEFUL = ["ExcessMTL", "GradVac", "NashMTL", "PCD"]
NAMES = ["a", "b", "c", "d"]
TASKS: Mapping[str, Task] = {name: Regression() for name in NAMES}
HERE = torch.ones(4, dtype=torch.bool)

every_aggregator = pytest.mark.parametrize("name", AGGREGATORS)


def of_torchjd(name: str) -> nn.Module:
    if name == "NashMTL" and sys.version_info >= (3, 13):
        pytest.skip("its solver, ecos, has no wheel for Python 3.13")
    options = {"weights": torch.tensor([1.0, 2.0, 0.5, 1.0])} if name == "Constant" else OPTIONS.get(name, {})
    return getattr(jd, name)(**options)


def made(aggregator: nn.Module, tasks: Mapping[str, Task] = TASKS, seed: int = 0, **options: Any) -> TorchJD:
    torch.manual_seed(seed)
    weighting = TorchJD(aggregator, **options)
    weighting.configure(tasks)
    return weighting


def matrices(count: int, name: str = "") -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    dtype = torch.float32 if name == "Constant" else torch.float64  # which takes that of its weights alone
    return [torch.randn(4, 12, dtype=torch.float64, generator=generator).to(dtype) for _ in range(count)]


@contextmanager
def same_draws(weighting: TorchJD) -> Iterator[None]:
    """A context with the random draws of the next step of a weighting."""
    with seeded_generators(torch.device("cpu"), int(random_bits.key(weighting.key, weighting.step)) % 2**32):
        yield


@every_aggregator
def test_it_is_torchjd_on_the_rows_of_the_tasks_present(name: str) -> None:
    weighting, theirs = made(of_torchjd(name)), of_torchjd(name)
    state = torch.get_rng_state()
    for i, rows in enumerate(matrices(6, name)):
        present = HERE.clone()
        if i % 2 and name not in STATEFUL and name != "Constant":
            present[i % 4] = False
        with same_draws(weighting):
            expected = theirs(rows[present])
        found = weighting.direction(rows * present[:, None], torch.ones(4), present)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(torch.get_rng_state(), state)


@every_aggregator
def test_it_resumes_exactly_from_what_a_checkpoint_holds(name: str) -> None:
    whole, first, resumed = (made(of_torchjd(name), seed=seed) for seed in (0, 0, 1))
    steps = matrices(6, name)
    expected = [whole.direction(rows, torch.ones(4), HERE) for rows in steps]
    for rows in steps[:3]:
        first.direction(rows, torch.ones(4), HERE)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state)
    again = made(of_torchjd(name), seed=2)
    again.load_state_dict(resumed.state_dict())  # saved once more before it goes on
    assert (again.get_extra_state() != {}) == (name in STATEFUL)
    for one in (resumed, again):
        for rows, direction in zip(steps[3:], expected[3:], strict=True):
            assert torch.equal(one.direction(rows, torch.ones(4), HERE), direction)


def test_all_that_keep_state_are_known() -> None:
    assert [name for name in AGGREGATORS if issubclass(getattr(jd, name), Stateful)] == STATEFUL


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name not in NOT_ON_THE_COMMAND_LINE])
def test_it_is_described_as_plain_data(name: str) -> None:
    spec = describe(TorchJD(of_torchjd(name)))
    assert spec["init_args"]["aggregator"]["init_args"] == OPTIONS.get(name, {})
    again = build(spec)
    assert type(again.aggregator) is getattr(jd, name)
    assert describe(again) == spec


@pytest.mark.parametrize("name", ["AlignedMTL", "ConFIG", "DualProj", "UPGrad"])
def test_a_preference_goes_by_name(name: str) -> None:
    weighting = made(of_torchjd(name), preference={"d": 4.0, "a": 1.0, "b": 2.0, "c": 3.0})
    theirs, rows = of_torchjd(name), matrices(1)[0]
    theirs.pref_vector = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(weighting.direction(rows, torch.ones(4), HERE), theirs(rows))
    present = torch.tensor([True, False, True, True])
    theirs.pref_vector = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(weighting.direction(rows, torch.ones(4), present), theirs(rows[present]))


@pytest.mark.parametrize("name", STATEFUL)
def test_state_of_each_task_needs_each_task(name: str) -> None:
    weighting = made(of_torchjd(name))
    with pytest.raises(UserError, match=f"weighting: torchjd's {name} needs every task .* no example of b; leave"):
        weighting.direction(matrices(1)[0], torch.ones(4), torch.tensor([True, False, True, True]))


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "SDMGrad": (
        lambda: jd.SDMGradWeighting(),
        "aggregator: SDMGrad needs the gradients of several independent batches, and a",
    ),
    "MoDo": (lambda: jd.MoDoWeighting(4), "aggregator: MoDo needs"),
    "CR-MOGM": (lambda: jd.CRMOGMWeighting(jd.SumWeighting()), "aggregator: CR-MOGM keeps"),
    "SDMGrad within": (lambda: jd.WeightedAggregator(jd.SDMGradWeighting()), "aggregator: SDMGrad needs"),
    "a weighting": (lambda: jd.AlignedMTLWeighting(), "got AlignedMTLWeighting; give AlignedMTL"),
    "a network": (lambda: nn.Linear(2, 2), "an aggregator of torchjd.aggregation is needed, got Linear"),
    "a name": (lambda: "UPGrad", "an aggregator of torchjd.aggregation is needed, got str"),
    "more robust than there are tasks": (lambda: jd.Krum(2), "torchjd's Krum failed for 4 tasks: .* at least 5 rows"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_said_before_training(case: str) -> None:
    make, message = MISTAKES[case]
    with pytest.raises(UserError, match=message):
        made(make())


def test_state_that_nobody_knows_is_refused() -> None:
    unknown = type("Keeps", (jd.Sum, Stateful), {"reset": lambda self: None})
    with pytest.raises(UserError, match="aggregator: Keeps has state that checkpoints would not contain; subclass"):
        TorchJD(unknown())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preference": {"a": 1.0}}, "preference: a weight of every task is needed, got none for b, c, d"),
        ({"preference": {"a": -1.0}}, "preference: finite weights of at least 0 are needed, got -1.0 for 'a'"),
        (
            {"aggregator": jd.MGDA(), "preference": {"a": 1.0}},
            "preference: torchjd's MGDA does not support it; leave it out",
        ),
    ],
)
def test_a_wrong_preference_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**{"aggregator": jd.AlignedMTL(), **options})


def test_a_direction_that_is_not_finite_is_refused() -> None:
    weighting = made(jd.IMTLG())
    weighting._aggregator = (_Infinite(),)
    with pytest.raises(UserError, match="torchjd's _Infinite returned a direction that is not finite"):
        weighting.direction(matrices(1)[0], torch.ones(4), HERE)


class _Infinite(jd.Sum):
    def forward(self, matrix: Matrix, /) -> Tensor:
        return super().forward(matrix) / 0


# In training


def test_the_sum_trains_as_equal_does() -> None:
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    modules = [
        train(MultiHead, data(tasks_per_batch=2), trainer=options, weighting=weighting)
        for weighting in (TorchJD(jd.Sum()), None)
    ]
    for one, other in zip(*(m.parameters() for m in modules), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_is_widened(precision: str) -> None:
    seen = []

    class Noting(jd.MGDA):
        def forward(self, matrix: Matrix, /) -> Tensor:
            seen.append(matrix.dtype)
            return super().forward(matrix)

    module = MultiHead(lm.nn.MLP(4, (8,)), weighting=TorchJD(Noting()))
    trainer(2, precision=precision).fit(module, datamodule=data())
    assert seen[-2:] == [torch.float32, torch.float32]
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.slow
@every_aggregator
@pytest.mark.parametrize("rep_grad", [False, True])
def test_every_aggregator_trains_in_mixed_precision(name: str, rep_grad: bool) -> None:
    if name == "ExcessMTL" and rep_grad:
        pytest.skip("it is refused")
    options = {**OPTIONS.get(name, {}), **({"n_tasks": 3} if name == "NashMTL" else {})}
    if name == "NashMTL" and sys.version_info >= (3, 13):
        pytest.skip("its solver, ecos, has no wheel for Python 3.13")
    made_with = {"weights": torch.tensor([1.0, 2.0, 0.5])} if name == "Constant" else options
    torch.manual_seed(0)
    module = MultiHead(lm.nn.MLP(4, (8,)), weighting=TorchJD(getattr(jd, name)(**made_with), rep_grad=rep_grad))
    before = [p.detach().clone() for p in module.backbone.parameters()]
    x = torch.randn(24, 4)
    columns = {str(i): x[:, i : i + 1] for i in range(3)}
    everyone = dict.fromkeys(columns, torch.ones(24, dtype=torch.bool))
    sets = dict.fromkeys(SPLITS, TaskSet.of_columns(x, columns, everyone))
    given = lm.MultiTaskDataModule(Given({name: Regression() for name in columns}, sets), batch_size=8)
    trainer(2, precision="bf16-mixed").fit(module, datamodule=given)
    after = list(module.backbone.parameters())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_every_argument_of_torchjd_can_be_read_back() -> None:
    """The description of an aggregator made in Python needs them."""
    for name in AGGREGATORS:
        aggregator = of_torchjd(name)
        missing = [p for p in inspect.signature(type(aggregator)).parameters if not hasattr(aggregator, p)]
        assert missing == ([] if name != "Constant" else ["weights"])
