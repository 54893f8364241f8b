"""Support examples that are left out in turn, against scikit-learn and against a predictor for each fold."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import NearestCentroid
from torch import Tensor, nn

from lightning_meta.meta import MAML, R2D2, Baseline, MetaModule, Predictor, ProtoNet
from lightning_meta.meta.held_out import held_out
from lightning_meta.nn import MLP, Conv4, Frozen
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import Snapshot

IMAGES = EpisodeSpec("classification", (1, 8, 8), 3)


def examples(sizes: dict[str, int], seed: int = 0) -> tuple[Tensor, list[str]]:
    """Overlapping classes in shuffled order."""
    g = torch.Generator().manual_seed(seed)
    labels = [name for name, size in sizes.items() for _ in range(size)]
    labels = [labels[i] for i in torch.randperm(len(labels), generator=g).tolist()]
    centres = torch.rand(len(sizes), 1, 8, 8, generator=g)
    x = torch.stack([centres[list(sizes).index(name)] for name in labels])
    return (0.1 * x + 0.9 * torch.rand(x.shape, generator=g)).clamp(0, 1), labels


def folds_of(labels: list[str], folds: int) -> list[int]:
    seen = Counter[str]()
    numbers = []
    for label in labels:
        numbers.append(seen[label] % folds if labels.count(label) > 1 else -1)
        seen[label] += 1
    return numbers


@pytest.mark.parametrize(
    ("sizes", "folds"),
    [
        ({"a": 5, "b": 5, "c": 5}, 5),
        ({"a": 2, "b": 10, "c": 3}, 10),
        ({"a": 4, "b": 1, "c": 3}, 4),
        ({"a": 11, "b": 23, "c": 2}, 5),
    ],
)
def test_the_right_ones_are_those_of_scikit_learn(sizes: dict[str, int], folds: int) -> None:
    x, labels = examples(sizes)
    module = ProtoNet(nn.Flatten(), episodes=IMAGES)
    split = PredefinedSplit(folds_of(labels, folds))
    kept = [i for i, fold in enumerate(split.test_fold) if fold >= 0]
    predicted: dict[int, str] = {}
    for train, test in split.split():
        peer = NearestCentroid().fit(x.flatten(1).numpy()[train], [labels[i] for i in train])
        predicted |= dict(zip(test.tolist(), peer.predict(x.flatten(1).numpy()[test]), strict=True))
    found = held_out(module, x, labels)
    assert found is not None
    assert found.folds == folds
    assert found.tried == Counter(labels[i] for i in kept)
    assert dict(found.right) == dict(Counter(labels[i] for i in kept if predicted[i] == labels[i])) | {
        name: 0 for name in found.right if not found.right[name]
    }
    assert 0 < found.accuracy < 1
    if min(sizes.values()) == max(sizes.values()):  # scikit-learn's own loop over the same folds
        peers = cross_val_predict(NearestCentroid(), x.flatten(1).numpy(), labels, cv=split)
        assert found.right.total() == sum(p == label for p, label in zip(peers, labels, strict=True))


METHODS: dict[str, Any] = {
    "ProtoNet": lambda: ProtoNet(Conv4(width=4, blocks=2), episodes=IMAGES),
    "R2D2": lambda: R2D2(Conv4(width=4, blocks=2), scale_features=True, episodes=IMAGES),
    "Baseline": lambda: Baseline(Conv4(width=4, blocks=2), head_steps=5, episodes=replace(IMAGES, classes=6)),
    "inductive": lambda: ProtoNet(Conv4(width=4, blocks=2), batch_norm="inductive", episodes=IMAGES),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_fold_is_what_a_predictor_of_the_others_says(method: str) -> None:
    torch.manual_seed(0)
    module: MetaModule = METHODS[method]()
    x, labels = examples({"a": 3, "b": 4, "c": 2}, seed=1)
    x = (255 * x).byte()
    expected = Counter[str]()
    numbers = folds_of(labels, 4)
    for fold in range(4):
        rest, left = ([i for i, n in enumerate(numbers) if (n == fold) == out] for out in (False, True))
        predictor = Predictor(module, x[rest], [labels[i] for i in rest])
        said = predictor(x[left])
        expected += Counter(labels[i] for i, label in zip(left, said, strict=True) if label == labels[i])
    before = Snapshot(module)
    found = held_out(module, x, labels)
    before.assert_unchanged()
    assert found is not None
    assert +found.right == expected


def test_where_nothing_is_left_out() -> None:
    x, labels = examples({"a": 1, "b": 1})
    assert held_out(ProtoNet(nn.Flatten(), episodes=IMAGES), x, labels) is None
    x, labels = examples({"a": 2, "b": 2, "c": 2})
    assert held_out(MAML(MLP(64, (4,)), episodes=IMAGES), x, labels) is None  # an inner loop for each fold
    alike = ProtoNet(Conv4(width=4, blocks=2), batch_norm="transductive", episodes=IMAGES)
    assert held_out(alike, x, labels) is None  # a fold is no query set like those to come


class Counting(nn.Module):
    """A small network that notes how many images it is given, and how many at once at most."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.sizes = Conv4(width=4, blocks=2), list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.network(x)


@pytest.mark.parametrize("method", [ProtoNet, R2D2, partial(Baseline, head_steps=5)])
def test_a_frozen_backbone_sees_each_support_image_once(method: Any) -> None:
    """70 images and five folds: as many would be given to a network that trains, six times over."""
    x, labels = examples({"a": 40, "b": 30})
    torch.manual_seed(0)
    counting = Counting()
    network = copy.deepcopy(counting.network)
    frozen, plain = (method(part, episodes=replace(IMAGES, classes=6)) for part in (Frozen(counting), network))
    plain.load_state_dict({k.replace("network.network.", ""): v for k, v in frozen.state_dict().items()})
    for use in (held_out, Predictor):
        counting.sizes.clear()
        use(frozen, x, labels)
        assert sum(counting.sizes) == 70
        assert max(counting.sizes) <= 64
    assert held_out(frozen, x, labels) == held_out(plain, x, labels)
    query, _ = examples({"a": 3, "b": 4}, seed=1)
    found, expected = (Predictor(module, x, labels).probabilities(query) for module in (frozen, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
