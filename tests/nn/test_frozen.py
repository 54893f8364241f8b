"""A frozen network stays as it is, whatever is trained around it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import lightning_meta as lm
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP, Conv4, Frozen
from lightning_meta.nn.frozen import frozen_part
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing import toys
from tests.methods import conv4

OPTIONS: dict[str, Any] = {"log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False}


def noisy(network: nn.Module) -> nn.Module:
    """The network with running statistics other than those of a new layer."""
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand_like(buffer) if name.endswith("var") else 0.1 * torch.rand_like(buffer))
    return network


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def same(before: dict[str, torch.Tensor], module: nn.Module) -> bool:
    return all(torch.equal(before[name], t) for name, t in module.state_dict().items())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_in_training_mode_it_computes_what_the_network_does_in_evaluation(norm: Any) -> None:
    network = noisy(nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.Dropout(0.5), nn.Flatten()))
    x = torch.rand(5, 1, 8, 8)
    expected = copy.deepcopy(network).eval()(x)
    frozen = Frozen(network)
    frozen.train()
    torch.testing.assert_close(frozen(x), expected)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("batch_norm", ["running", "inductive", "transductive"])
def test_a_tasks_own_statistics_are_never_used(batch_norm: Any) -> None:
    network = noisy(conv4())
    x, y = torch.rand(6, 1, 16, 16), torch.arange(3).repeat(2)
    episodes = EpisodeSpec("classification", (1, 16, 16), 3)
    running = lm.ProtoNet(copy.deepcopy(network), episodes=episodes).predictor(x, y.tolist()).outputs(x)
    module = lm.ProtoNet(Frozen(network), batch_norm=batch_norm, episodes=episodes)
    torch.testing.assert_close(module.predict(module.adapt(lm.Examples(x, y), 3), x), running)


def test_what_follows_it_is_trained_and_it_is_not(tmp_path: Any) -> None:
    backbone = nn.Sequential(Frozen(noisy(conv4())), MLP(64, (8,)))
    before, head = tensors(backbone[0]), tensors(backbone[1])
    run = lm.fit(lm.ProtoNet(backbone), toys.pictures(), runs=tmp_path, seed=0, max_steps=3, **OPTIONS)
    assert run.directory is not None
    assert same(before, backbone[0])
    assert not same(head, backbone[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Baseline", "MAML"])
def test_other_methods_train_their_own_part_over_it(name: str, tmp_path: Any) -> None:
    frozen = Frozen(noisy(conv4()))
    before = tensors(frozen)
    module = lm.Baseline(frozen, head_steps=5) if name == "Baseline" else lm.MAML(frozen, inner_lr=0.1, inner_steps=2)
    own = {n: p.detach().clone() for n, p in toys_built(module).named_parameters() if p.requires_grad}
    lm.fit(module, toys.pictures(), runs=tmp_path, seed=0, max_steps=3, **OPTIONS)
    assert same(before, frozen)
    assert any(not torch.equal(own[n], p) for n, p in module.named_parameters() if n in own)


def toys_built(module: lm.MetaModule) -> lm.MetaModule:
    data = toys.pictures()
    data.setup("fit")
    assert data.spec is not None
    module.episodes = data.spec
    module.configure_model()
    return module


def test_it_loads_frozen(tmp_path: Any) -> None:
    run = lm.fit(lm.ProtoNet(Frozen(conv4())), toys.pictures(), runs=tmp_path, max_steps=0, **OPTIONS)
    assert run.directory is not None
    module = lm.load(run.directory)
    assert frozen_part(module.backbone) is module.backbone


def test_vectors_are_not_taken_for_features() -> None:
    network = MLP(8, (8,))
    module = lm.ProtoNet(Frozen(copy.deepcopy(network)), episodes=EpisodeSpec("classification", (8,), 3))
    x = torch.rand(4, 8)
    torch.testing.assert_close(module.backbone(x), network(x))


def test_features_of_images_pass() -> None:
    module = lm.ProtoNet(Frozen(conv4()), episodes=EpisodeSpec("classification", (1, 16, 16), 3))
    features = module.backbone(torch.rand(4, 1, 16, 16))
    assert module.backbone(features) is features


def test_unfrozen_it_is_no_longer_frozen() -> None:
    frozen = Frozen(Conv4(width=4, blocks=1))
    assert frozen_part(nn.Sequential(frozen, nn.Linear(4, 2))) is frozen
    frozen.requires_grad_(True)
    assert frozen_part(frozen) is None


def test_nothing_to_train_is_refused_in_one_line(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"nothing to train; set max_steps=0"):
        lm.fit(lm.ProtoNet(Frozen(conv4())), toys.pictures(), runs=tmp_path / "runs", max_steps=1, **OPTIONS)
    assert not (tmp_path / "runs").exists()


def test_experts_over_a_frozen_network_all_have_its_weights() -> None:
    module = lm.MixtureOfExperts(Frozen(MLP(4, (8,))), experts=2)
    data = toys.sums()
    data.setup("fit")
    module.tasks = data.spec
    module.configure_model()
    assert isinstance(module.backbone, nn.ModuleList)
    first, second = (tensors(expert) for expert in module.backbone)
    assert all(torch.equal(first[name], second[name]) for name in first)
