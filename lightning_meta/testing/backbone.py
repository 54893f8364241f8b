"""The tests of a backbone."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from lightning_meta.configuration import Described, build, describe
from lightning_meta.nn.normalization import per_task
from lightning_meta.nn.stateless import Tensors, stateless_call, tensors_of
from lightning_meta.testing.comparing import differing, named_tensors, relative_error

EXAMPLES, TASKS = 6, 3


class BackboneTests:
    """Inherit it, and say by `make` which network is tested, and by `input_shape` what it takes."""

    input_shape: tuple[int, ...] = (1, 16, 16)
    """Of one example."""

    @abstractmethod
    def make(self) -> nn.Module:
        """A new network."""

    def ready(self) -> tuple[nn.Module, Tensor]:
        """The network in float64, normalising per task, and inputs `(T, M, *input_shape)`."""
        torch.manual_seed(0)
        network = per_task(self.make()).double()
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.1 * torch.randn_like(p))
        return network, torch.randn(TASKS, EXAMPLES, *self.input_shape, dtype=torch.float64)

    def test_features_are_flat(self) -> None:
        """An example becomes a vector."""
        network, x = self.ready()
        features = network(x[0])
        assert features.dim() == 2, f"features are {tuple(features.shape)}; expected (examples, features)"
        assert len(features) == EXAMPLES, f"{EXAMPLES} examples became {len(features)} rows of features"

    def test_examples_are_apart(self) -> None:
        """With stored statistics an example's features do not depend on the others."""
        network, x = self.ready()
        network.eval()
        tensors = {**tensors_of(network)[0], **tensors_of(network)[1]}
        together = stateless_call(network, tensors, x[0], "stored")[0]
        alone = stateless_call(network, tensors, x[0, :1], "stored")[0]
        apart = relative_error(alone.detach(), together[:1].detach())
        assert apart < 1e-9, f"an example's features change by {apart:.1e} with what else is in the batch"

    def test_a_forward_pass_changes_nothing(self) -> None:
        """No parameter or buffer moves when the network is run on tensors from outside, in training mode."""
        network, x = self.ready()
        network.train()
        before = named_tensors(network)
        parameters, buffers = tensors_of(network)
        stateless_call(network, {**parameters, **buffers}, x[0], "batch")
        changed = differing(before, named_tensors(network))
        assert not changed, f"a forward pass changed {changed}: a network under adaptation keeps nothing of its inputs"

    def test_gradients_map_over_tasks(self) -> None:
        """`vmap` of the gradient is the loop of gradients."""
        network, x = self.ready()
        parameters, buffers = tensors_of(network)

        def one(x: Tensor) -> Tensors:
            return grad(lambda p: _energy(network, {**p, **buffers}, x))(parameters)

        try:
            mapped = vmap(one)(x)
        except RuntimeError as error:
            raise AssertionError(f"the network cannot be mapped over tasks by torch.func.vmap: {error}") from error
        for name, gradient in mapped.items():
            apart = relative_error(gradient, torch.stack([one(task)[name] for task in x]))
            assert apart < 1e-9, f"the gradient of {name} under vmap differs by {apart:.1e} from the loop's"

    def test_second_derivatives(self) -> None:
        """The gradient of an inner step against a central difference, along a random direction."""
        network, x = self.ready()
        parameters, buffers = tensors_of(network)

        def after_a_step(p: Tensors) -> Tensor:
            step = grad(lambda p: _energy(network, {**p, **buffers}, x[0]))(p)
            return _energy(network, {**{n: p[n] - 0.01 * step[n] for n in p}, **buffers}, x[1])

        start = {name: p.detach() for name, p in parameters.items()}
        direction = {name: torch.randn_like(p) for name, p in start.items()}
        found = sum((g * direction[name]).sum() for name, g in grad(after_a_step)(start).items())
        h = 1e-7  # small, as rectifiers and maxima have kinks
        ends = [after_a_step({n: p + s * h * direction[n] for n, p in start.items()}) for s in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * h)
        apart = float(abs(found - expected) / abs(expected).clamp_min(1e-12))
        assert apart < 1e-2, f"the gradient through an inner step is off by {apart:.1e}: is something detached?"

    def test_it_is_made_again_from_plain_data(self) -> None:
        """A `Described` network is stored in checkpoints by its class and arguments."""
        network = self.make()
        if isinstance(network, Described):
            again = build(describe(network), allow=[type(network)])
            shapes = [{n: t.shape for n, t in named_tensors(made).items()} for made in (network, again)]
            assert shapes[0] == shapes[1], "made again from its arguments, the network has tensors of other shapes"


def _energy(network: nn.Module, tensors: Tensors, x: Tensor) -> Tensor:
    features = stateless_call(network, tensors, x, "batch")[0]
    weights = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features)
    return (features * weights).sum().square() / features.numel() + features.square().mean()
