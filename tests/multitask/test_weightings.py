"""Loss weightings against their papers' equations and TorchJD, and that they resume exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_meta.building import build
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.multitask.combining import in_order
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task
from lightning_meta.weightings import (
    FAMO,
    IMTLL,
    MGDA,
    STCH,
    Aggregator,
    CAGrad,
    DynamicWeightAverage,
    Equal,
    Fixed,
    GeometricMean,
    GradNorm,
    PCGrad,
    RandomWeights,
    Uncertainty,
    Weighting,
)

TASKS: Mapping[str, Task] = {"a": Classification(5), "b": Regression(), "c": Binary()}
HERE = torch.ones(3, dtype=torch.bool)

MADE: dict[str, Callable[[], Weighting]] = {
    "equal": Equal,
    "fixed": lambda: Fixed({"c": 0.5, "a": 2, "b": 0.0}),
    "uncertainty": Uncertainty,
    "dynamic_weight_average": DynamicWeightAverage,
    "random": RandomWeights,
    "pcgrad": PCGrad,
    "uncertainty, revised": lambda: Uncertainty(revised=True),
    "imtl_l": IMTLL,
    "geometric_mean": GeometricMean,
    "stch": lambda: STCH(0.5),
    "famo": lambda: FAMO(0.1),
    "gradnorm": GradNorm,
    "mgda": MGDA,
    "cagrad": CAGrad,
}
every_weighting = pytest.mark.parametrize("name", MADE)


def configured(weighting: Weighting, tasks: Mapping[str, Task] = TASKS) -> Weighting:
    weighting.configure(tasks)
    return weighting


def epoch(weighting: Weighting, *steps: list[float], absent: tuple[int, ...] = ()) -> None:
    present = torch.tensor([i not in absent for i in range(len(steps[0]))])
    for losses in steps:
        weighting.observe(torch.tensor(losses) * present, present)
    weighting.end_epoch()


def test_weights_that_are_drawn_on_the_cpu_weigh_losses_elsewhere() -> None:
    weighting = configured(RandomWeights())  # the meta device stands in for an accelerator
    assert weighting(torch.ones(3, device="meta"), HERE.to("meta")).device.type == "meta"


# Every weighting


@every_weighting
def test_the_objective_is_a_weighted_sum_over_the_tasks_present(name: str) -> None:
    weighting = configured(MADE[name]())
    epoch(weighting, [1.0, 2.0, 3.0])
    epoch(weighting, [0.5, 3.0, 1.0])
    of_present = torch.tensor([0.3, 2.0], requires_grad=True)
    losses, present = in_order(of_present, ["a", "c"], ["a", "b", "c"])
    objective = weighting(losses, present)
    assert objective.shape == ()
    assert objective.dtype == losses.dtype
    objective.backward()
    weights = weighting.weights().detach()
    assert of_present.grad is not None
    torch.testing.assert_close(of_present.grad, weights[present].to(losses.dtype))
    for parameter in weighting.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1] == 0  # absent


@every_weighting
def test_it_goes_on_exactly_from_its_state_dict(name: str) -> None:
    def step(weighting: Weighting, t: int) -> Tensor:
        generator = torch.Generator().manual_seed(t)
        losses = torch.rand(3, generator=generator) * HERE
        present = torch.rand(3, generator=generator) > 0.3
        objective = weighting(losses * present, present)
        if parameters := list(weighting.parameters()):
            (gradient,) = torch.autograd.grad(objective, parameters)
            parameters[0].data -= 0.1 * gradient
        weighting.observe((losses * present).detach(), present)
        if weighting.looks_again:
            weighting.observe_step((losses * present).detach() ** 2, present)
        if t % 4 == 3:
            weighting.end_epoch()
        return objective.detach()

    whole = configured(MADE[name]())
    for t in range(9):
        step(whole, t)
    resumed = configured(MADE[name]())  # draws another key
    resumed.load_state_dict(whole.state_dict())
    resumed.float()  # what loading a checkpoint may do
    for t in range(9, 20):
        assert torch.equal(step(whole, t), step(resumed, t))


@every_weighting
def test_it_is_described_as_plain_data(name: str) -> None:
    weighting = MADE[name]()
    spec = describe(weighting)
    again = build(spec)
    assert type(again) is type(weighting)
    assert describe(again) == spec
    torch.manual_seed(0)
    weighting.configure(TASKS)
    torch.manual_seed(0)
    again.configure(TASKS)
    assert torch.equal(again.weights(), weighting.weights())


@pytest.mark.parametrize("name", ["equal", "fixed", "uncertainty", "dynamic_weight_average"])
def test_the_order_of_tasks_does_not_matter(name: str) -> None:
    order = [2, 0, 1]
    one, other = configured(MADE[name]()), configured(MADE[name](), {n: TASKS[n] for n in ("c", "a", "b")})
    for losses in ([1.0, 2.0, 3.0], [0.4, 2.0, 1.0]):
        epoch(one, losses)
        epoch(other, [losses[i] for i in order])
    torch.testing.assert_close(one.weights()[order], other.weights())


@pytest.mark.parametrize("name", ["equal", "dynamic_weight_average", "random"])
def test_weights_have_the_mean_of_equal_weights(name: str) -> None:
    weighting = configured(MADE[name]())
    for losses in ([1.0, 2.0, 3.0], [0.4, 2.0, 1.0], [0.1, 2.0, 1.0]):
        assert weighting.weights().mean().item() == pytest.approx(1)
        epoch(weighting, losses)


# Each one


def test_equal_is_the_sum() -> None:
    assert configured(Equal())(torch.tensor([0.5, 1.0, 2.0]), HERE).item() == 3.5


def test_fixed_weights_go_by_name() -> None:
    assert configured(Fixed({"c": 0.5, "a": 2, "b": 0.0}))(torch.tensor([1.0, 10.0, 100.0]), HERE).item() == 52


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0, "b": -1.0, "c": 1.0}, "at least 0 are needed, got -1.0 for 'b'"),
        ({"a": 1.0, "b": math.nan, "c": 1.0}, "at least 0 are needed, got nan for 'b'"),
        ({"a": math.inf, "b": 1.0, "c": 1.0}, "at least 0 are needed, got inf for 'a'"),
        ({"a": 0.0, "b": 0.0, "c": 0.0}, "above 0"),
        ({"a": 1.0, "b": 1.0, "c": 1.0, "Latn": 1.0}, "no task is named 'Latn'; the tasks are a, b, c"),
        ({"a": 1.0}, "got none for b, c"),
    ],
)
def test_wrong_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        configured(Fixed(weights))
    assert str(raised.value).startswith("weights: ")
    assert "\n" not in str(raised.value)


def test_uncertainty_is_the_likelihood_of_the_paper() -> None:
    """Equation 7 for a regression, equation 10 for the others."""
    tasks = {"c": Classification(4), "r": Regression(2), "b": Binary(), "m": Multilabel(3)}
    weighting = configured(Uncertainty(), tasks)
    assert isinstance(weighting, Uncertainty)
    sigma = torch.tensor([0.5, 2.0, 3.0, 1.5])
    weighting.log_variance.data = (sigma**2).log()
    losses = torch.tensor([0.7, 1.3, 0.2, 0.9])
    c, r, b, m = (0.7 / 0.5**2 + math.log(0.5), 1.3 / (2 * 2**2) + math.log(2), 0.2 / 9 + math.log(3), 0.9 / 2.25)
    expected = [c, r, b, m + math.log(1.5)]
    everyone = torch.ones(4, dtype=torch.bool)
    assert weighting(losses, everyone).item() == pytest.approx(sum(expected))
    present = torch.tensor([True, True, False, True])
    assert weighting(losses * present, present).item() == pytest.approx(expected[0] + expected[1] + expected[3])


def test_uncertainty_learns_the_noise_of_a_regression() -> None:
    """The variance of a Gaussian that fits best is the mean squared error."""
    weighting = configured(Uncertainty(), {"r": Regression()})
    assert isinstance(weighting, Uncertainty)
    optimizer = torch.optim.LBFGS(weighting.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        objective = weighting(torch.tensor([0.3]), HERE[:1])
        objective.backward()
        return objective

    optimizer.step(closure)
    assert weighting.log_variance.exp().item() == pytest.approx(0.3, rel=1e-3)


def test_dynamic_weight_average_is_equation_7() -> None:
    weighting = configured(DynamicWeightAverage(temperature=0.7))
    assert torch.equal(weighting.weights(), torch.ones(3))
    epoch(weighting, [1.0, 2.0, 3.0], [3.0, 2.0, 5.0])  # means 2, 2, 4
    assert torch.equal(weighting.weights(), torch.ones(3))
    epoch(weighting, [1.0, 2.0, 2.0])
    ratios = [1 / 2, 2 / 2, 2 / 4]
    powers = [math.exp(r / 0.7) for r in ratios]
    assert weighting.weights().tolist() == pytest.approx([3 * p / sum(powers) for p in powers])
    weighting.observe(torch.tensor([9.0, 9.0, 9.0]), HERE)  # within an epoch nothing changes
    assert weighting.weights().tolist() == pytest.approx([3 * p / sum(powers) for p in powers])


def test_dynamic_weight_average_counts_only_the_steps_that_had_a_task() -> None:
    weighting = configured(DynamicWeightAverage())
    assert isinstance(weighting, DynamicWeightAverage)
    epoch(weighting, [4.0, 1.0, 1.0])
    weighting.observe(torch.tensor([1.0, 1.0, 1.0]), HERE)
    weighting.observe(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([False, True, True]))
    weighting.end_epoch()
    assert weighting.ratio.tolist() == [0.25, 1.0, 1.0]
    epoch(weighting, [0.0, 2.0, 1.0], absent=(0,))
    assert weighting.ratio.tolist() == [0.25, 2.0, 1.0]  # the absent task keeps its own
    epoch(weighting, [3.0, 2.0, 1.0])
    assert weighting.ratio.tolist() == [3.0, 1.0, 1.0]  # against the last epoch that had it


def test_a_loss_of_zero_leaves_finite_weights() -> None:
    weighting = configured(DynamicWeightAverage())
    for _ in range(4):
        epoch(weighting, [0.0, 1.0, 2.0])
    epoch(weighting, [1.0, 1.0, 2.0])
    assert torch.equal(weighting.weights(), torch.ones(3))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_is_above_zero(temperature: float) -> None:
    with pytest.raises(UserError, match="temperature: expected a number above 0, got"):
        DynamicWeightAverage(temperature)


def test_random_weights_are_the_softmax_of_normal_numbers() -> None:
    weighting = configured(RandomWeights())
    drawn = []
    for _ in range(2000):
        drawn.append(weighting.weights())
        weighting.observe(torch.zeros(3), HERE)
    weights = torch.stack(drawn)
    torch.testing.assert_close(weights.sum(1), torch.full((2000,), 3.0, dtype=torch.float64))
    logs = weights.log()
    centred = (logs - logs.mean(1, keepdim=True)).numpy()  # z less its mean: variance 2/3 for three tasks
    for task in range(3):
        assert stats.kstest(centred[:, task] / (2 / 3) ** 0.5, "norm").pvalue > 1e-3
    assert abs(stats.pearsonr(centred[:-1, 0], centred[1:, 0]).statistic) < 0.08


def test_random_weights_change_with_the_step_alone_and_leave_the_generator() -> None:
    weighting = configured(RandomWeights())
    state = torch.get_rng_state()
    first = weighting.weights()
    assert torch.equal(weighting.weights(), first)
    weighting.observe(torch.zeros(3), HERE)
    assert not torch.equal(weighting.weights(), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(configured(RandomWeights()).weights(), first)  # another key
    torch.manual_seed(0)
    assert torch.equal(configured(RandomWeights()).weights(), first)  # the run's seed


# TorchJD's scalarizations


def test_parity_with_torchjd() -> None:
    torchjd = pytest.importorskip("torchjd.scalarization")
    losses = torch.tensor([0.3, 0.5, 2.0])
    assert configured(Equal())(losses, HERE) == torchjd.Sum()(losses)
    scale = torch.tensor([1.0, 10.0, 100.0])
    random, theirs = configured(RandomWeights()), torchjd.Random()
    ours = []
    for _ in range(1000):
        ours.append(random(scale, HERE).item() / 3)  # there they sum to 1
        random.observe(scale, HERE)
    assert stats.ks_2samp(ours, [theirs(scale).item() for _ in range(1000)]).pvalue > 1e-3


# Solved tasks


@pytest.mark.parametrize("make", [Uncertainty, IMTLL])
def test_a_learned_weight_does_not_run_away_on_a_solved_task(make: Callable[[], Weighting]) -> None:
    """Without a bound, Adam at rate 0.1 would make the weight infinite, and the objective NaN, in step 872."""
    weighting = configured(make(), {"solved": Regression(), "other": Regression()})
    x = torch.zeros(2, requires_grad=True)  # the first task is solved from the start
    optimizer = torch.optim.Adam([x, *weighting.parameters()], lr=0.1)
    target = torch.tensor([0.0, 3.0])
    for t in range(1100):
        noise = torch.tensor([0.0, 0.5 * (-1) ** t])
        objective = weighting((x - target - noise) ** 2, HERE[:2])
        assert objective.isfinite(), t
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    assert 3000 < weighting.weights()[0].item() <= 12_000  # a step of 0.1 past the bound of 10⁴
    assert weighting.weights()[1].item() < 10
    torch.testing.assert_close(x.detach(), target, rtol=0, atol=0.2)
    # A label that is wrong after all is one bad step, and the weight comes down.
    for _ in range(200):
        objective = weighting((x - target - torch.tensor([1.0, 0.0])) ** 2, HERE[:2])
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    assert weighting.weights()[0].item() < 100


@pytest.mark.parametrize("make", [CAGrad, MGDA, PCGrad])
def test_gradients_that_are_all_zero_move_nothing(make: Callable[[], Aggregator]) -> None:
    aggregator = configured(make())
    assert isinstance(aggregator, Aggregator)
    present = torch.tensor([True] * len(TASKS))
    direction = aggregator.direction(torch.zeros(len(TASKS), 5), torch.ones(len(TASKS)), present)
    assert torch.equal(direction, torch.zeros(5))
