"""GradNorm against algorithm 1, by autograd through equation 2."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_meta.multitask import MultiHead
from lightning_meta.tasks import Classification, Regression
from lightning_meta.weightings import GradNorm
from tests.multitask.toys import data, train, trainer


def slope(w: Tensor, gradients: Tensor, losses: Tensor, first: Tensor, alpha: float) -> Tensor:
    """The gradient of equation 2 by the weights."""
    w = w.clone().requires_grad_()
    norms = torch.stack([(w_i * g).norm() for w_i, g in zip(w, gradients, strict=True)])  # G_W^(i)
    rates = (losses / first) / (losses / first).mean()  # r_i
    target = (norms.mean() * rates**alpha).detach()  # treated as a constant
    return torch.autograd.grad((norms - target).abs().sum(), w)[0]


def equations(w: Tensor, gradients: Tensor, losses: Tensor, first: Tensor, alpha: float, rate: float) -> Tensor:
    """The weights after a step of algorithm 1, by autograd through equation 2."""
    stepped = w - rate * slope(w, gradients, losses, first, alpha)
    return stepped * len(w) / stepped.sum()


def test_gradnorm_is_algorithm_1() -> None:
    weighting = GradNorm(alpha=0.7, lr=0.01)
    weighting.configure({"a": Regression(), "b": Regression(), "c": Classification(3)})
    weighting.double()
    generator = torch.Generator().manual_seed(0)
    w, first = torch.ones(3, dtype=torch.float64), torch.empty(0)
    everyone = torch.ones(3, dtype=torch.bool)
    for t in range(30):
        gradients = torch.randn(3, 7, generator=generator, dtype=torch.float64) * torch.tensor([[1.0], [3.0], [0.2]])
        losses = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
        first = losses if t == 0 else first
        torch.testing.assert_close(weighting.direction(gradients, losses, everyone), w @ gradients)
        w = equations(w, gradients, losses, first, 0.7, 0.01)
        torch.testing.assert_close(weighting.weights(), w)
    assert w[2] > w[0] > w[1]  # the smaller the gradient, the larger its weight


def test_gradnorm_leaves_an_absent_task_out() -> None:
    weighting = GradNorm()
    weighting.configure({"a": Regression(), "b": Regression(), "c": Regression()})
    gradients, losses = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 0.0, 1.0])
    weighting.direction(gradients, losses, torch.tensor([True, False, True]))
    assert weighting.first.isnan().tolist() == [False, True, False]
    assert weighting.w.isfinite().all()
    assert weighting.w.sum().item() == pytest.approx(3)
    assert weighting.w[1] == pytest.approx(1 / 3 * (3 - weighting.w[0] - weighting.w[2]) * 3)
    assert weighting.w[0] > weighting.w[2]


def test_gradnorm_weighs_heads_as_it_does_the_backbone() -> None:
    """$L = \\sum_i w_i L_i$ for all parameters: a step with given weights is a step of plain descent on that sum."""
    module = train(MultiHead, data(), steps=1, weighting=GradNorm(), optimizer=partial(torch.optim.SGD, lr=0.0))
    assert isinstance(module.weighting, GradNorm)
    module.weighting.w.copy_(torch.tensor([0.5, 2.0, 0.5]))
    module.optimizer = partial(torch.optim.SGD, lr=0.1)
    before = [p.detach().clone() for p in module.parameters()]
    given = data()
    given.setup("fit")
    batch = next(iter(given.train_dataloader()))
    losses = module.task_losses(batch)
    total = sum(w * losses[n] for w, n in zip([0.5, 2.0, 0.5], module.names, strict=True))
    expected: Any = torch.autograd.grad(total, list(module.parameters()))  # type: ignore[arg-type]
    trainer(1, precision="64-true").fit(module, datamodule=data())
    for p, old, gradient in zip(module.parameters(), before, expected, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * gradient, rtol=1e-6, atol=1e-8)  # targets are float32


def test_a_loss_that_begins_at_zero_leaves_finite_weights() -> None:
    weighting = GradNorm()
    weighting.configure({"a": Regression(), "b": Regression()})
    for losses in ([0.0, 1.0], [0.5, 0.5], [0.0, 0.0]):
        weighting.direction(torch.eye(2), torch.tensor(losses), torch.ones(2, dtype=torch.bool))
        assert weighting.w.isfinite().all()
        assert weighting.w.sum().item() == pytest.approx(2)


def test_parity_with_libmtl() -> None:
    """The weights of the step and their gradient; LibMTL learns them through a softmax, by the network's optimiser."""
    peer = pytest.importorskip("LibMTL.weighting.GradNorm", exc_type=ImportError)
    weighting = GradNorm(alpha=0.7, lr=1e-3)
    weighting.configure({name: Regression() for name in "abc"})
    weighting.double()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradients = torch.randn(3, 7, generator=generator, dtype=torch.float64) * torch.tensor([[1.0], [3.0], [0.2]])
        losses = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1  # LibMTL rounds ratios to float32
        before = weighting.w.clone()
        used = weighting.weigh(gradients, losses, torch.ones(3, dtype=torch.bool))

        theirs = peer.GradNorm()
        theirs.task_num, theirs.device, theirs.epoch, theirs.rep_grad = 3, "cpu", 1, False
        theirs.train_loss_buffer = weighting.first[:, None].numpy()
        theirs._get_grads = lambda *args, of_step=gradients, **kwargs: of_step
        theirs._backward_new_grads = lambda *args, **kwargs: None
        theirs.loss_scale = torch.nn.Parameter(before.log())
        applied = theirs.backward(losses, alpha=0.7)
        torch.testing.assert_close(used, torch.as_tensor(applied), rtol=1e-12, atol=1e-12)

        # The step of ours is that of `slope`; the softmax adds its Jacobian.
        gradient = slope(before, gradients, losses, weighting.first, 0.7)
        torch.testing.assert_close(weighting.w, equations(before, gradients, losses, weighting.first, 0.7, 1e-3))
        jacobian = before.diag() - before.outer(before) / 3
        torch.testing.assert_close(theirs.loss_scale.grad, jacobian @ gradient, rtol=1e-5, atol=1e-5)
