"""A converted checkpoint of learn2learn's MAML predicts the same after adaptation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.integrations.learn2learn import convert_maml
from lightning_meta.meta import MAML
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import EpisodeSpec
from tests.integrations.peer import l2l
from tests.meta.oracles import roughen

MODELS = l2l.vision.models
STEPS, RATE = 3, 0.05


class Case(NamedTuple):
    """A network of learn2learn's, and the backbone that computes the same here."""

    theirs: Callable[[], nn.Module]
    ours: Callable[[], nn.Module]
    shape: tuple[int, ...]


def plain(norm: bool = True) -> list[nn.Module]:
    return [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=norm), nn.ReLU(), nn.Flatten()]


def omniglot_fc(sizes: Sequence[int]) -> nn.Module:
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.BatchNorm1d(o, eps=1e-3), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers)


CASES = {
    "OmniglotCNN": Case(lambda: MODELS.OmniglotCNN(5), lambda: Conv4(1, 64, "stride", "mean"), (1, 28, 28)),
    "CNN4": Case(lambda: MODELS.CNN4(5, hidden_size=32, channels=3), lambda: Conv4(3, 32), (3, 84, 84)),
    "CNN4 in its own": Case(
        lambda: MODELS.CNN4(5, hidden_size=8, embedding_size=8),
        lambda: MODELS.CNN4Backbone(hidden_size=8),
        (3, 16, 16),
    ),
    "OmniglotFC": Case(lambda: MODELS.OmniglotFC(784, 5), lambda: omniglot_fc([784, 256, 128, 64, 64]), (1, 28, 28)),
    "own network": Case(lambda: nn.Sequential(*plain(), nn.Linear(144, 5)), lambda: nn.Sequential(*plain()), (2, 8, 8)),
    "no running statistics": Case(
        lambda: nn.Sequential(*plain(norm=False), nn.Linear(144, 5)), lambda: nn.Sequential(*plain()), (2, 8, 8)
    ),
}


def fresh(backbone: nn.Module, shape: tuple[int, ...]) -> MAML:
    return MAML(backbone, RATE, STEPS, episodes=EpisodeSpec("classification", shape, 5)).double()


def trained(case: Case) -> tuple[Any, Examples, Tensor]:
    """learn2learn's MAML after two outer steps, a support set and queries."""
    learner = l2l.algorithms.MAML(case.theirs().double(), lr=RATE)
    optimizer = torch.optim.Adam(learner.parameters(), 0.01)
    support = Examples(torch.rand(10, *case.shape, dtype=torch.float64), torch.arange(10) % 5)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(adapted(learner, support, 1)(support.x), support.y).backward()
        optimizer.step()
    return learner, support, torch.rand(15, *case.shape, dtype=torch.float64)


def adapted(learner: Any, support: Examples, steps: int) -> Any:
    clone = learner.clone()
    for _ in range(steps):
        clone.adapt(nn.functional.cross_entropy(clone(support.x), support.y))
    return clone


@pytest.mark.parametrize("name", CASES)
def test_adapted_predictions_are_theirs(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    learner, support, x = trained(case)
    roughen(learner)  # weights of normalisation that nobody could confuse
    path = tmp_path / "maml.pt"
    torch.save(learner.state_dict(), path)
    module = convert_maml(path, fresh(case.ours(), case.shape))
    expected = adapted(learner, support, STEPS)(x)
    found = module.predict(module.adapt(support, 5), x)
    print(f"\n{name}: largest difference {(found - expected).abs().max():.1e} of {expected.abs().max():.1f}")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_running_statistics_are_taken_over(tmp_path: Path) -> None:
    case = CASES["OmniglotCNN"]
    learner, _, _ = trained(case)
    torch.save(learner.state_dict(), tmp_path / "maml.pt")
    module = convert_maml(tmp_path / "maml.pt", fresh(case.ours(), case.shape))
    norm = learner.module.base[3].normalize
    assert norm.running_mean.abs().max() > 0
    buffers = dict(module.network.named_buffers())
    assert torch.equal(buffers["backbone.blocks.3.1.running_mean"], norm.running_mean)
    assert torch.equal(buffers["backbone.blocks.3.1.running_var"], norm.running_var)


def refusal(learner: nn.Module, module: MAML, path: Path) -> str:
    """The message of the error, after which the module is unchanged."""
    torch.save(learner.state_dict(), path)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UserError) as caught:
        convert_maml(path, module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "ours", "shape", "message"),
    [
        (
            MODELS.OmniglotCNN,
            lambda: Conv4(1, 32, "stride", "mean"),
            (1, 28, 28),
            "module.base.0.conv (weight (64, 1, 3, 3), bias (64,)) does not fit "
            "backbone.blocks.0.0 (weight (32, 1, 3, 3), bias (32,)) in the module",
        ),
        # The same shapes throughout, and another function.
        (MODELS.OmniglotCNN, lambda: Conv4(1, 64), (1, 28, 28), "must have downsample 'stride' and spatial 'mean'"),
        (
            lambda: MODELS.CNN4(5, hidden_size=32),
            lambda: Conv4(3, 32, "stride"),
            (3, 84, 84),
            "module.classifier (weight (5, 800), bias (5,)) does not fit head (weight (5, 1152), bias (5,))",
        ),
        (MODELS.OmniglotCNN, lambda: MLP(784, (4,)), (1, 28, 28), "it holds 9 layers with weights, the module has 2"),
        # The same layers, normalised before the convolution.
        (
            lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)),
            lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Flatten()),
            (4, 2, 2),
            "module.0 (weight (4, 4, 1, 1), bias (4,)) does not fit backbone.0 (weight (4,)",
        ),
    ],
    ids=["width", "pooling", "size", "depth", "order"],
)
def test_what_does_not_fit_is_refused(
    theirs: Callable[[], nn.Module],
    ours: Callable[[], nn.Module],
    shape: tuple[int, ...],
    message: str,
    tmp_path: Path,
) -> None:
    learner = l2l.algorithms.MAML(theirs(), lr=RATE)
    assert message in refusal(learner, fresh(ours(), shape), tmp_path / "maml.pt")


def test_only_a_state_dict_is_read(tmp_path: Path) -> None:
    learner, module = l2l.algorithms.MAML(nn.Linear(6, 5), lr=RATE), fresh(MLP(6, (4,)), (6,))
    torch.save(learner, tmp_path / "pickled.pt")
    with pytest.raises(UserError, match="save the state_dict alone"):
        convert_maml(tmp_path / "pickled.pt", module)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="is not a state_dict"):
        convert_maml(tmp_path / "list.pt", module)
    with pytest.raises(UserError, match="there is no file"):
        convert_maml(tmp_path / "absent.pt", module)
    with pytest.raises(UserError, match="episodes: give the module an EpisodeSpec"):
        convert_maml(tmp_path / "list.pt", MAML(MLP(6, (4,))))
