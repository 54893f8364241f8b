"""Networks that people bring: adapting, evaluating and predicting are right, and leave nothing behind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

from lightning_meta import Episode, Examples
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML, MetaModule, ProtoNet
from lightning_meta.nn.checks import SLOWLY_MAPPED
from lightning_meta.nn.stateless import stateless_call, tensors_of
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing.comparing import differing, named_tensors, relative_error

TASKS, SIZE, WAYS = 3, 6, 3

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{SLOWLY_MAPPED}:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning"),
]


class Layers(nn.Module):
    """Layers and a function of them."""

    def __init__(self, forward: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def linear() -> nn.Linear:
    return nn.Linear(SIZE, SIZE)


def two(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    outputs: Tensor = second(torch.tanh(first(x)))
    return outputs


def one(x: Tensor, layer: nn.Module) -> Tensor:
    return torch.tanh(layer(x))


def unused(x: Tensor, layer: nn.Module, other: nn.Module) -> Tensor:
    return torch.tanh(layer(x))


def always_dropout(x: Tensor, layer: nn.Module) -> Tensor:
    return F.dropout(torch.tanh(layer(x)), 0.3)


def under_two_names() -> nn.Module:
    layer = linear()
    return Layers(two, layer, layer)


def parametrized_under_two_names() -> nn.Module:
    layer = parametrizations.weight_norm(linear())
    return Layers(two, layer, layer)


def tied() -> nn.Module:
    first, second = linear(), linear()
    second.weight = first.weight
    return Layers(two, first, second)


def half_frozen() -> nn.Module:
    network = Layers(two, linear(), linear())
    network.layers[0].requires_grad_(False)
    return network


class Embeds(nn.Module):
    """An embedding whose weights read the output as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(9, SIZE), nn.Linear(SIZE, 9)
        self.output.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.output(torch.tanh(self.embedding((x > 0).long()).mean(1) + x))
        return outputs


class Listed(nn.Module):
    """A list and a dictionary of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.some = nn.ParameterList([torch.randn(SIZE, SIZE), torch.randn(SIZE)])
        self.others = nn.ParameterDict({"w": torch.randn(SIZE, SIZE)})

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.some[0] + self.some[1]) @ self.others["w"]


class Complex(nn.Module):
    """A complex parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(SIZE, 4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.w.dtype) @ self.w).abs().to(x.dtype)


class Buffers(nn.Module):
    """Buffers of all kinds; none of them changes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()
        self.waves: Tensor
        self.order: Tensor
        self.mask: Tensor
        self.kept: Tensor
        self.transient: Tensor
        self.register_buffer("waves", torch.randn(SIZE, SIZE, dtype=torch.complex64))
        self.register_buffer("order", torch.randperm(SIZE))
        self.register_buffer("mask", torch.full((SIZE, SIZE), -torch.inf).triu(1))
        self.register_buffer("kept", torch.tensor([True, False] * 3))
        self.register_buffer("transient", torch.randn(SIZE), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        waves = (torch.fft.fft(h).to(self.waves.dtype) @ self.waves).abs().to(h.dtype)
        mixed = waves[:, self.order] * self.kept
        return mixed + h * self.transient + h @ self.mask.softmax(1).to(h.dtype)


class Counts(nn.Module):
    """A buffer that counts forward passes, by assignment or in place."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.linear, self.in_place = linear(), in_place
        self.runs: Tensor
        self.register_buffer("runs", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.runs += 1
        else:
            self.runs = self.runs + 1
        return torch.tanh(self.linear(x))


class Follows(nn.Module):
    """A moving average of its features, which `vmap` cannot write."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()
        self.average: Tensor
        self.register_buffer("average", torch.zeros(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.linear(x))
        self.average.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        return h


class Remembers(nn.Module):
    """Keeps what it computed, as for a picture of its features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()
        self.last: Tensor | None = None
        self.log: list[Tensor] = []
        self.by_name: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.last = torch.tanh(self.linear(x))
        self.log.append(self.last)
        self.by_name["last"] = self.last
        return self.last


class Recurrent(nn.Module):
    """The last output of a recurrent layer over three copies of the input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(SIZE, SIZE, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x[:, None].expand(-1, 3, -1))[0][:, -1]
        return outputs


class Hooked(nn.Module):
    """Hooks before and after a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()
        self.linear.register_forward_pre_hook(doubled)
        self.linear.register_forward_hook(shifted)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


def doubled(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (2 * inputs[0],)


def shifted(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + 1


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "under two names": under_two_names,
    "parametrized under two names": parametrized_under_two_names,
    "tied": tied,
    "embedding tied with the output": Embeds,
    "weight_norm": lambda: Layers(one, parametrizations.weight_norm(linear())),
    "weight_norm, old": lambda: Layers(one, nn.utils.weight_norm(linear())),
    "spectral_norm": lambda: Layers(one, parametrizations.spectral_norm(linear())),
    "spectral_norm, old": lambda: Layers(one, nn.utils.spectral_norm(linear())),
    "orthogonal": lambda: Layers(one, parametrizations.orthogonal(linear())),
    "unused layer": lambda: Layers(unused, linear(), linear()),
    "half frozen": half_frozen,
    "lists of parameters": Listed,
    "complex parameter": Complex,
    "buffers": Buffers,
    "counts in place": lambda: Counts(in_place=True),
    "counts by assignment": lambda: Counts(in_place=False),
    "moving average": Follows,
    "remembers": Remembers,
    "hooks": Hooked,
    "RNN": lambda: Recurrent("RNN"),
    "GRU": lambda: Recurrent("GRU"),
    "LSTM": lambda: Recurrent("LSTM"),
    "LayerNorm": lambda: nn.Sequential(linear(), nn.LayerNorm(SIZE), nn.Tanh()),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.TransformerEncoderLayer(2, 1, 4, 0.0, batch_first=True), nn.Flatten()
    ),
    "dropout in evaluation": lambda: Layers(always_dropout, linear()),
}
NOT_MAPPED_WITH_GRADIENTS = {"spectral_norm", "spectral_norm, old", "moving average", "RNN", "GRU", "LSTM"}
COUNTING = {"counts in place", "counts by assignment", "moving average", "spectral_norm", "spectral_norm, old"}
RANDOM = {"dropout in evaluation"}
UNPICKLABLE = {"weight_norm", "parametrized under two names", "spectral_norm", "orthogonal"}  # torch refuses it
METHODS: dict[str, Callable[..., MetaModule]] = {
    "MAML": lambda network, **options: MAML(network, inner_lr=0.5, inner_steps=2, **options),
    "ProtoNet": ProtoNet,
}


def make(method: str, network: str, strategy: str = "auto") -> MetaModule:
    torch.manual_seed(0)
    spec = EpisodeSpec("classification", (SIZE,), WAYS, 8)
    return METHODS[method](NETWORKS[network](), strategy=strategy, episodes=spec).train()


def episode(dtype: torch.dtype = torch.float32) -> Episode:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(WAYS).repeat_interleave(2).expand(TASKS, -1)
    support, query = (Examples(torch.randn(TASKS, 2 * WAYS, SIZE, generator=g).to(dtype), y) for _ in range(2))
    return Episode(support, query, WAYS, torch.arange(TASKS))


def meta_gradient(module: MetaModule, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    trained = [p for p in module.parameters() if p.requires_grad]
    loss = module.meta_batch_loss(episode(dtype)).loss.mean()
    found = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    return torch.cat([torch.view_as_real(g).flatten() if g.is_complex() else g.flatten() for g in found])


def outputs_after_adapting(module: MetaModule) -> Tensor:
    data = episode()
    return module.predictor(data.support.x[0], [0, 0, 1, 1, 2, 2]).outputs(data.query.x[0])


def leftovers(module: nn.Module) -> list[str]:
    """Tensors that still belong to a gradient or a map that has ended, and parameters that are none any more."""
    found = []
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            for leaf in tree_leaves(value) if isinstance(value, Tensor | list | tuple | dict) else ():
                if isinstance(leaf, Tensor) and (is_functorch_wrapped_tensor(leaf) or leaf.grad_fn is not None):
                    found.append(f"{path}.{name}")
        found += [
            f"{path}.{n}" for n, p in part._parameters.items() if p is not None and not isinstance(p, nn.Parameter)
        ]
    return found


def identities(module: nn.Module) -> dict[str, int]:
    return {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}


EVERY = [(method, network) for method in METHODS for network in NETWORKS]


@pytest.mark.parametrize(("method", "network"), EVERY)
def test_prediction_leaves_no_trace(method: str, network: str) -> None:
    module = make(method, network)
    before, objects, random = named_tensors(module), identities(module), torch.get_rng_state()
    first = outputs_after_adapting(module)
    second = outputs_after_adapting(module)
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert not differing(before, named_tensors(module))
    assert identities(module) == objects
    assert torch.equal(torch.get_rng_state(), random)
    assert not leftovers(module)
    assert torch.equal(outputs_after_adapting(copy.deepcopy(module)), first)
    if network not in UNPICKLABLE:
        assert pickle.loads(pickle.dumps(make(method, network).state_dict())).keys() == module.state_dict().keys()


@pytest.mark.parametrize(("method", "network"), EVERY)
def test_training_changes_no_parameter(method: str, network: str) -> None:
    """Only the optimiser changes weights; the network itself may change its buffers."""
    module = make(method, network)
    objects, before = identities(module), named_tensors(module)
    gradient = meta_gradient(module)
    assert gradient.isfinite().all()
    assert gradient.norm() > 0
    assert identities(module) == objects
    changed = differing(before, named_tensors(module))
    assert not set(changed) & dict(module.named_parameters()).keys()
    assert network in COUNTING or not changed
    assert not [name for name in leftovers(module) if "average" in name or "runs" in name]
    module.eval()
    assert outputs_after_adapting(copy.deepcopy(module)).isfinite().all()


@pytest.mark.parametrize(("method", "network"), EVERY)
def test_nothing_of_a_step_is_kept_in_attributes(method: str, network: str) -> None:
    module = make(method, network)
    meta_gradient(module)
    assert not leftovers(module)
    copy.deepcopy(module)


@pytest.mark.parametrize(
    ("method", "network"),
    [(m, n) for m, n in EVERY if n not in NOT_MAPPED_WITH_GRADIENTS and n not in RANDOM],
)
def test_vmap_has_the_gradients_of_the_loop(method: str, network: str) -> None:
    modules = [make(method, network, strategy).double() for strategy in ("vmap", "loop")]
    if network in COUNTING:
        with pytest.raises(UserError, match=r"strategy: vmap cannot visit the tasks: .*; use strategy loop, or auto"):
            meta_gradient(modules[0], torch.float64)
        return
    by_vmap, by_loop = (meta_gradient(module, torch.float64) for module in modules)
    single = any(
        t.dtype == torch.complex64 for t in [*modules[0].parameters(), *modules[0].buffers()]
    )  # `double` leaves it as it is
    assert relative_error(by_vmap, by_loop) < (1e-5 if single else 1e-9)


@pytest.mark.parametrize("network", sorted(NOT_MAPPED_WITH_GRADIENTS))
def test_auto_visits_in_a_loop_what_cannot_be_mapped(network: str) -> None:
    found, expected = (meta_gradient(make("MAML", network, strategy)) for strategy in ("auto", "loop"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("network", ["half frozen", "unused layer"])
def test_what_has_no_gradient_stays(network: str) -> None:
    module = make("MAML", network)
    predictor = module.predictor(episode().support.x[0], [0, 0, 1, 1, 2, 2])
    part = "layers.0" if network == "half frozen" else "layers.1"
    for name, before in module.named_parameters():
        if part in name:
            after = [t for n, t in predictor.state.items() if n in name or name in n]
            assert all(torch.equal(t, before) for t in after)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_stateless_call_reads_the_given_tensors(network: str) -> None:
    """Given parameters determine the outputs, wherever the network stores its own."""
    torch.manual_seed(0)
    module, other = NETWORKS[network]().eval(), NETWORKS[network]().eval()
    x = torch.randn(4, SIZE)
    given = {**tensors_of(other)[0], **tensors_of(other)[1]}
    before, kept = named_tensors(module), leftovers(module)  # a weight norm of the old kind keeps a weight
    torch.manual_seed(1)
    found = stateless_call(module, {name: t.detach().clone() for name, t in given.items()}, x, "stored")[0]
    torch.manual_seed(1)
    with torch.no_grad():
        expected = other(x)
    assert relative_error(found, expected) < 1e-6
    assert not differing(before, named_tensors(module))
    assert leftovers(module) == kept
