"""Small data of every kind that the data modules serve, and a module of every kind that learns from it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_meta.batches import SPLITS, Examples, Split
from lightning_meta.data import EpisodicDataModule, MultiTaskDataModule, Pool
from lightning_meta.data.source import Source, TaskGenerator, TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.meta import MAML, Baseline, MetaModule, ProtoNet
from lightning_meta.multitask import (
    Conditioned,
    CrossStitch,
    Grouped,
    Independent,
    MixtureOfExperts,
    MultiHead,
    MultiTaskModule,
)
from lightning_meta.nn import MLP, Conv4
from lightning_meta.sources import FromDataset, Sinusoid
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task
from lightning_meta.testing.toys import NoisyPictures
from lightning_meta.weightings import DynamicWeightAverage, RandomWeights, Uncertainty
from tests import methods

# Episodes


class Images(Source):
    """Grey uint8 images, 10x10: a picture for each class, and noise around it; classes of 8 and 9 examples."""

    def pools(self) -> dict[Split, Pool]:
        generator, pools = torch.Generator().manual_seed(0), {}
        for split in SPLITS:
            sizes = torch.tensor([8, 9, 8, 9, 8, 8])
            picture = torch.rand(6, 1, 10, 10, generator=generator).repeat_interleave(sizes, 0)
            x = 160 * picture + 95 * torch.rand(picture.shape, generator=generator)
            names = tuple(f"{split}{c}" for c in range(6))
            pools[split] = Pool(x.byte(), sizes, names, names)
        return pools


class Lines(TaskGenerator):
    """Lines through the origin; every view that a generator could hand over: expanded, transposed, cut."""

    input_shape = (2,)
    outputs = 2

    def generate(self, keys: Tensor, shots: int, queries: int) -> tuple[Examples, Examples]:
        slopes = (keys % 7).float().view(-1, 1, 1)
        x = torch.linspace(-1, 1, shots + queries).expand(len(keys), 2, -1).transpose(1, 2)
        y = slopes.expand(-1, shots + queries, 2)
        return Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:])


def _dataset() -> FromDataset:
    parts: list[list[tuple[Tensor, int]]] = []
    for first in (0, 6, 12):
        labels = torch.arange(first, first + 6).repeat_interleave(8)
        x = torch.randn(48, 4, generator=torch.Generator().manual_seed(first)) + labels.unsqueeze(1)
        parts.append([(image, int(label)) for image, label in zip(x, labels, strict=True)])
    train, val, test = parts
    return FromDataset(train, val, test)


def episodic(source: Source | TaskGenerator, **options: object) -> EpisodicDataModule:
    """3-way 2-shot episodes, of a few training, validation and test tasks."""
    small: dict[str, object] = {
        "ways": 3,
        "shots": 2,
        "queries": 4,
        "meta_batch_size": 4,
        "meta_batches_per_epoch": 2,
        "val_tasks": 5,
        "test_tasks": 5,
        "evaluation_meta_batch_size": 3,
        "seed": 0,
    }
    return EpisodicDataModule(source, **{**small, **options})  # type: ignore[arg-type]


EPISODES: dict[str, Callable[..., EpisodicDataModule]] = {
    "images": partial(episodic, Images()),
    "rotated images": partial(episodic, Images(), rotations=SPLITS),
    "ranges": partial(episodic, Images(), ways=(2, 4), shots=(1, 2), test_ways=3, test_shots=1),
    "one task, one shot": partial(episodic, Images(), shots=1, queries=1, meta_batch_size=1),
    "vectors": partial(episodic, _dataset()),
    "sine waves": partial(episodic, Sinusoid()),
    "lines": partial(episodic, Lines()),
    "noisy pictures": partial(episodic, NoisyPictures()),
}

# Fixed sets of tasks

TASKS: dict[str, Task] = {"a": Classification(3), "b": Regression(2), "c": Binary(), "d": Multilabel(3)}


def _targets(x: Tensor) -> dict[str, Tensor]:
    return {"a": x[:, :3].argmax(-1), "b": x[:, :2] * 3 + 1, "c": (x[:, 0] > 0).long(), "d": (x[:, :3] > 0).long()}


class Tasks(TaskSource):
    """One task of each kind on vectors of four numbers."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def tasks(self) -> dict[str, Task]:
        return dict(TASKS)

    def sets(self) -> dict[Split, TaskSet]:
        return {split: self._set(seed) for seed, split in enumerate(SPLITS)}

    def _set(self, seed: int) -> TaskSet:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(4, 20, 4, generator=generator)
        if self.kind == "own sets":
            return TaskSet.of_examples({name: Examples(x[i], _targets(x[i])[name]) for i, name in enumerate(TASKS)})
        if self.kind == "shapes that differ":
            parts = {name: Examples(x[i].repeat(1, 1 + i % 2), _targets(x[i])[name]) for i, name in enumerate(TASKS)}
            return TaskSet.of_examples(parts)
        rows = x.flatten(0, 1)
        present = {name: torch.ones(80, dtype=torch.bool) for name in TASKS}
        if self.kind == "missing labels":
            present = {name: torch.rand(80, generator=generator) < 0.5 for name in TASKS}
        targets = _targets(rows)
        if self.kind == "views":  # a target and an input that are the same for all, made by `expand`
            rows, targets["b"] = rows[:, :1].expand(-1, 4), torch.tensor([[1.0, 2.0]]).expand(80, 2)
        return TaskSet.of_columns(rows, targets, present)


def multi_task(source: TaskSource | Source, **options: object) -> MultiTaskDataModule:
    """Two batches an epoch."""
    small: dict[str, object] = {
        "batch_size": 8,
        "batches_per_epoch": 2,
        "evaluation_batch_size": 16,
        "train_subset": 5,
        "seed": 0,
    }
    return MultiTaskDataModule(source, **{**small, **options})  # type: ignore[arg-type]


class Groups(Images):
    """The same classes in every split, in two groups."""

    def held_out(self) -> dict[Split, Pool]:
        pool = self.pools()["train"]
        groups = tuple("uv"[c % 2] for c in range(6))
        return {split: Pool(pool.x, pool.sizes, pool.names, groups) for split in SPLITS}


MULTI_TASK: dict[str, Callable[..., MultiTaskDataModule]] = {
    "own sets": partial(multi_task, Tasks("own sets")),
    "some tasks of a batch": partial(multi_task, Tasks("own sets"), tasks_per_batch=2, task_exponent=0.5),
    "shapes that differ": partial(multi_task, Tasks("shapes that differ")),
    "shared inputs": partial(multi_task, Tasks("shared inputs")),
    "missing labels": partial(multi_task, Tasks("missing labels")),
    "views": partial(multi_task, Tasks("views")),
    "a few tasks": partial(multi_task, Tasks("missing labels"), tasks=["c", "a"]),
    "groups of classes": partial(multi_task, Groups()),
}

# Modules

META: dict[str, tuple[Callable[[], MetaModule], str]] = {
    "ProtoNet": (lambda: ProtoNet(Conv4(1, 4, blocks=2)), "images"),
    "ProtoNet, cosine, inductive": (
        lambda: ProtoNet(Conv4(1, 4, blocks=2), "cosine", 0.1, "inductive"),
        "rotated images",
    ),
    "ProtoNet, vmap": (lambda: ProtoNet(MLP(4, (8,)), strategy="vmap"), "vectors"),
    "MAML": (lambda: MAML(Conv4(1, 4, blocks=2), 0.1, 2), "images"),
    "MAML, inductive": (lambda: MAML(Conv4(1, 4, blocks=2), 0.1, 1, batch_norm="inductive"), "rotated images"),
    "MAML, first order, loop": (lambda: MAML(MLP(4, (8,)), 0.1, 2, first_order=True, strategy="loop"), "vectors"),
    "MAML, regression": (lambda: MAML(MLP(1, (8,)), 0.01, 2), "sine waves"),
    "Baseline": (lambda: Baseline(Conv4(1, 4, blocks=2), head_steps=3), "images"),
    "Baseline++": (lambda: Baseline(MLP(4, (8,)), head="cosine", head_steps=3), "vectors"),
}


def _stems() -> dict[str, torch.nn.Module]:
    return {name: MLP(4 + 4 * (i % 2), (6,)) for i, name in enumerate(TASKS)}


MULTI: dict[str, tuple[Callable[[], MultiTaskModule], str]] = {
    "MultiHead": (lambda: MultiHead(MLP(4, (8, 8)), shared_depth=1, head_hidden=(4,)), "own sets"),
    "MultiHead, stems": (lambda: MultiHead(MLP(6, (8,)), stems=_stems()), "shapes that differ"),
    "MultiHead, images": (lambda: MultiHead(Conv4(1, 4, blocks=2)), "groups of classes"),
    "MultiHead, uncertainty": (lambda: MultiHead(MLP(4, (8,)), weighting=Uncertainty()), "missing labels"),
    "MultiHead, DWA": (lambda: MultiHead(MLP(4, (8,)), weighting=DynamicWeightAverage()), "some tasks of a batch"),
    "MultiHead, random": (lambda: MultiHead(MLP(4, (8,)), weighting=RandomWeights()), "shared inputs"),
    "Conditioned": (lambda: Conditioned(MLP(4, (8, 8)), at=(0, 1)), "shared inputs"),
    "Conditioned, film": (lambda: Conditioned(MLP(4, (8,)), "embedding", "film", (1,)), "own sets"),
    "CrossStitch": (lambda: CrossStitch(MLP(4, (8, 8))), "missing labels"),
    "Grouped": (lambda: Grouped(MLP(4, (8,)), [["a", "b"], ["c", "d"]]), "own sets"),
    "MixtureOfExperts": (lambda: MixtureOfExperts(MLP(4, (8,)), 2), "own sets"),
    "Independent": (lambda: Independent(MLP(4, (8,)), strategy="vmap"), "own sets"),
    "Independent, loop": (lambda: Independent(MLP(4, (8,)), strategy="loop"), "missing labels"),
}

# Methods that are not listed above, as `tests/methods.py` makes them.
META |= {
    name: (make, "sine waves" if name in methods.OF_SINES else "noisy pictures")
    for name, make in methods.META.items()
    if name not in META
}
MULTI |= {name: (make, "own sets") for name, make in methods.MULTI_TASK.items() if name not in MULTI}
