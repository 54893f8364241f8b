"""Names choose the parameters of the inner loop; the outer loop learns the others by the equations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_meta import InnerAdam, InnerSGD, load
from lightning_meta.batches import Episode
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML
from lightning_meta.nn import MLP, stateless
from tests.meta.oracles import KINDS, episodes, forward, gradient, loss_of, maml, quiet, relative_error, task, trainer


def anil_loss(module: MAML, batch: Episode, chosen: tuple[str, ...]) -> Tensor:
    """Two inner steps on some parameters. With first_order an inner gradient is a constant, of whatever weights."""
    losses = []
    for t in range(len(batch.tasks)):
        support, query = task(batch, t)
        phi: dict[str, Tensor] = dict(module.network.named_parameters())
        for _ in range(2):
            names = [name for name in phi if name.startswith(chosen)]
            loss = loss_of(module.spec, forward(module.network, phi, support.x)[0], support.y)
            steps = torch.autograd.grad(loss, [phi[n] for n in names], create_graph=True)
            if module.first_order:
                steps = tuple(g.detach() for g in steps)
            phi |= {n: phi[n] - module.inner_lr * g for n, g in zip(names, steps, strict=True)}
        losses.append(loss_of(module.spec, forward(module.network, phi, query.x)[0], query.y))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("how", [{"strategy": "vmap"}, {"strategy": "loop"}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(
    ("kind", "chosen"),
    [("smooth", "head"), ("smooth", "backbone"), ("mlp", "head"), ("mlp", ["backbone.layers.1", "head.bias"])],
    ids=str,
)
def test_meta_gradients_with_a_part_adapted_are_those_of_plain_autograd(
    kind: str, chosen: Any, first_order: bool, how: dict[str, Any]
) -> None:
    module = maml(kind, inner_steps=2, inner_lr=0.5, first_order=first_order, inner_parameters=chosen, **how)
    batch = episodes(module.spec)
    loss = module.meta_batch_loss(batch).loss.mean()
    expected = anil_loss(module, batch, (chosen,) if isinstance(chosen, str) else tuple(chosen))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert relative_error(gradient(loss, module), gradient(expected, module)) < 1e-12


def test_only_what_was_chosen_moves() -> None:
    module = maml("mlp", inner_parameters=["head.bias", "backbone.layers.0"])
    support, _ = task(episodes(module.spec), 0)
    state = module.adapt(support, 3)
    moved = {name for name, p in module.network.named_parameters() if not torch.equal(p, state[name])}
    assert moved == {"head.bias", "backbone.layers.0.0.weight", "backbone.layers.0.0.bias"}
    module.network.get_parameter("head.bias").requires_grad_(False)  # frozen stays frozen
    assert module.adapted() == {"backbone.layers.0.0.weight", "backbone.layers.0.0.bias"}
    module.freeze()
    assert module.adapted() == {"backbone.layers.0.0.weight", "backbone.layers.0.0.bias"}


def test_an_unknown_name_is_one_line() -> None:
    for name in ("heads", "backbone.layers.0.0.weigh", "layers.0"):
        with pytest.raises(UserError) as raised:
            maml("mlp", inner_parameters=["head", name])
        assert str(raised.value) == (
            f"inner_parameters: the network has no parameter or part {name!r}; give head, backbone, or names such as "
            "backbone.layers.0.0.weight"
        )
    module = maml("mlp", inner_parameters="head")
    module.head.requires_grad_(False)
    with pytest.raises(UserError, match="has nothing to adapt"):
        module.adapt(task(episodes(module.spec), 0)[0], 3)


class Counts(nn.Module):
    """A layer that drops features without a module that says so, and counts its runs."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.layer, self.p, self.runs = nn.Linear(6, 64), p, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return functional.dropout(self.layer(x), self.p, self.training)


def counting(p: float, **options: Any) -> MAML:
    torch.manual_seed(3)
    options = {"inner_steps": 3, "inner_lr": 0.5, "strategy": "loop", **options}
    return MAML(Counts(p), episodes=KINDS["mlp"].spec, **options).double()


def body(module: MAML) -> Counts:
    assert isinstance(module.backbone, Counts)
    return module.backbone


@pytest.mark.parametrize("frozen", [False, True])
def test_every_inner_step_of_the_head_has_a_dropout_mask_of_its_own(frozen: bool) -> None:
    module = counting(0.5, inner_parameters=None if frozen else "head")
    module.backbone.requires_grad_(not frozen)
    support, _ = task(episodes(module.spec), 0)
    weights = dict(module.network.named_parameters())
    torch.manual_seed(5)
    found = module.adapt(support, 3)
    torch.manual_seed(5)
    head: dict[str, Tensor] = {name: weights[name] for name in ("head.weight", "head.bias")}
    for _ in range(3):
        features = functional.dropout(functional.linear(support.x, *module.backbone.parameters()), 0.5)
        loss = functional.cross_entropy(functional.linear(features, *head.values()), support.y)
        gradients = torch.autograd.grad(loss, list(head.values()), create_graph=True)
        head = {name: p - 0.5 * g for (name, p), g in zip(head.items(), gradients, strict=True)}
    torch.testing.assert_close({name: found[name] for name in head}, head)


@pytest.mark.parametrize(("p", "training", "runs"), [(0.0, True, 1), (0.5, True, 3), (0.5, False, 1)])
def test_the_backbone_runs_once_where_it_draws_nothing(p: float, training: bool, runs: int) -> None:
    module = counting(p, inner_parameters="head").train(training)
    support, _ = task(episodes(module.spec), 0)
    module.adapt(support, 3)
    before = body(module).runs
    with new_plans() as plans:
        module.adapt(support, 3)
    assert body(module).runs - before == runs
    assert plans == []  # what was noted of the parts is kept


@contextmanager
def new_plans() -> Iterator[list[nn.Module]]:
    """The modules whose places of tensors are looked up anew."""
    made: list[nn.Module] = []

    class Noted(stateless._Plan):
        def __init__(self, module: nn.Module) -> None:
            made.append(module)
            super().__init__(module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stateless, "_Plan", Noted)
        yield made


def test_dropout_that_is_switched_on_before_training_is_seen() -> None:
    module = counting(0.0, inner_parameters="head")
    body(module).p = 0.5
    module.trainer = trainer()
    module.on_fit_start()
    support, _ = task(episodes(module.spec), 0)
    before = body(module).runs
    module.adapt(support, 3)
    assert body(module).runs - before == 3


@quiet
def test_a_checkpoint_holds_the_inner_loop_and_leaves_the_body_trainable(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "inner_parameters": "head",
        "inner_optimizer": InnerAdam(beta1=0.0),
        "inner_batch_size": 2,
    }
    module = MAML(MLP(6, (8, 5)), episodes=KINDS["mlp"].spec, **options)
    runner = trainer()
    runner.strategy.connect(module)
    path = tmp_path / "last.ckpt"
    runner.save_checkpoint(path)
    again = load(path)
    assert isinstance(again, MAML)
    assert again.adapted() == {"head.weight", "head.bias"}
    assert (again.inner_optimizer, again.inner_batch_size) == (InnerAdam(beta1=0.0), 2)
    assert all(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("optimizer", [InnerSGD(0.9), InnerAdam(beta1=0.0)], ids=str)
def test_optimizers_and_mini_batches_learn_the_same_however_tasks_are_visited(optimizer: Any, strategy: Any) -> None:
    options = {"inner_optimizer": optimizer, "inner_batch_size": 4, "inner_steps": 3, "strategy": strategy}
    module = maml("mlp", **options)
    batch = episodes(module.spec, tasks=3)
    found = module.meta_batch_loss(batch)
    for t in range(3):  # a task alone, its support set in another order
        support, query = task(batch, t)
        order = torch.randperm(len(support.y))
        turned = support._replace(x=support.x[order], y=support.y[order])
        outputs = module.predict(module.adapt(turned, 3), query.x)
        torch.testing.assert_close(outputs, found.outputs[t], rtol=1e-11, atol=1e-11)


def test_inner_options_that_cannot_be_are_refused_in_one_line() -> None:
    for options, says in (
        ({"inner_batch_size": 0}, "inner_batch_size: at least 1 is needed, got 0"),
        (
            {"inner_optimizer": InnerSGD},
            "inner_optimizer: an InnerOptimizer is needed, got the class InnerSGD; give an instance, InnerSGD(...)",
        ),
    ):
        with pytest.raises(UserError) as raised:
            MAML(MLP(4, (3,)), **options)
        assert str(raised.value) == says
