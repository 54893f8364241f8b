"""Ways for a descriptor to enter a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta.errors import UserError
from lightning_meta.nn.conditioning import Add, Concatenate, FiLM, Gate, widened

SHAPES = {"features": (5, 3), "maps": (5, 3, 4, 2), "sequences": (5, 3, 7)}
EACH = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def drawn(entry: nn.Module) -> nn.Module:
    for parameter in entry.parameters():
        nn.init.normal_(parameter)
    return entry


@EACH
def test_entries_are_those_of_their_formulas_position_by_position(shape: tuple[int, ...]) -> None:
    h, z = torch.randn(shape), torch.randn(5, 2)
    add, film, gate = drawn(Add(3, 2)), drawn(FiLM(3, 2)), drawn(Gate(3, 2))
    found = {"add": add(h, z), "film": film(h, z), "gate": gate(h, z)}
    flat = h.reshape(5, 3, -1)
    for m in range(5):
        shift = add.get_parameter("shift.weight") @ z[m]
        gamma, beta = film.get_parameter("scale.weight") @ z[m], film.get_parameter("shift.weight") @ z[m]
        gates = 2 / (1 + (-(gate.get_parameter("gate.weight") @ z[m])).exp())
        for position in range(flat.shape[2]):
            here = flat[m, :, position]
            expected = {"add": here + shift, "film": (1 + gamma) * here + beta, "gate": gates * here}
            for name, value in expected.items():
                torch.testing.assert_close(found[name].reshape(5, 3, -1)[m, :, position], value)


@EACH
@pytest.mark.parametrize("kind", [Add, FiLM, Gate])
def test_what_starts_at_zero_changes_nothing_and_can_learn(
    kind: type[Add | FiLM | Gate], shape: tuple[int, ...]
) -> None:
    entry, h = kind(3, 2), torch.randn(shape)
    y = entry(h, torch.randn(5, 2))
    torch.testing.assert_close(y, h)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in entry.parameters())


@EACH
@pytest.mark.parametrize("flat", [False, True])
def test_concatenated_descriptors_are_the_same_at_each_position(shape: tuple[int, ...], flat: bool) -> None:
    h, z = torch.randn(shape), torch.randn(5, 2)
    y = Concatenate(flat)(h, z)
    if flat:
        assert torch.equal(y, torch.cat([h.flatten(1), z], 1))
    else:
        assert torch.equal(y[:, :3], h)
        for position in y[:, 3:].reshape(5, 2, -1).unbind(-1):
            assert torch.equal(position, z)


STAGES: dict[str, tuple[nn.Module, tuple[int, ...], bool]] = {
    "linear": (nn.Linear(3, 4), (3,), True),
    "linear without bias": (nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU()), (3,), True),
    "flat": (nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)), (3, 2, 2), True),
    "convolution": (
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, dilation=2, padding_mode="reflect"), nn.ReLU()),
        (3, 9, 9),
        False,
    ),
    "deep within": (nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, (3, 1), bias=False))), (3, 5, 5), False),
}


@pytest.mark.parametrize(("stage", "shape", "linear"), STAGES.values(), ids=STAGES)
def test_a_widened_stage_does_with_the_old_channels_what_it_did(
    stage: nn.Module, shape: tuple[int, ...], linear: bool
) -> None:
    before = {name: t.clone() for name, t in stage.state_dict().items()}
    wide, found = widened(stage.double(), 2, "at 0")
    assert found == linear
    x, z = torch.randn(5, *shape, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
    join = Concatenate(flat=linear)
    torch.testing.assert_close(wide(join(x, z)), stage(x))
    # And the new ones matter.
    assert not torch.allclose(wide(join(x, z + 1)), stage(x))
    assert all(torch.equal(t.to(before[name].dtype), before[name]) for name, t in stage.state_dict().items())
    assert {p.dtype for p in wide.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    "stage",
    [
        nn.ReLU(),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Conv1d(3, 4, 3),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Embedding(3, 4),
    ],
    ids=lambda stage: type(stage).__name__,
)
def test_a_stage_that_does_not_begin_with_a_layer_to_widen_says_so(stage: nn.Module) -> None:
    with pytest.raises(UserError) as raised:
        widened(stage, 2, "at 1")
    message = str(raised.value)
    assert message.startswith(f"at 1: nothing can be concatenated before {type(stage).__name__}")
    assert "let z enter by film, add or gate" in message
    assert "\n" not in message
