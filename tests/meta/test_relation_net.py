"""RelationNet against its equations, one pair at a time, and its gradient against plain autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_meta as lm
from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP, Conv4, Frozen, LeNet
from lightning_meta.nn.normalization import task_norms
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing import toys
from tests.meta.oracles import episodes, relative_error, roughen, task, trainer

IMAGES, VECTORS = EpisodeSpec("classification", (1, 8, 8), 3), EpisodeSpec("classification", (6,), 3)


def made(spec: EpisodeSpec = IMAGES, backbone: nn.Module | None = None, **options: Any) -> lm.RelationNet:
    torch.manual_seed(3)
    own = Conv4(1, 4, blocks=2, halvings=1) if spec is IMAGES else MLP(6, (8, 5))
    few: dict[str, Any] = {"channels": 4 if spec is IMAGES else None, "width": 3, "hidden": 2, "episodes": spec}
    module = lm.RelationNet(backbone or own, **{**few, **options}).double()
    roughen(module)
    return module


def scores_by_hand(module: lm.RelationNet, prototypes: Tensor, features: Tensor, training: bool) -> Tensor:
    """Equation 1 with the relation module of figure 2: the layers' own weights, batch normalisation by its formula."""
    pairs = [torch.cat([c.view(module.map_shape), f.view(module.map_shape)]) for f in features for c in prototypes]
    x = torch.stack(pairs)
    for layer in module.relation:
        if isinstance(layer, nn.Conv2d):
            side = x.shape[-1]
            x = F.pad(x, [layer.kernel_size[0] // 2] * 4).unfold(2, layer.kernel_size[0], 1)
            x = x.unfold(3, layer.kernel_size[0], 1)[:, :, :side, :side]
            x = torch.einsum("mchwij,ocij->mohw", x, layer.weight) + layer.bias.view(-1, 1, 1)  # type: ignore[union-attr]
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            mean, var = layer.running_mean, layer.running_var
            if training:
                mean = x.mean((0, 2, 3))
                var = (x - mean.view(-1, 1, 1)).square().mean((0, 2, 3))
            assert mean is not None
            assert var is not None
            x = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + layer.eps).sqrt()
            x = x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
        elif isinstance(layer, nn.MaxPool2d):
            half = x.shape[-1] // 2
            x = x[:, :, : 2 * half, : 2 * half].unflatten(3, (half, 2)).unflatten(2, (half, 2)).amax((3, 5))
        elif isinstance(layer, nn.Linear):
            x = x.flatten(1) @ layer.weight.T + layer.bias
        elif isinstance(layer, nn.ReLU):
            x = x.clamp_min(0)
    return (1 / (1 + (-x).exp())).view(len(features), len(prototypes))


def means(z: Tensor, y: Tensor) -> Tensor:
    return torch.stack([z[y == n].mean(0) for n in range(3)])


@pytest.mark.parametrize("spec", [IMAGES, VECTORS], ids=["maps", "vectors"])
def test_the_loss_and_its_gradient_are_those_of_the_equations(spec: EpisodeSpec) -> None:
    module, batch = made(spec).train(), episodes(spec, shots=2)
    batch = batch._replace(query=Examples(batch.query.x.flip(1), batch.query.y.flip(1)))  # labels in any order
    losses, expected = module.meta_batch_loss(batch).loss, []
    for t in range(2):
        support, query = task(batch, t)
        z = module.backbone(torch.cat([support.x, query.x]))  # in training by the statistics of this batch
        prototypes, features = means(z[: len(support.y)], support.y), z[len(support.y) :]
        r = scores_by_hand(module, prototypes, features, training=True)
        expected.append(
            sum((r[i, n] - float(y == n)) ** 2 for i, y in enumerate(query.y) for n in range(3)) / r.numel()
        )
    hand = torch.stack([torch.as_tensor(e) for e in expected])
    assert relative_error(losses, hand) < 1e-10
    parameters = list(module.parameters())
    found, wanted = (torch.autograd.grad(loss.mean(), parameters) for loss in (losses, hand))
    assert relative_error(*(torch.cat([g.flatten() for g in each]) for each in (found, wanted))) < 1e-9


@pytest.mark.parametrize("spec", [IMAGES, VECTORS], ids=["maps", "vectors"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training mode"])
def test_predictions_are_scores_by_running_statistics(spec: EpisodeSpec, training: bool) -> None:
    """The same holds for a module in training mode."""
    module = made(spec)
    with torch.no_grad():
        for norm in task_norms(module).values():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    module.train(training)
    support, query = task(episodes(spec, shots=2), 0)
    found = module.predict(module.adapt(support, 3), query.x)
    module.eval()
    prototypes = means(module.backbone(support.x), support.y)
    expected = scores_by_hand(module, prototypes, module.backbone(query.x), training=False)
    assert relative_error(found.exp(), expected) < 1e-10
    torch.testing.assert_close(found.softmax(-1), expected / expected.sum(-1, keepdim=True))


def test_a_prediction_depends_neither_on_other_queries_nor_on_the_order_and_any_way_is_served() -> None:
    module = made().eval()
    support, query = task(episodes(IMAGES, shots=3), 0)
    outputs = module.predict(module.adapt(support, 3), query.x)
    assert not module.transductive
    torch.testing.assert_close(module.predict(module.adapt(support, 3), query.x[:1]), outputs[:1])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    turned = Examples(support.x[order], support.y[order])
    torch.testing.assert_close(module.predict(module.adapt(turned, 3), query.x), outputs)
    two = support.y < 2
    fewer = module.predict(module.adapt(Examples(support.x[two], support.y[two]), 2), query.x)
    torch.testing.assert_close(fewer, outputs[:, :2])


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_running_statistics_of_both_networks_follow_training(strategy: Any) -> None:
    module = lm.RelationNet(Conv4(1, 4, blocks=2), channels=4, width=4, strategy=strategy)
    trainer(max_steps=2).fit(module, toys.pictures())
    norms = task_norms(module)
    assert {name.split(".")[0] for name in norms} == {"backbone", "relation"}
    for norm in norms.values():
        assert norm.running_mean is not None
        assert int(norm.num_batches_tracked) == 2  # type: ignore[arg-type]
        assert norm.running_mean.abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_certain_scores_leave_loss_and_gradient_finite(dtype: torch.dtype) -> None:
    module, batch = made().to(dtype), episodes(IMAGES, dtype=dtype)
    with torch.no_grad():
        module.relation[-1].weight.mul_(1e4)  # type: ignore[operator]
    loss = module.meta_batch_loss(batch).loss.mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("wrap", "shape"),
    [
        (lambda network: network, (4, 4, 4)),
        (Frozen, (4, 4, 4)),
        (lambda network: nn.Sequential(nn.Identity(), network), (4, 4, 4)),
        (lambda network: nn.Sequential(network.blocks, nn.Flatten()), (4, 4, 4)),
        (lambda network: nn.Sequential(network, nn.Linear(64, 6)), (6, 1, 1)),
        (lambda network: Conv4(1, 4, blocks=2, spatial="mean"), (4, 1, 1)),
        (lambda network: LeNet(1, 16, features=5), (5, 1, 1)),
    ],
)
def test_channels_are_by_default_those_of_the_map_that_the_backbone_flattens(wrap: Any, shape: Any) -> None:
    spec = EpisodeSpec("classification", (1, 16, 16), 3)
    torch.manual_seed(0)
    module, backbone = lm.RelationNet(wrap(Conv4(1, 4, blocks=2)), width=3, episodes=spec), Conv4(1, 4, blocks=2)
    assert module.map_shape == shape
    given = lm.RelationNet(wrap(backbone), channels=shape[0], width=3, episodes=spec)
    given.load_state_dict(module.state_dict())
    x, y = torch.randn(6, 1, 16, 16), torch.arange(3).repeat(2)
    outputs = [each.eval().predict(each.adapt(Examples(x, y), 3), x) for each in (module, given)]
    assert torch.equal(*outputs)


def test_a_map_that_is_not_square_has_a_channel_for_each_feature_by_default() -> None:
    spec = EpisodeSpec("classification", (1, 8, 16), 3)
    assert lm.RelationNet(Conv4(1, 4, blocks=2), width=3, episodes=spec).map_shape == (32, 1, 1)


@pytest.mark.parametrize("earlier", [True, False])
def test_checkpoints_have_the_channels_of_the_version_that_wrote_them(earlier: bool, tmp_path: Path) -> None:
    """Earlier versions did not store the number; each feature was a channel by default."""
    module = lm.RelationNet(Conv4(1, 4, blocks=2), channels=64 if earlier else None, width=3)
    fitting = trainer(max_steps=1)
    fitting.fit(module, toys.pictures())
    fitting.save_checkpoint(tmp_path / "model.ckpt")
    if earlier:
        checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
        checkpoint["lightning_meta"]["init_args"]["channels"] = None
        torch.save(checkpoint, tmp_path / "model.ckpt")
    loaded = lm.load(tmp_path / "model.ckpt")
    assert loaded.map_shape == module.map_shape == ((64, 1, 1) if earlier else (4, 4, 4))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: made(channels=3), "channels: the backbone's 64 features are not square maps of 3 channels"),
        (lambda: made(channels=32), "features are not square maps of 32 channels"),
        (
            lambda: made(EpisodeSpec("classification", (1, 8, 16), 3), Conv4(1, 4, blocks=2), channels=4),
            "features are not square maps of 4 channels; .* square images",
        ),
        (lambda: made(channels=0), "channels"),
        (lambda: made(hidden=0), "hidden"),
        (lambda: made(width=0), "width"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        make()
    assert "\n" not in str(error.value)
