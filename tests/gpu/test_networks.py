"""Networks that people bring, on a card: their meta-gradients are those of the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.batches import Episode, Examples
from lightning_meta.meta import MAML
from lightning_meta.tasks import EpisodeSpec
from tests.gpu.card import BOTH
from tests.meta.oracles import episodes, relative_error, roughen

SEQUENCES = EpisodeSpec("classification", (5, 6), 3)
CPU = torch.device("cpu")


class Recurrent(nn.Module):
    """The last output of a recurrent layer on sequences `(M, 5, 6)`."""

    def __init__(self, layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layer = layer(6, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


class Attention(nn.Module):
    """Attention of a sequence to itself, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0].mean(1)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def transformer(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, dropout, batch_first=True), Mean())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "RNN": lambda: Recurrent(nn.RNN),
    "attention": Attention,
    "transformer": transformer,
    "LayerNorm": lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Tanh(), nn.Flatten()),
    "InstanceNorm": lambda: nn.Sequential(nn.InstanceNorm1d(5, affine=True), nn.Tanh(), nn.Flatten()),
    "GroupNorm": lambda: nn.Sequential(nn.Conv1d(5, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten()),
    "BatchNorm": lambda: nn.Sequential(nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten()),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Tanh(), Mean()),
}


def on(batch: Episode, device: torch.device) -> Episode:
    support, query = (Examples(part.x.to(device), part.y.to(device)) for part in (batch.support, batch.query))
    return batch._replace(support=support, query=query, tasks=batch.tasks.to(device))


def module_of(backbone: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype, **options: object) -> MAML:
    torch.manual_seed(3)
    module = MAML(backbone(), 0.1, 2, episodes=SEQUENCES, **options)  # type: ignore[arg-type]
    roughen(module)
    return module.to(device, dtype)


def meta_gradient(module: MAML, device: torch.device, dtype: torch.dtype) -> Tensor:
    batch = on(episodes(SEQUENCES, dtype=dtype), device)
    torch.manual_seed(5)
    with module.exact_arithmetic():
        loss = module.meta_batch_loss(batch).loss.mean()
        found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found]).cpu()


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_networks_meta_gradient_is_that_of_the_cpu(
    name: str, recompute: bool, first_order: bool, device: torch.device
) -> None:
    dtype, options = torch.float64, {"first_order": first_order}
    expected = meta_gradient(module_of(NETWORKS[name], CPU, dtype, strategy="loop", **options), CPU, dtype)
    module = module_of(NETWORKS[name], device, dtype, recompute=recompute, **options)
    assert relative_error(meta_gradient(module, device, dtype), expected) < 1e-8


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_so_in_float32(name: str, device: torch.device) -> None:
    expected = meta_gradient(module_of(NETWORKS[name], CPU, torch.float64, strategy="loop"), CPU, torch.float64)
    found = meta_gradient(module_of(NETWORKS[name], device, torch.float32), device, torch.float32)
    assert relative_error(found, expected) < 1e-4


RANDOM: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.4), nn.Tanh(), nn.Flatten()),
    "alpha dropout": lambda: nn.Sequential(nn.Linear(6, 4), nn.AlphaDropout(0.4), nn.Flatten()),
    "dropout of channels": lambda: nn.Sequential(nn.Conv1d(5, 4, 3), nn.Dropout1d(0.4), nn.Flatten()),
    "transformer": lambda: transformer(0.3),
}


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("name", RANDOM)
def test_recomputation_draws_again_what_was_drawn(name: str, strategy: str, device: torch.device) -> None:
    found = []
    for recompute in (False, True):
        module = module_of(RANDOM[name], device, torch.float64, recompute=recompute, strategy=strategy)
        module.train()
        found.append(meta_gradient(module, device, torch.float64))
    assert relative_error(found[1], found[0]) < 1e-10


@pytest.mark.parametrize("name", RANDOM)
def test_random_layers_draw_anew_in_every_step(name: str, device: torch.device) -> None:
    module = module_of(RANDOM[name], device, torch.float64)
    module.train()
    batch = on(episodes(SEQUENCES), device)
    losses = [float(module.meta_batch_loss(batch).loss.mean().detach()) for _ in range(2)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("where", BOTH)
def test_adapting_leaves_parameters_and_buffers_bit_for_bit(where: str) -> None:
    device = torch.device(where)
    module = module_of(NETWORKS["BatchNorm"], device, torch.float32)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batch = on(episodes(SEQUENCES, dtype=torch.float32), device)
    module.predictor(batch.support.x[0], batch.support.y[0]).outputs(batch.query.x[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
