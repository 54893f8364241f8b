"""MTAN against its equations and LibMTL."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.batches import SPLITS, Examples
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.multitask import MTAN
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import Classification, Regression, TasksSpec
from lightning_meta.weightings import CAGrad
from tests.multitask.test_modules import made
from tests.multitask.toys import Given, data, results_of, train, trainer

ROWS = {"b": torch.tensor([3, 0]), "a": torch.tensor([1, 3, 4])}


def of_shape(*shape: int) -> TasksSpec:
    return TasksSpec({"a": Regression(1), "b": Classification(3)}, dict.fromkeys("ab", shape))


def normalised(z: Tensor, norm: nn.Module) -> Tensor:
    dims = [d for d in range(z.dim()) if d != 1]
    z = (z - z.mean(dims, keepdim=True)) / (z.var(dims, unbiased=False, keepdim=True) + 1e-5).sqrt()
    shape = (1, -1, *[1] * (z.dim() - 2))
    return z * norm.get_parameter("weight").view(shape) + norm.get_parameter("bias").view(shape)


def mask(attention: Any, z: Tensor) -> Tensor:
    """h(g(z)): what equation 2 says, with the weights of a module's attention."""
    for layer, norm, nonlinear in ((0, 1, torch.relu), (3, 4, torch.sigmoid)):
        weight, bias = attention[layer].weight, attention[layer].bias
        z = torch.einsum("mc...,oc->mo...", z, weight.flatten(1)) + bias.view(1, -1, *[1] * (z.dim() - 2))
        z = nonlinear(normalised(z, attention[norm]))
    return z


def test_linear_stages_are_attended_to_by_the_equations() -> None:
    module = made(MTAN, of_shape(4), backbone=MLP(4, (6, 5, 7)))
    x = torch.randn(5, 4, dtype=torch.float64)
    found = module(x, ROWS)
    for name, i in ROWS.items():
        k = module.names.index(name)
        attended = p = x
        for j, stage in enumerate(module.backbone.layers):
            p = stage(p)
            u = p[i] if j == 0 else torch.cat([p[i], module.between[j - 1](attended)], 1)
            attended = mask(module.attention[k][j], u) * p[i]
        torch.testing.assert_close(found[name], module.heads[k](attended), rtol=1e-10, atol=1e-10)


def test_blocks_of_two_convolutional_stages_are_attended_to_by_the_equations() -> None:
    stages = [nn.Sequential(nn.Conv2d(i, o, 3, s, 1), nn.ReLU()) for i, o, s in ((2, 3, 1), (3, 4, 1), (4, 5, 2))]
    last = nn.Sequential(nn.Conv2d(5, 6, 3, 1, 1), nn.ReLU())
    network = nn.Sequential(*stages, last, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    module = made(MTAN, of_shape(2, 8, 8), backbone=network, stages_per_block=2)
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    found = module(x, ROWS)
    first, pooled = module.between
    a, b, c, d, mean = module.backbone
    u1 = a(x)
    p1 = b(u1)
    u2 = c(p1)
    p2 = d(u2)
    for name, i in ROWS.items():
        k = module.names.index(name)
        one, two, three = module.attention[k]
        attended = mask(one, u1[i]) * p1[i]
        again = mask(two, torch.cat([u2[i], F.relu(first[0](attended))], 1)) * p2[i]
        p3 = mean(p2)[i]
        end = mask(three, torch.cat([p3, pooled(again)], 1)) * p3
        torch.testing.assert_close(found[name], module.heads[k](end), rtol=1e-10, atol=1e-10)
    assert not torch.equal(first[0].weight, c[0].weight)


class Encoder(nn.Module):
    """Named as LibMTL wants a ResNet, with small layers of two parts each."""

    feature_dim = 512

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(2)
        widths, parts = (64, 64, 128, 256, 512), []
        for i in range(4):
            down = nn.Sequential(nn.Conv2d(widths[i], widths[i + 1], 1, stride=1 if i == 0 else 2), nn.ReLU())
            same = nn.Sequential(nn.Conv2d(widths[i + 1], widths[i + 1], 1), nn.ReLU())
            parts.append(nn.Sequential(down, same))
        self.layer1, self.layer2, self.layer3, self.layer4 = parts


class Stages(nn.Module):
    """The same network for us: a stem, and two stages for each layer."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        stem = nn.Sequential(encoder.conv1, encoder.bn1, encoder.relu, encoder.maxpool)
        layers = [encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
        first = nn.Sequential(stem, layers[0][0])
        self.parts = nn.ModuleList([first, layers[0][1], *(part for layer in layers[1:] for part in layer)])

    def stages(self) -> list[nn.Module]:
        return list(self.parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x.mean((-2, -1))


class OnMaps(MTAN):
    """Heads behind maps, as LibMTL's decoders."""

    def head(self, name: str, features: int, hidden: Any = None, dropout: Any = None) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), super().head(name, features, hidden, dropout))


def test_it_equals_libmtl() -> None:
    """The test replaces f by LibMTL's, a residual block and pooling."""
    if "torchvision" not in sys.modules:
        pytest.importorskip("torchvision", exc_type=ImportError)
    utils: Any = types.ModuleType("torchvision.models.utils")  # of an older torchvision, which LibMTL imports
    utils.load_state_dict_from_url = torch.hub.load_state_dict_from_url
    sys.modules.setdefault("torchvision.models.utils", utils)
    peer = pytest.importorskip("LibMTL.architecture.MTAN", exc_type=ImportError)
    torch.manual_seed(0)
    device = torch.device("cpu")
    module = made(OnMaps, of_shape(3, 16, 16), backbone=Stages(Encoder()), stages_per_block=2)
    heads = nn.ModuleDict(dict(zip(module.names, module.heads, strict=True)))
    theirs = peer.MTAN(module.names, Encoder, heads, rep_grad=False, multi_input=False, device=device).double()
    network = theirs.encoder
    mapped = [network.shared_conv, *(part for layer in network.shared_layer.values() for part in layer)]
    first, *others = module.backbone.parts
    for n, (ours, part) in enumerate(zip([*first, *others], mapped, strict=True)):
        ours.load_state_dict((part[0] if n % 2 else part).state_dict())  # a layer without its last part is a list
    for j in range(4):
        for k in range(2):
            module.attention[k][j].load_state_dict(network.encoder_att[str(j)][k].state_dict())
    pool = network.down_sampling
    for j, f in enumerate(network.encoder_block_att):
        module.between[j] = nn.Sequential(f, pool)
    module.eval()
    theirs.eval()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected, found = theirs(x), module(x, {name: torch.arange(4) for name in module.names})
    for name in module.names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)


def test_pictures_are_attended_to() -> None:
    """Two tasks, one per colour channel, are learned from one convolutional backbone."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (64, 2), generator=generator)
    x = (255 * y[:, :, None, None] * torch.rand(64, 2, 16, 16, generator=generator)).byte()
    task_set = TaskSet.of_examples({name: Examples(x, y[:, i]) for i, name in enumerate("ab")})
    tasks = {"a": Classification(2), "b": Classification(2)}
    given = MultiTaskDataModule(Given(tasks, dict.fromkeys(SPLITS, task_set)), batch_size=16)
    torch.manual_seed(0)
    module = MTAN(Conv4(2, width=4, blocks=2))
    trainer(30).fit(module, datamodule=given)
    assert results_of(module, given)["test/score"] > 0.9


def test_attention_is_no_part_of_what_cagrad_combines() -> None:
    module = train(MTAN, data(), 3, weighting=CAGrad())
    shared = {id(p) for p in module.shared_parameters()}
    assert shared == {id(p) for part in (module.backbone, module.between) for p in part.parameters()}


def test_what_it_cannot_attend_to_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"block 0 of Conv4 are \(4, 8, 8\) and \(64,\); set stages_per_block"):
        made(MTAN, of_shape(2, 16, 16), backbone=Conv4(2, width=4, blocks=2), stages_per_block=2)
    with pytest.raises(UserError, match=r"cannot be split into stages"):
        made(MTAN, of_shape(4), backbone=nn.Linear(4, 4))
