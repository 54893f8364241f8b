"""The pre-training baseline: its head against scikit-learn, its training against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from torch import nn

from lightning_meta.batches import Episode, Examples
from lightning_meta.errors import UserError
from lightning_meta.functional import TaskMap
from lightning_meta.meta import Baseline
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import EpisodeSpec

SPEC = EpisodeSpec("classification", (1, 28, 28), 3, 10)


def episode(tasks: int = 2, ways: int = 3, shots: int = 2, queries: int = 4) -> Episode:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(tasks, ways * (shots + queries), 1, 28, 28, dtype=torch.float64, generator=generator)
    support, query = images.split([ways * shots, ways * queries], dim=1)
    labels = torch.arange(ways)
    classes = torch.stack([torch.randperm(10, generator=generator)[:ways] for _ in range(tasks)])
    return Episode(
        Examples(support, labels.repeat_interleave(shots).expand(tasks, -1)),
        Examples(query, labels.repeat_interleave(queries).expand(tasks, -1)),
        ways,
        torch.arange(tasks),
        classes,
    )


def test_the_linear_head_is_logistic_regression_on_normalised_features() -> None:
    features = torch.randn(30, 5, dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(10)
    decay = 0.1  # a step of 0.5 comes nearer by 5 % at least, so 1000 of them are enough
    spec = EpisodeSpec("classification", (5,), 3, 3)
    module = Baseline(nn.Flatten(), head_steps=1000, head_lr=0.5, weight_decay=decay, episodes=spec).double()
    head = module.adapt(Examples(features, labels), 3)
    ours = module.predict(head, features).softmax(-1).numpy()

    # scikit-learn minimises the sum of losses plus |W|^2 / 2C; ours is the mean plus weight_decay |W|^2 / 2.
    oracle = LogisticRegression(C=1 / (decay * 30), tol=1e-12, max_iter=10000)
    x = normalize(features.numpy())
    oracle.fit(x, labels.numpy())
    np.testing.assert_allclose(ours, oracle.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("ways", [3, 5])
def test_tells_new_classes_apart_at_any_way(head: str, ways: int) -> None:
    centres = 3 * torch.eye(8)[:ways]
    labels = torch.arange(ways).repeat_interleave(4)
    x = centres[labels] + 0.1 * torch.randn(len(labels), 8)
    module = Baseline(MLP(8, (16,)), head=head, episodes=EpisodeSpec("classification", (8,), 2, 6))  # type: ignore[arg-type]
    predictor = module.predictor(x, labels)
    assert predictor(centres) == list(range(ways))


def test_training_classifies_every_image_among_all_training_classes() -> None:
    module = Baseline(Conv4(1, width=4), episodes=SPEC).double()
    batch = episode()
    outcome = module.meta_batch_loss(batch)
    assert batch.classes is not None

    images, labels = [], []
    for task in range(2):
        for part in (batch.support, batch.query):
            images.append(part.x[task])
            labels.append(batch.classes[task][part.y[task]])
    x, y = torch.cat([images[0], images[1], images[2], images[3]]), torch.cat(labels)
    features = nn.functional.normalize(module.network(x), dim=-1)  # one batch: one set of statistics
    expected = nn.functional.cross_entropy(module.classifier(features), y)
    torch.testing.assert_close(outcome.loss.squeeze(), expected)
    torch.testing.assert_close(outcome.targets, y)
    mean = outcome.buffers["blocks.0.1.running_mean"]
    torch.testing.assert_close(mean[0], module.network.blocks[0][0](x).mean((0, 2, 3)))  # type: ignore[index, operator]


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_vmap_is_the_loop_and_adaptation_leaves_no_trace(head: str) -> None:
    module = Baseline(Conv4(1, width=4), head=head, episodes=SPEC).double().eval()  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    outputs = []
    for strategy in ("vmap", "loop"):
        module.task_map = TaskMap(strategy)
        with torch.inference_mode():
            outputs.append(module.predict_step(episode(), 0))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="head_lr: a positive number is needed"):
        Baseline(nn.Flatten(), head_lr=0.0)
    with pytest.raises(UserError, match="Baseline classifies"):
        Baseline(MLP(), episodes=EpisodeSpec("regression", (1,), 1))
