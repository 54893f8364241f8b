"""ProtoNet against scikit-learn, and against Snell et al.'s loss written once more on torch's own layers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.metrics.pairwise import euclidean_distances as sklearn_distances
from sklearn.neighbors import NearestCentroid
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.batches import Episode, Examples
from lightning_meta.errors import UserError
from lightning_meta.meta import ProtoNet
from lightning_meta.nn import Conv4, TaskBatchNorm
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import (
    IMAGES,
    Snapshot,
    Statistics,
    episodes,
    forward,
    gradient,
    loader,
    loss_of,
    quiet,
    relative_error,
    roughen,
    smooth_convolutions,
    task,
    trainer,
)

DISTANCES = ["squared_euclidean", "cosine"]
BATCH_NORMS = ["running", "inductive", "transductive"]
VECTORS = EpisodeSpec("classification", (6,), 3)


def protonet(backbone: nn.Module | None = None, dtype: torch.dtype = torch.float64, **options: Any) -> ProtoNet:
    """A ProtoNet with weights, and running statistics, away from their start."""
    torch.manual_seed(3)
    spec = options.pop("episodes", IMAGES)
    module = ProtoNet(Conv4(2, 4, blocks=2) if backbone is None else backbone, episodes=spec, **options)
    roughen(module)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return module.to(dtype)


def embed(module: ProtoNet, x: Tensor, given: Statistics | None = None) -> tuple[Tensor, Statistics]:
    return forward(module.network, dict(module.network.named_parameters()), x, given)


def stored(module: ProtoNet) -> Statistics:
    buffers = dict(module.network.named_buffers())
    names = {name.rpartition(".")[0] for name in buffers}
    return {name: (buffers[f"{name}.running_mean"], buffers[f"{name}.running_var"]) for name in names}


def logits_of(module: ProtoNet, support: Tensor, labels: Tensor, query: Tensor, ways: int) -> Tensor:
    """Equations 1 and 2 of the paper, a class and a query at a time."""
    prototypes = [support[labels == n].sum(0) / int((labels == n).sum()) for n in range(ways)]
    if module.distance == "cosine":
        rows = [[q @ c / (q.norm() * c.norm()) for c in prototypes] for q in query]
    else:
        rows = [[-((q - c) ** 2).sum() for c in prototypes] for q in query]
    return torch.stack([torch.stack(row) for row in rows]) / module.temperature


def oracle_logits(module: ProtoNet, support: Examples, x: Tensor, ways: int, training: bool) -> Tensor:
    """Logits with the documented normalisation for each value of `batch_norm`."""
    if module.batch_norm == "running" and training:
        together, _ = embed(module, torch.cat([support.x, x]))
        zs, zq = together[: len(support.x)], together[len(support.x) :]
    elif module.batch_norm == "running":
        zs, zq = embed(module, support.x, stored(module))[0], embed(module, x, stored(module))[0]
    else:
        zs, statistics = embed(module, support.x)
        zq, _ = embed(module, x, statistics if module.batch_norm == "inductive" else None)
    return logits_of(module, zs, support.y, zq, ways)


# Values.


@pytest.mark.parametrize("distance", DISTANCES)
def test_logits_on_plain_features_are_those_of_scikit_learn(distance: Any) -> None:
    module = protonet(nn.Flatten(), distance=distance, temperature=0.5, episodes=VECTORS)
    support, query = task(episodes(VECTORS, shots=4, queries=5), 0)
    order = torch.randperm(len(support.y))
    support = Examples(support.x[order], support.y[order])
    logits = module.predict(module.adapt(support, 3), query.x)

    reference = NearestCentroid().fit(support.x.numpy(), support.y.numpy())
    if distance == "cosine":
        expected = cosine_similarity(query.x, reference.centroids_) / 0.5
    else:
        expected = -(sklearn_distances(query.x, reference.centroids_) ** 2) / 0.5
        np.testing.assert_array_equal(logits.argmax(-1), reference.predict(query.x.numpy()))
    np.testing.assert_allclose(logits, expected, rtol=1e-9)


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
def test_loss_and_gradient_are_those_of_the_paper(batch_norm: Any, distance: Any, strategy: Any) -> None:
    module = protonet(batch_norm=batch_norm, distance=distance, temperature=0.7, strategy=strategy)
    batch = episodes(IMAGES, tasks=3)
    outcome = module.meta_batch_loss(batch)
    losses = []
    for t in range(3):
        support, query = task(batch, t)
        logits = oracle_logits(module, support, query.x, 3, training=True)
        torch.testing.assert_close(outcome.outputs[t], logits, rtol=1e-8, atol=1e-8)
        losses.append(loss_of(IMAGES, logits, query.y))
    expected = torch.stack(losses)
    torch.testing.assert_close(outcome.loss, expected, rtol=1e-8, atol=1e-8)
    assert relative_error(gradient(outcome.loss.mean(), module), gradient(expected.mean(), module)) < 1e-8


@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
def test_both_strategies_give_the_same_numbers(batch_norm: Any) -> None:
    for dtype, tolerance in (torch.float64, 1e-8), (torch.float32, 1e-4):
        found = []
        for strategy in ("vmap", "loop"):
            module = protonet(dtype=dtype, batch_norm=batch_norm, strategy=strategy)
            outcome = module.meta_batch_loss(episodes(IMAGES, tasks=3, dtype=dtype))
            flat = torch.cat([s.flatten() for s in outcome.buffers.values()] or [torch.ones(1)])
            found.append((outcome.loss, outcome.outputs, flat, gradient(outcome.loss.mean(), module)))
        for mapped, looped in zip(*found, strict=True):
            assert relative_error(mapped, looped) < tolerance


# One training step, beside torch's own layers.


@quiet
def test_a_training_step_is_that_of_the_reference_code_on_torch_layers() -> None:
    torch.manual_seed(4)
    reference = smooth_convolutions(nn.BatchNorm2d)
    roughen(reference)
    module = ProtoNet(copy.deepcopy(reference), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), episodes=IMAGES)
    batch = episodes(IMAGES, tasks=1, shots=2, queries=3, dtype=torch.float32)
    trainer(max_steps=1).fit(module, loader(batch))

    # Snell et al.'s protonets/models/few_shot.py: one batch, support first.
    support, query = task(batch, 0)
    z = reference.train()(torch.cat([support.x, query.x]))
    prototypes = z[: 3 * 2].view(3, 2, -1).mean(1)
    log_p = F.log_softmax(-torch.cdist(z[3 * 2 :], prototypes).square(), dim=1).view(3, 3, -1)
    loss = -log_p.gather(2, torch.arange(3).view(3, 1, 1).expand(3, 3, 1)).mean()
    loss.backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()

    for ours, theirs in zip(module.network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert isinstance(module.network, nn.Sequential)
    # Images of 8x8, then 4x4, in a batch of 15.
    for index, count in (1, 15 * 64), (5, 15 * 16):
        norm, peer = module.network[index], reference[index]
        assert isinstance(norm, TaskBatchNorm)
        assert isinstance(peer, nn.BatchNorm2d)
        assert peer.running_var is not None
        torch.testing.assert_close(norm.running_mean, peer.running_mean)
        # Torch moves its running variance towards the unbiased one, ours towards that which normalised the batch.
        batch_variance = (peer.running_var - 0.9) / 0.1 * (count - 1) / count
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * batch_variance)


@quiet
def test_running_statistics_follow_the_mean_over_tasks() -> None:
    module = protonet(dtype=torch.float32, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    batch = episodes(IMAGES, tasks=3, dtype=torch.float32)
    start = {name: (mean.clone(), var.clone()) for name, (mean, var) in stored(module).items()}
    seen = [embed(module, torch.cat([batch.support.x[t], batch.query.x[t]]))[1] for t in range(3)]
    trainer(max_epochs=1).fit(module, loader(batch))
    for name, found in stored(module).items():
        for which in (0, 1):
            expected = 0.9 * start[name][which] + 0.1 * sum(task_[name][which] for task_ in seen) / 3
            torch.testing.assert_close(found[which], expected)


# Evaluation.


@quiet
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
def test_evaluates_any_way_and_changes_nothing(batch_norm: Any, strategy: Any) -> None:
    module = protonet(dtype=torch.float32, batch_norm=batch_norm, strategy=strategy)
    before = Snapshot(module)
    for ways in (2, 3, 5):
        spec = replace(IMAGES, outputs=ways)
        module.check_episodes(spec)
        batch = episodes(spec, tasks=4, dtype=torch.float32)
        data = loader(batch)
        trainer().validate(module, data, verbose=False)
        (results,) = trainer().test(module, data, verbose=False)
        predicted = trainer().predict(module, data)
        assert predicted is not None
        right = []
        for t in range(4):
            support, query = task(batch, t)
            logits = oracle_logits(module, support, query.x, ways, training=False)
            torch.testing.assert_close(predicted[0][t], logits, rtol=1e-3, atol=1e-3)
            right.append((logits.argmax(-1) == query.y).double().mean())
        assert results["test/accuracy"] == pytest.approx(float(torch.stack(right).mean()))
        assert results["test/tasks"] == 4
        before.assert_unchanged()


def test_running_and_inductive_predictions_stand_alone_and_transductive_ones_do_not() -> None:
    for batch_norm in BATCH_NORMS:
        module = protonet(batch_norm=batch_norm)
        support, query = task(episodes(IMAGES), 0)
        state = module.adapt(support, 3)
        alone, together = module.predict(state, query.x[:2]), module.predict(state, query.x)[:2]
        assert torch.allclose(alone, together, atol=1e-10) == (batch_norm != "transductive")


# Invariances.


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
def test_renaming_classes_renames_the_logits(batch_norm: Any, distance: Any) -> None:
    module = protonet(batch_norm=batch_norm, distance=distance)
    support, query = task(episodes(IMAGES), 0)
    renaming = torch.tensor([2, 0, 1])
    renamed = Examples(support.x, renaming[support.y])
    found = module.predict(module.adapt(renamed, 3), query.x)
    expected = module.predict(module.adapt(support, 3), query.x)
    torch.testing.assert_close(found[:, renaming], expected)
    loss = module.meta_batch_loss(renamed_batch(renaming)).loss
    torch.testing.assert_close(loss, module.meta_batch_loss(episodes(IMAGES)).loss)


def renamed_batch(renaming: Tensor) -> Episode:
    batch = episodes(IMAGES)
    support, query = (e._replace(y=renaming[e.y]) for e in (batch.support, batch.query))
    return batch._replace(support=support, query=query)


def test_the_origin_of_the_embedding_does_not_matter_to_euclidean_distances_only() -> None:
    for distance in DISTANCES:
        linear = nn.Linear(6, 5)
        module = protonet(linear, distance=distance, episodes=VECTORS)
        support, query = task(episodes(VECTORS), 0)
        before = module.predict(module.adapt(support, 3), query.x).detach()
        with torch.no_grad():
            linear.bias.add_(torch.randn(5))
        after = module.predict(module.adapt(support, 3), query.x).detach()
        assert torch.allclose(before, after, atol=1e-10) == (distance == "squared_euclidean")


# Errors.


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=f"temperature: a positive number is needed, got {temperature}"):
        ProtoNet(Conv4(), temperature=temperature)


@quiet
def test_regression_is_refused() -> None:
    spec = EpisodeSpec("regression", (6,), 3)
    with pytest.raises(UserError, match="ProtoNet classifies; for regression use MAML"):
        protonet(nn.Linear(6, 5), episodes=spec).check_episodes(spec)
