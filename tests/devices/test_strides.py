"""Tensors of batches are pinned, copied into in place and captured in graphs: no element may be two at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.devices.toys import EPISODES, MULTI_TASK, Images, episodic

DATA: dict[str, Callable[..., Any]] = {**EPISODES, **MULTI_TASK}


def overlaps(tensor: Tensor) -> bool:
    """Whether two elements lie at one address, by writing down all addresses."""
    addresses = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        addresses = addresses.unsqueeze(-1) + stride * torch.arange(size)
    return len(addresses.unique()) < tensor.numel()


def test_the_check_sees_overlaps() -> None:
    x = torch.arange(6)
    assert overlaps(x.expand(2, 6))
    assert overlaps(x.unfold(0, 3, 1))
    assert overlaps(x.as_strided((2, 3), (1, 1)))
    assert not overlaps(x.view(2, 3).T)
    assert not overlaps(x[::2])


def batches(data: LightningDataModule) -> Iterator[tuple[str, Any]]:
    for stage in ("train", "val", "test", "predict"):
        loaders = getattr(data, f"{stage}_dataloader")()
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            for batch in loader:
                yield stage, batch


@pytest.mark.parametrize("name", DATA)
def test_no_tensor_of_a_batch_overlaps_itself(name: str) -> None:
    seen = set()
    for stage, batch in batches(DATA[name]()):
        seen.add(stage)
        for leaf in tree_leaves(batch):
            if isinstance(leaf, Tensor):
                assert not overlaps(leaf), f"{stage}: {tuple(leaf.shape)} has strides {leaf.stride()}"
    assert seen == {"train", "val", "test", "predict"}


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", MULTI_TASK)
def test_no_tensor_of_a_rank_s_share_overlaps_itself(name: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = MULTI_TASK[name]()
    monkeypatch.setattr(type(data), "ranks", (ranks, 1))
    for _, batch in batches(data):
        assert not any(overlaps(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))


def test_no_tensor_of_learn2learn_s_tasks_overlaps_itself() -> None:
    l2l = pytest.importorskip("learn2learn")
    from lightning_meta.integrations.learn2learn import FromTasksets

    sets = []
    for split, pool in Images().pools().items():
        first = {"train": 0, "val": 6, "test": 12}[split]
        labels = torch.arange(first, first + 6).repeat_interleave(pool.sizes)
        sets.append(l2l.data.MetaDataset(torch.utils.data.TensorDataset(pool.x, labels)))
    for _, batch in batches(episodic(FromTasksets(*sets))):
        assert not any(overlaps(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
