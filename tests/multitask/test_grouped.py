"""Groups of tasks train as each would by itself, between one network for all and one for each."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.multitask import Grouped, Independent, MultiHead, MultiTaskModule
from lightning_meta.nn import MLP
from lightning_meta.weightings import CAGrad
from tests.multitask.toys import backbone, data, results_of, train

NAMES = ("sum", "largest", "sign")
GROUPS = [["sign", "sum"], ["largest"]]


class WithNorm(nn.Sequential):
    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            super().__init__(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5))


def flat(*modules: nn.Module) -> Tensor:
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
    return torch.cat([t.detach().flatten() for t in tensors])


def head(module: MultiTaskModule, name: str) -> nn.Module:
    return module.heads[module.names.index(name)]


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (WithNorm, {}),
        pytest.param(backbone, {"gradient_clip_val": 0.3}, marks=pytest.mark.slow),
        pytest.param(backbone, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, marks=pytest.mark.slow),
        pytest.param(WithNorm, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_the_weights_of_a_group_are_those_of_a_training_of_its_tasks(network: Any, options: dict[str, Any]) -> None:
    together = train(partial(Grouped, groups=GROUPS), data(NAMES), 12, backbone=network(), trainer=options)
    scores = results_of(together, data(NAMES))
    for number, group in enumerate(GROUPS):
        names = tuple(group)
        alone = train(MultiHead, data(names), 12, backbone=network(), trainer=options)
        parts = flat(together._networks()[number][0], *(head(together, n) for n in names))
        expected = flat(alone.backbone, *(head(alone, n) for n in names))
        torch.testing.assert_close(parts, expected, rtol=1e-7, atol=1e-9)
        found = results_of(alone, data(names))
        for name in names:
            assert scores[f"test/loss/{name}"] == pytest.approx(found[f"test/loss/{name}"], rel=1e-6)


def test_one_group_is_multi_head_and_a_group_for_each_task_is_independent() -> None:
    one, shared = train(partial(Grouped, groups=[NAMES]), data(NAMES), 9), train(MultiHead, data(NAMES), 9)
    assert one.groups == [list(NAMES)]
    torch.testing.assert_close(flat(one.backbone, one.heads), flat(shared.backbone, shared.heads))
    each = train(partial(Grouped, groups=[[n] for n in NAMES]), data(NAMES), 9)
    apart = train(Independent, data(NAMES), 9)
    torch.testing.assert_close(flat(each.backbone, each.heads), flat(apart.backbone, apart.heads))


def test_a_group_without_a_task_in_the_batch_stands_still() -> None:
    given = data(NAMES, tasks_per_batch=1, batches_per_epoch=400)
    module = train(partial(Grouped, groups=GROUPS), given, 30)
    batches = given.train_batches()
    state = module.optimizers().state  # type: ignore[union-attr]
    for copy, group in module._networks():
        steps = sum(any(name in batches.ids(number) for name in group) for number in range(30))
        assert 0 < steps < 30
        assert int(state[next(copy.parameters())]["step"]) == steps


def test_tasks_of_the_same_inputs_are_seen_once_by_every_group() -> None:
    module = train(partial(Grouped, groups=GROUPS), data(NAMES), 1)
    seen: list[int] = []
    for copy, _ in module._networks():
        copy.register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
    x = torch.randn(6, 4, dtype=torch.float64)
    rows = {"sum": torch.tensor([5, 1]), "largest": torch.tensor([0, 1, 2]), "sign": torch.tensor([1, 4])}
    found = module.eval()(x, rows)
    assert seen == [6, 6]
    assert list(found) == list(rows)
    for number, group in enumerate(GROUPS):
        for name in group:
            expected = head(module, name)(module._networks()[number][0](x))[rows[name]]
            torch.testing.assert_close(found[name], expected)


def test_gradients_do_not_cross_groups() -> None:
    given = data(NAMES)
    module = train(partial(Grouped, groups=GROUPS), given, 1)
    gradients = module.double().task_gradients(given.train_batches()[0])
    assert (gradients[0] * gradients[1] == 0).all()
    assert (gradients[0] * gradients[2]).abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"groups: the names .* are needed, such as \[\[a, b\], \[c\]\]; for one group .* use MultiHead"),
        ({"groups": []}, r"groups: expected lists of names of tasks, such as \[\[a, b\], \[c\]\], got \[\]"),
        ({"groups": ["sum", "sign"]}, "groups: expected lists"),
        ({"groups": [["sum"], []]}, "groups: expected lists"),
        ({"groups": [[1], ["sum"]]}, "groups: expected names of tasks, got 1"),
        ({"groups": [["sum", "sign"], ["sum"]]}, "task 'sum' is in 2 places"),
        ({"groups": [["sum", "sign"]]}, "task 'largest' is in no group"),
        ({"groups": [["sum", "sign"], ["largest", "x"]]}, "there is no task 'x'; expected 'sum', 'largest', 'sign'"),
        ({"groups": [NAMES], "weighting": CAGrad()}, "weighting: .*got CAGrad"),
    ],
)
def test_what_cannot_be_grouped_is_refused(options: dict[str, Any], message: str) -> None:
    given = data(NAMES)
    given.setup("fit")
    with pytest.raises(UserError, match=message):
        Grouped(MLP(4, (8,)), tasks=given.spec, **options).configure_model()
