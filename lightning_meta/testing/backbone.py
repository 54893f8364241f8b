"""Tests of a backbone."""

from __future__ import annotations

import warnings
from abc import abstractmethod

import torch
from torch import Tensor, nn

from lightning_meta.building import build
from lightning_meta.describing import Described, describe
from lightning_meta.functional import TaskMap
from lightning_meta.functional.exact import ExactDerivatives
from lightning_meta.nn.checks import CANNOT_BE_MAPPED, SLOWLY_MAPPED
from lightning_meta.nn.normalization import per_task
from lightning_meta.nn.stateless import Tensors, stateless_call, tensors_of
from lightning_meta.testing.comparing import differing, named_tensors, relative_error
from lightning_meta.testing.meta_gradients import MetaGradients

EXAMPLES, TASKS = 6, 3


class BackboneTests:
    """Subclass it, return the network to test from `make`, and set `input_shape`."""

    input_shape: tuple[int, ...] = (1, 16, 16)
    """Shape of one example."""

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
        """Each example is mapped to a feature vector."""
        network, x = self.ready()
        features = network(x[0])
        assert features.dim() == 2, f"features are {tuple(features.shape)}; expected (examples, features)"
        assert len(features) == EXAMPLES, (
            f"{EXAMPLES} examples gave {len(features)} rows of features; expected one row each"
        )

    def test_examples_are_apart(self) -> None:
        """With stored statistics, the features of an example do not depend on other examples."""
        network, x = self.ready()
        network.eval()
        tensors = {**tensors_of(network)[0], **tensors_of(network)[1]}
        together = stateless_call(network, tensors, x[0], "stored")[0]
        alone = stateless_call(network, tensors, x[0, :1], "stored")[0]
        error = relative_error(alone.detach(), together[:1].detach())
        assert error < 1e-9, (
            f"an example's features change by {error:.1e}, relatively, with what else is in the batch; expected no "
            "change in evaluation mode"
        )

    def test_a_forward_pass_changes_nothing(self) -> None:
        """A functional call in training mode changes no parameter or buffer of the network."""
        network, x = self.ready()
        network.train()
        before = named_tensors(network)
        parameters, buffers = tensors_of(network)
        stateless_call(network, {**parameters, **buffers}, x[0], "batch")
        changed = differing(before, named_tensors(network))
        assert not changed, (
            f"a functional call in training mode changed {changed}; expected every parameter and buffer to stay as it "
            "was"
        )

    def test_second_order_meta_gradients(self) -> None:
        """The gradient through two inner steps agrees between finite differences, the loop over tasks and `vmap`."""
        self._check_meta_gradients(first_order=False)

    def test_first_order_meta_gradients(self) -> None:
        """First-order gradients agree in the same way."""
        self._check_meta_gradients(first_order=True)

    def test_it_is_made_again_from_plain_data(self) -> None:
        """A `Described` network is stored in checkpoints by its class and arguments."""
        network = self.make()
        if isinstance(network, Described):
            again = build(describe(network), allow=[type(network)])
            shapes = [{n: t.shape for n, t in named_tensors(made).items()} for made in (network, again)]
            assert shapes[0] == shapes[1], (
                f"a network rebuilt from its arguments has tensors of shapes {shapes[1]}; expected {shapes[0]}"
            )

    def _check_meta_gradients(self, first_order: bool) -> None:
        network, x = self.ready()
        parameters, buffers = tensors_of(network)

        def forward(p: Tensors, x: Tensor) -> Tensor:
            with ExactDerivatives():
                return stateless_call(network, {**p, **buffers}, x, "batch")[0]

        meta = MetaGradients(forward, parameters, x[:-1], x[1:], first_order, learning_rate=0.01)
        by_loop = meta.gradient(TaskMap("loop"))
        noise = torch.randn_like(by_loop)
        h = 1e-7  # small, as rectifiers and maxima have kinks
        error = meta.error(TaskMap("loop"), by_loop, noise, h)
        assert error < 1e-2, (
            f"the gradient through two inner steps is off by {error:.1e}, relatively, from finite differences; "
            "expected less than 0.01: is something detached?"
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=SLOWLY_MAPPED)
                by_vmap = meta.gradient(TaskMap("vmap"))
        except CANNOT_BE_MAPPED as reason:
            print(f"vmap cannot run {type(network).__name__}, so its tasks are run in a loop: {reason}")
            return
        if meta.draws():  # the loop and `vmap` draw different numbers
            error = meta.error(TaskMap("vmap"), by_vmap, noise, h)
            assert error < 1e-2, (
                f"the gradient through two inner steps under vmap is off by {error:.1e}, relatively, from finite "
                "differences; expected less than 0.01"
            )
        else:
            error = relative_error(by_vmap, by_loop)
            assert error < 1e-9, (
                f"the gradient through two inner steps under vmap differs from the loop's by {error:.1e}, relatively; "
                "expected less than 1e-9"
            )
