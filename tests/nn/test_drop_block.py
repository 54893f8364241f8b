"""DropBlock: the mask of its authors' algorithm, the share that is asked for, and no effect in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from lightning_meta.errors import UserError
from lightning_meta.nn import ResNet12
from lightning_meta.nn.drop_block import DropBlock
from lightning_meta.nn.features import output_size


def in_loops(x: Tensor, rate: float, size: int) -> Tensor:
    """Algorithm 1 of Ghiasi et al., a square at a time, with torch's generator where it is."""
    inputs, channels, height, width = x.shape
    down, right = height - size + 1, width - size + 1
    gamma = rate / size**2 * height * width / (down * right)
    corners = torch.rand(inputs, channels, down, right) < gamma
    mask = torch.ones_like(x)
    for m, c, i, j in corners.nonzero().tolist():
        mask[m, c, i : i + size, j : j + size] = 0
    return x * mask * mask.numel() / mask.sum()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_it_is_the_algorithm_of_its_authors(size: int) -> None:
    x = torch.randn(20, 6, 5, 8)
    layer = DropBlock(0.3, size)
    torch.manual_seed(2)
    dropped = layer(x)
    torch.manual_seed(2)
    torch.testing.assert_close(dropped, in_loops(x, 0.3, size))
    assert 0 < float((dropped == 0).float().mean()) < 1


def test_single_features_are_dropped_as_dropout_drops_them() -> None:
    x = torch.ones(200, 10, 8, 8)
    dropped = DropBlock(0.1, 1)(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, abs=1e-5)


def test_about_the_asked_share_is_dropped_in_squares_and_the_mean_stays() -> None:
    dropped = DropBlock(0.1, 2)(torch.ones(200, 64, 4, 4))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.01)  # less than it where squares overlap
    assert float(dropped.mean()) == pytest.approx(1, abs=1e-5)
    lonely = dropped == 0
    neighbours = torch.nn.functional.avg_pool2d((~lonely).float(), 2, 1)  # a square of zeros has no feature left
    inside = torch.nn.functional.max_pool2d((neighbours == 0).float(), 2, 1, 1)
    assert bool((inside[lonely] == 1).all()), "a feature was dropped outside of any square"


def test_a_square_as_large_as_the_map_drops_whole_channels() -> None:
    dropped = DropBlock(0.4, 4)(torch.ones(50, 16, 4, 4)).flatten(2)
    assert {len(channel.unique()) for channel in dropped.flatten(0, 1)} == {1}
    assert float((dropped == 0).float().mean()) == pytest.approx(0.4, abs=0.06)


def test_where_all_is_dropped_nothing_is_nan() -> None:
    torch.manual_seed(3)
    for _ in range(50):
        assert bool(DropBlock(0.9, 2)(torch.ones(1, 1, 2, 2)).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_drops_the_same_features(dtype: torch.dtype) -> None:
    x, found = torch.ones(300, 64, 4, 4), []
    for kind in (torch.float32, dtype):  # a sum of the mask would overflow in float16
        torch.manual_seed(0)
        found.append(DropBlock(0.02, 2)(x.to(kind)))
    assert found[1].dtype == dtype
    torch.testing.assert_close(found[1].float(), found[0], rtol=0.01, atol=0)


def test_evaluation_changes_and_draws_nothing() -> None:
    layer, x = DropBlock(0.5, 2).eval(), torch.randn(2, 3, 4, 4)
    state = torch.get_rng_state()
    assert layer(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_each_task_has_its_own_mask_under_vmap() -> None:
    x = torch.ones(4, 10, 8, 4, 4)
    dropped = vmap(DropBlock(0.3, 2), randomness="different")(x)
    assert len({tuple((task == 0).flatten().tolist()) for task in dropped}) == 4
    torch.testing.assert_close(dropped.mean((1, 2, 3, 4)), torch.ones(4))


def test_resnet12_has_it_in_its_last_two_blocks() -> None:
    network = ResNet12(widths=(4, 5, 6, 7), dropout=0.1, drop_block=2)
    kinds = [type(block.after[-1]) for block in network.blocks]  # type: ignore[index]
    assert kinds == [nn.Dropout, nn.Dropout, DropBlock, DropBlock]
    plain = ResNet12(widths=(4, 5, 6, 7), dropout=0.1)
    assert not any(isinstance(m, DropBlock) for m in plain.modules())
    assert plain.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_block": 2}, "drop_block: 2 drops nothing where dropout is 0; set dropout, such as to 0.1"),
        ({"drop_block": 0, "dropout": 0.1}, "drop_block: at least 1 is needed, got 0"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        ResNet12(**options)
    assert str(error.value) == message


def test_a_square_larger_than_the_map_is_refused_before_training() -> None:
    network = ResNet12(widths=(4, 5, 6, 7), dropout=0.1, drop_block=5)
    with pytest.raises(UserError, match="block_size: at most 4 fits a map of 4x4 features, got 5; give a smaller one"):
        output_size(network, (3, 32, 32))
