"""MAML against finite differences, plain autograd, and what a user counts on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.batches import Episode
from lightning_meta.data import EpisodicDataModule
from lightning_meta.errors import UserError
from lightning_meta.functional.task_map import TaskMap, task_map
from lightning_meta.meta import IMAML, MAML
from lightning_meta.nn import MLP
from lightning_meta.sources import Sinusoid
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import (
    IMAGES,
    KINDS,
    Snapshot,
    episodes,
    gradient,
    loader,
    maml,
    maml_loss,
    maml_outputs,
    maml_trajectory,
    quiet,
    relative_error,
    task,
    trainer,
)

BATCH_NORMS = ["transductive", "inductive"]


# Meta-gradients.


def directional_derivatives(module: MAML, batch: Episode, directions: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Central differences of the mean outer loss along each direction."""
    parameters = list(module.parameters())
    start = torch.nn.utils.parameters_to_vector(parameters).detach()

    @torch.no_grad()
    def loss_at(point: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(point, parameters)
        return module.meta_batch_loss(batch).loss.mean()

    ends = [(loss_at(start + epsilon * d), loss_at(start - epsilon * d)) for d in directions]
    torch.nn.utils.vector_to_parameters(start, parameters)
    return torch.stack([(ahead - behind) / (2 * epsilon) for ahead, behind in ends])


@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_meta_gradient_is_that_of_finite_differences(kind: str, steps: int, batch_norm: Any) -> None:
    module = maml(kind, inner_steps=steps, batch_norm=batch_norm)
    batch = episodes(module.spec)
    found = gradient(module.meta_batch_loss(batch).loss.mean(), module)
    # Along the gradient itself, where any error of its length shows, and along random directions.
    directions = torch.cat([found.unsqueeze(0), torch.randn(4, len(found), dtype=torch.float64)])
    directions = directions / directions.norm(dim=1, keepdim=True)
    assert relative_error(directions @ found, directional_derivatives(module, batch, directions)) < 1e-6


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
@pytest.mark.parametrize("first_order", [False, True], ids=["second order", "first order"])
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_meta_gradient_are_those_of_plain_autograd(
    kind: str, steps: int, first_order: bool, batch_norm: Any, strategy: Any
) -> None:
    module = maml(kind, inner_steps=steps, first_order=first_order, batch_norm=batch_norm, strategy=strategy)
    batch = episodes(module.spec)
    outcome = module.meta_batch_loss(batch)
    expected = maml_loss(module, batch, steps)
    torch.testing.assert_close(outcome.loss.mean(), expected, rtol=1e-12, atol=1e-12)
    assert relative_error(gradient(outcome.loss.mean(), module), gradient(expected, module)) < 1e-10


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second order", "first order"])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_is_enough(kind: str, steps: int, first_order: bool, strategy: Any) -> None:
    module = maml(kind, torch.float32, inner_steps=steps, first_order=first_order, strategy=strategy)
    batch = episodes(module.spec, dtype=torch.float32)
    found = gradient(module.meta_batch_loss(batch).loss.mean(), module)
    module.double()
    expected = gradient(maml_loss(module, module.inputs(batch), steps), module)
    assert relative_error(found, expected) < 1e-5


def test_first_and_second_order_are_different_gradients() -> None:
    gradients = []
    for first_order in (False, True):
        module = maml("smooth", inner_steps=5, first_order=first_order)
        gradients.append(gradient(module.meta_batch_loss(episodes(module.spec)).loss.mean(), module))
    assert relative_error(*gradients) > 0.01


@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
@pytest.mark.parametrize("first_order", [False, True], ids=["second order", "first order"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_strategies_give_the_same_numbers(kind: str, first_order: bool, batch_norm: Any) -> None:
    for dtype, tolerance in (torch.float64, 1e-12), (torch.float32, 1e-5):
        found = []
        for strategy in ("vmap", "loop"):
            options = {"inner_steps": 2, "first_order": first_order, "batch_norm": batch_norm, "strategy": strategy}
            module = maml(kind, dtype, **options)
            batch = episodes(module.spec, tasks=3, dtype=dtype)
            outcome = module.meta_batch_loss(batch)
            assert torch.equal(outcome.targets, batch.query.y)
            found.append((outcome.loss, outcome.outputs, gradient(outcome.loss.mean(), module)))
        for mapped, looped in zip(*found, strict=True):
            assert relative_error(mapped, looped) < tolerance


@quiet
def test_a_training_step_descends_along_the_meta_gradient() -> None:
    module = maml("conv4", torch.float32, inner_steps=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    batch = episodes(IMAGES, tasks=3, dtype=torch.float32)
    start = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    step = 0.5 * gradient(maml_loss(module, batch, 2), module)
    trainer(max_steps=1).fit(module, loader(batch))
    moved = start - torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    assert relative_error(moved, step) < 1e-4
    assert all(torch.equal(b, buffers[name]) for name, b in module.named_buffers())


# Adaptation.


@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
@pytest.mark.parametrize("kind", ["conv4", "regression"])
def test_the_trajectory_holds_the_states_after_every_step(kind: str, batch_norm: Any) -> None:
    module = maml(kind, inner_steps=4, batch_norm=batch_norm)
    support, query = task(episodes(module.spec), 1)
    states = module.trajectory(support, module.spec.outputs)
    expected = maml_trajectory(module, support, 4)
    assert len(states) == 5
    for state, phi in zip(states, expected, strict=True):
        torch.testing.assert_close({name: state[name] for name in phi}, phi, rtol=1e-11, atol=1e-11)
        outputs = maml_outputs(module, phi, support, query.x)
        torch.testing.assert_close(module.predict(state, query.x), outputs, rtol=1e-11, atol=1e-11)
    adapted = module.adapt(support, module.spec.outputs)
    torch.testing.assert_close(adapted, states[-1])


def test_statistics_of_every_state_are_those_of_the_whole_support_set() -> None:
    options: dict[str, Any] = {"inner_steps": 4, "inner_lr": 1e-9, "batch_norm": "inductive"}
    module = maml("conv4", inner_batch_size=2, **options).eval()
    support, query = task(episodes(IMAGES), 0)
    first, *others = (module.predict(state, query.x) for state in module.trajectory(support, 3))
    whole = maml("conv4", **options).eval()
    torch.testing.assert_close(first, whole.predict(whole.trajectory(support, 3)[0], query.x), rtol=1e-11, atol=1e-11)
    for outputs in others:
        torch.testing.assert_close(outputs, first, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("size", "used"), [(None, False), (3, False), (1, True)])
def test_only_single_values_are_normalised_by_running_statistics_which_training_does_not_change(
    size: int | None, used: bool
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    spec = EpisodeSpec("classification", (4,), 3)
    module = MAML(network, 0.1, 3, inner_batch_size=size, episodes=spec).double()
    batch = episodes(spec)
    assert not [name for name in module.meta_batch_loss(batch).buffers if "running" in name]
    support, query = task(batch, 0)
    before = module.predict(module.adapt(support, 3), query.x)
    norm: Any = module.backbone[2]  # type: ignore[index]
    norm.running_mean += 5.0
    assert torch.allclose(module.predict(module.adapt(support, 3), query.x), before) != used


def _layers() -> list[nn.Module]:
    return [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU()]


class BatchNormInHead(MAML):
    """The last layers of a backbone are in the head."""

    def build(self, episodes: EpisodeSpec) -> None:
        head: Any = nn.Sequential(*_layers()[2:], nn.Linear(5, episodes.outputs))
        self.head = head


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("method", [MAML, IMAML])
@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
def test_batch_normalisation_in_a_head_is_that_of_a_backbone(
    batch_norm: Any, method: type[MAML], first_order: bool, strategy: Any
) -> None:
    spec = EpisodeSpec("classification", (6,), 3)
    options: dict[str, Any] = {"inner_steps": 3, "batch_norm": batch_norm, "strategy": strategy, "episodes": spec}
    options |= {"first_order": first_order} if method is MAML else {}
    in_head = type("InHead", (BatchNormInHead, method), {})
    one, other = in_head(nn.Sequential(*_layers()[:2]), **options), method(nn.Sequential(*_layers()), **options)
    for mine, same in zip(one.parameters(), other.parameters(), strict=True):
        mine.data.copy_(same)
    assert one.transductive == other.transductive == (batch_norm == "transductive")
    batch = episodes(spec)
    found, expected = (m.double().meta_batch_loss(batch) for m in (one, other))
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(gradient(found.loss.sum(), one), gradient(expected.loss.sum(), other))
    support, query = task(batch, 0)
    outputs = [m.predict(m.eval().adapt(support, 3), query.x) for m in (one, other)]
    torch.testing.assert_close(*outputs)
    for norm in (one.train().head[1], other.train().backbone[3]):  # type: ignore[index]
        norm.eval()
    held = [m.meta_batch_loss(batch).loss for m in (one, other)]
    torch.testing.assert_close(*held)
    assert not torch.allclose(held[0], found.loss)


def test_inductive_predictions_stand_alone_and_transductive_ones_do_not() -> None:
    for batch_norm in BATCH_NORMS:
        module = maml("conv4", inner_steps=1, batch_norm=batch_norm).eval()
        support, query = task(episodes(IMAGES), 0)
        state = module.adapt(support, 3)
        alone, together = module.predict(state, query.x[:2]), module.predict(state, query.x)[:2]
        assert torch.allclose(alone, together, atol=1e-12) == (batch_norm == "inductive")


def test_support_order_does_not_matter() -> None:
    module = maml("conv4", inner_steps=3)
    support, query = task(episodes(IMAGES), 0)
    order = torch.randperm(len(support.y))
    shuffled = support._replace(x=support.x[order], y=support.y[order])
    found, expected = (module.predict(module.adapt(s, 3), query.x) for s in (shuffled, support))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_more_steps_in_evaluation_than_in_training() -> None:
    module = maml("mlp", inner_steps=1, test_inner_steps=6)
    support, _ = task(episodes(module.spec), 0)
    assert len(module.train().trajectory(support, 3)) == 2
    assert len(module.eval().trajectory(support, 3)) == 7
    assert maml("mlp", inner_steps=3).test_inner_steps == 3
    assert len(maml("mlp", inner_steps=3, test_inner_steps=0).eval().trajectory(support, 3)) == 1


class Mask(nn.Module):
    """Dropout that shows its mask."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(torch.ones_like(x), 0.5, self.training)
        self.mask = y[0]
        return x * y


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_dropout_draws_anew_at_every_step_and_in_every_task(strategy: Any) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 64), Mask())
    module = MAML(network, inner_steps=3, episodes=KINDS["mlp"].spec)
    batch = episodes(module.spec, tasks=3, dtype=torch.float32)

    def masks() -> Tensor:
        def one_task(support: Any) -> Tensor:
            states = module.trajectory(support, 3)[:-1]  # nothing was computed at the last
            return torch.stack([state["backbone.1.mask"] for state in states])

        return task_map(one_task, TaskMap(strategy), batch.support)

    drawn = masks().flatten(0, 1)
    assert drawn.shape == (9, 64)
    assert len({tuple(mask.tolist()) for mask in drawn}) == 9
    assert set(drawn.unique().tolist()) == {0, 2}
    torch.manual_seed(5)
    first = masks()
    torch.manual_seed(5)
    assert torch.equal(masks(), first)
    module.eval()
    assert torch.equal(masks(), torch.ones(3, 3, 64))


# Through a Trainer.


@quiet
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
@pytest.mark.parametrize("kind", ["conv4", "regression"])
def test_evaluation_works_under_inference_mode_and_changes_nothing(kind: str, batch_norm: Any, strategy: Any) -> None:
    options = {"inner_steps": 1, "test_inner_steps": 3, "batch_norm": batch_norm, "strategy": strategy}
    module = maml(kind, torch.float32, **options)
    batch = episodes(module.spec, tasks=4, dtype=torch.float32)
    before = Snapshot(module)
    data, metric = loader(batch), module.task.metric
    runner = trainer()
    (validated,) = runner.validate(module, data, verbose=False)
    before.assert_unchanged()
    (tested,) = runner.test(module, data, verbose=False)
    before.assert_unchanged()
    predicted = runner.predict(module, data)
    before.assert_unchanged()
    assert predicted is not None
    (predictions,) = predicted
    assert isinstance(predictions, Tensor)
    assert module.training

    module.double()
    outputs = []
    for t in range(4):
        support, query = task(module.inputs(batch), t)
        states = maml_trajectory(module, support, 3)
        outputs.append(torch.stack([maml_outputs(module, phi, support, query.x) for phi in states]).detach())
    expected = torch.stack(outputs)  # (T, steps + 1, M, outputs)
    torch.testing.assert_close(predictions.double(), expected[:, -1], rtol=1e-4, atol=1e-4)
    scores = module.task.score(expected, batch.query.y.unsqueeze(1)).mean(0)
    for stage, results in ("val", validated), ("test", tested):
        assert results[f"{stage}/{metric}"] == pytest.approx(float(scores[-1]), rel=1e-3)
        for step in range(4):
            assert results[f"{stage}/{metric}_step_{step}"] == pytest.approx(float(scores[step]), rel=1e-3)
        assert f"{stage}/{metric}_step_4" not in results


@quiet
def test_learns_to_learn_sine_waves() -> None:
    data = EpisodicDataModule(
        Sinusoid(),
        shots=10,
        queries=10,
        meta_batch_size=8,
        meta_batches_per_epoch=300,
        val_tasks=8,
        test_tasks=100,
        evaluation_meta_batch_size=50,
        seed=0,
    )
    module = MAML(MLP(1, (32, 32)), inner_steps=1, optimizer=lambda p: torch.optim.Adam(p, lr=0.005))
    trainer(max_epochs=1, limit_val_batches=0).fit(module, datamodule=data)
    (results,) = trainer().test(module, datamodule=data, verbose=False)
    # One inner step after this short training takes away a good part of the error before it.
    assert results["test/mse_step_1"] < 0.7 * results["test/mse_step_0"]
    assert results["test/tasks"] == 100


# Errors.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"inner_lr": 0.0}, "inner_lr: a positive number is needed, got 0.0"),
        ({"inner_steps": -1}, "inner_steps: at least 0 is needed, got -1"),
        ({"test_inner_steps": -2}, "test_inner_steps: at least 0 is needed, got -2"),
        ({"episodes": EpisodeSpec("classification", (4,), 0)}, "ways and test_ways must be equal"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as raised:
        MAML(MLP(4, (3,)), **options)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_another_way_than_the_trained_one_is_refused() -> None:
    module = maml("mlp")
    for ways, received in (5, "got 5"), (0, "got differing ways"):
        with pytest.raises(UserError) as raised:
            module.check_episodes(EpisodeSpec("classification", (6,), ways))
        for part in "3 ways", received, "ProtoNet support any":
            assert part in str(raised.value)
    with pytest.raises(UserError, match=r"made for input_shape \(6,\), but the data has \(7,\)"):
        module.check_episodes(EpisodeSpec("classification", (7,), 3))
    with pytest.raises(UserError, match="made for task classification, but the data has regression"):
        module.check_episodes(EpisodeSpec("regression", (6,), 3))


def test_regression_episodes_of_another_dimension_are_refused() -> None:
    module = MAML(MLP(), episodes=EpisodeSpec("regression", (1,), 1))
    module.check_episodes(EpisodeSpec("regression", (1,), 1))
    with pytest.raises(UserError, match="made for outputs 1, but the data has 2"):
        module.check_episodes(EpisodeSpec("regression", (1,), 2))
