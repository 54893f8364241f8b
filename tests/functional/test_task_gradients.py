"""Gradients by task against finite differences, and a loss with given gradients under everything a Trainer does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_meta.functional.task_gradients import loss_with_gradients, task_gradients


def test_gradients_are_finite_differences() -> None:
    torch.manual_seed(0)
    shared = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, dtype=torch.float64)]
    shared[1].requires_grad_()
    heads = [torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    x = torch.randn(3, dtype=torch.float64)

    def losses() -> list[Tensor]:
        features = torch.tanh(shared[0] @ x + shared[1])
        return [(features @ heads[0]) ** 2, (features * heads[1].exp()).sum()]

    rows, own, used = task_gradients([losses()[0], None, losses()[1]], shared, [[heads[0]], [heads[0]], [heads[1]]])
    assert rows.shape == (3, 8)
    assert torch.equal(rows[1], torch.zeros(8, dtype=torch.float64))
    assert own[1] == [None]
    assert used == [True, True]
    assert all(p.grad is None for p in (*shared, *heads))

    def difference(task: int, p: Tensor, i: int) -> float:
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                p.view(-1)[i] += step
                values.append(float(losses()[task]))
                p.view(-1)[i] -= step
        return (values[0] - values[1]) / 2e-6

    for row, task in ((0, 0), (2, 1)):
        expected = [difference(task, p, i) for p in shared for i in range(p.numel())]
        torch.testing.assert_close(rows[row], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-8)
        of_own = [difference(task, heads[task], i) for i in range(2)]
        assert own[row][0] is not None
        torch.testing.assert_close(own[row][0], torch.tensor(of_own, dtype=torch.float64), rtol=1e-6, atol=1e-8)


def test_a_scale_saves_gradients_in_half_precision() -> None:
    weight = torch.ones(1, requires_grad=True)
    loss = (weight.half().float() * 1e-9).sum()
    assert task_gradients([loss], [weight])[0].item() == 0
    scaled = task_gradients([loss], [weight], scale=torch.tensor(2.0**16)).rows
    assert abs(scaled.item() - 1e-9) < 1e-11


def test_what_autocast_left_in_float32_is_differentiated_in_float32() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)

    def loss() -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return layer(x).square().sum()

    expected = task_gradients([loss()], list(layer.parameters())).rows
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = task_gradients([loss()], list(layer.parameters())).rows
    assert torch.equal(found, expected)


def test_sparse_gradients_become_rows() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    rows = task_gradients([table(torch.tensor([1, 1, 3])).sum()], [table.weight]).rows
    assert rows[0].view(5, 2).tolist() == [[0, 0], [2, 2], [0, 0], [1, 1], [0, 0]]


def test_a_parameter_is_used_where_a_loss_depends_on_it_even_with_a_gradient_of_zero() -> None:
    shared = [torch.zeros(1, requires_grad=True) for _ in range(3)]
    losses = [shared[0].square().sum(), None, shared[2].sum()]
    assert task_gradients(losses, shared).used == [True, False, True]


def test_a_loss_with_given_gradients() -> None:
    p, q, r = (torch.zeros(n, requires_grad=True) for n in (1, 2, 3))
    value = torch.tensor(0.5)
    gradients = [torch.tensor([torch.inf]), None, torch.arange(3.0)]
    for scale in (1.0, 4.0):  # accumulated, and scaled
        loss = loss_with_gradients(value, [p, q, r], gradients)
        assert loss.item() == 0.5
        (loss * scale).backward()
    assert p.grad is not None
    assert r.grad is not None
    assert p.grad.item() == torch.inf
    assert q.grad is None
    assert r.grad.tolist() == [0, 5, 10]
