"""Inputs that are ids, such as tokens: they stay integers, in training and afterwards, in half precision too."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.batches import SPLITS, Split
from lightning_meta.data import EpisodicDataModule, MultiTaskDataModule, Pool
from lightning_meta.data.source import Source, TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.describing import Described
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML, Baseline, MetaModule, ProtoNet
from lightning_meta.multitask import Conditioned, CrossStitch, MixtureOfExperts, MultiHead
from lightning_meta.nn import MLP, Conv4
from lightning_meta.nn.features import as_input, output_size
from lightning_meta.tasks import Classification, EpisodeSpec, Regression, Task

LENGTH, VOCABULARY = 6, 512  # bfloat16 tells numbers above 256 apart only in steps of two


class Attention(Described, nn.Module):
    """One head of self-attention over the tokens of a text, which are numbers below `VOCABULARY`, and their mean."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.mix = nn.Linear(width, 3 * width)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        query, key, value = self.mix(h).chunk(3, -1)
        weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
        return torch.cat([h.mean(1), (weights @ value).mean(1)], -1)


def flat() -> nn.Sequential:
    """A network that can be taken apart by depth."""
    return nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.Flatten(), nn.Linear(8 * LENGTH, 32), nn.Tanh())


def texts(classes: range, dtype: torch.dtype, seed: int) -> Tensor:
    """`(classes * 8, LENGTH)`: half of the tokens of a text are its class's own, neighbours of another class's."""
    first = 100 if dtype == torch.uint8 else 300
    own = first + torch.tensor(list(classes)).repeat_interleave(8).unsqueeze(1).expand(-1, LENGTH)
    noise = torch.randint(100, own.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(torch.arange(LENGTH) < LENGTH // 2, own, noise).to(dtype)


class Texts(Source):
    """Eight texts of each class."""

    def __init__(self, dtype: torch.dtype = torch.int64) -> None:
        self.dtype = dtype

    def pools(self) -> dict[Split, Pool]:
        classes = {"train": range(12), "val": range(12, 18), "test": range(18, 24)}
        return {split: self._pool(split, classes[split]) for split in SPLITS}

    def _pool(self, split: Split, classes: range) -> Pool:
        names = tuple(f"{split}{c}" for c in classes)
        sizes = torch.full((len(classes),), 8)
        return Pool(texts(classes, self.dtype, len(classes)), sizes, names, names)


class TextTasks(TaskSource):
    """Two tasks: the class of a text, and the number of the token of its class."""

    def tasks(self) -> dict[str, Task]:
        return {"class": Classification(3), "token": Regression(1)}

    def sets(self) -> dict[Split, TaskSet]:
        return {split: self._set(seed) for seed, split in enumerate(SPLITS)}

    def _set(self, seed: int) -> TaskSet:
        x = torch.cat([texts(range(3), torch.int64, 10 * seed + repeat) for repeat in range(6)])
        here = torch.ones(len(x), dtype=torch.bool)
        targets = {"class": x[:, 0] - 300, "token": x[:, :1].float()}
        return TaskSet.of_columns(x, targets, dict.fromkeys(targets, here))


def episodes(dtype: torch.dtype = torch.int64) -> EpisodicDataModule:
    return EpisodicDataModule(
        Texts(dtype), ways=3, shots=3, queries=4, meta_batch_size=8, meta_batches_per_epoch=40, val_tasks=4,
        test_tasks=50, seed=0,
    )  # fmt: skip


def trainer(steps: int, precision: Any, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    chosen = {"limit_val_batches": 0, "enable_checkpointing": False, **options}
    return L.Trainer(accelerator="cpu", max_steps=steps, precision=precision, **{**quiet, **chosen})


_adam = partial(torch.optim.Adam, lr=0.01)


METHODS: dict[str, Any] = {
    "ProtoNet": lambda: ProtoNet(Attention(), optimizer=_adam),
    "MAML": lambda: MAML(Attention(), 0.5, 3, optimizer=_adam),
    "MAML, loop": lambda: MAML(Attention(), 0.5, 3, optimizer=_adam, strategy="loop"),
    "Baseline": lambda: Baseline(Attention(), "cosine", optimizer=_adam),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "loop" in n else n for n in METHODS])
def test_a_meta_learner_learns_from_token_ids_and_predicts_them(name: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module: MetaModule = METHODS[name]()
    data, runs = episodes(), trainer(40, precision)
    runs.fit(module, datamodule=data)
    (figures,) = runs.test(module, datamodule=data, verbose=False)
    assert module.spec.input_dtype == "int64"
    assert figures["test/accuracy"] > 0.6, "a third is chance"
    runs.save_checkpoint(tmp_path / "x.ckpt")
    loaded = lm.load(tmp_path / "x.ckpt", allow=[Attention])
    batch = next(iter(data.test_dataloader()))
    (x, y), query = (part[0] for part in batch.support), batch.query
    for learned in (module, loaded):
        predictor = learned.predictor(x, [f"class {label}" for label in y.tolist()])
        answers = predictor(query.x[0].to(torch.int32))
        assert answers == predictor(query.x[0])
        right = sum(a == f"class {label}" for a, label in zip(answers, query.y[0].tolist(), strict=True))
        assert right > len(answers) / 3
        assert not predictor.depends_on_company
        with pytest.raises(UserError, match=r"whole numbers, such as the int64 ids of training; got torch\.float32"):
            predictor(query.x[0].float())


def test_what_learned_from_ids_is_exported_for_ids(tmp_path: Path) -> None:
    module, data = ProtoNet(Attention()), episodes()
    trainer(1, "32-true").fit(module, datamodule=data)
    batch = next(iter(data.test_dataloader()))
    predictor = module.predictor(batch.support.x[0], batch.support.y[0])
    exported = torch.export.load(predictor.export(tmp_path / "x.pt2")).module()
    torch.testing.assert_close(exported(batch.query.x[0]), predictor.probabilities(batch.query.x[0]))
    with pytest.raises(UserError, match=r"torch\.int64 inputs can be exported, got torch\.float32"):
        predictor.export(tmp_path / "x.pt2", torch.float32)


def test_bytes_that_are_no_images_are_ids() -> None:
    module, data = ProtoNet(Attention(), optimizer=_adam), episodes(torch.uint8)
    runs = trainer(40, "bf16-true")
    runs.fit(module, datamodule=data)
    assert module.spec.input_dtype == "uint8"
    assert runs.test(module, datamodule=data, verbose=False)[0]["test/accuracy"] > 0.6


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["MultiHead", "CrossStitch", "Conditioned"])
def test_a_multi_task_module_learns_from_token_ids(name: str, precision: str) -> None:
    torch.manual_seed(0)
    module = {
        "MultiHead": lambda: MultiHead(Attention(), optimizer=_adam),
        "CrossStitch": lambda: CrossStitch(flat(), optimizer=_adam),
        "Conditioned": lambda: Conditioned(flat(), enters="film", at=(2,), optimizer=_adam),
    }[name]()
    data = MultiTaskDataModule(TextTasks(), batch_size=24, seed=0)
    runs = trainer(40, precision)
    runs.fit(module, datamodule=data)
    figures = runs.test(module, datamodule=data, verbose=False)[0]
    assert figures["test/accuracy/class"] > 0.9
    outputs = module.predict("class", data.sets["test"].inputs[:5])  # type: ignore[index]
    assert outputs.argmax(-1).tolist() == data.sets["test"].targets["class"][:5].tolist()


def test_a_gate_on_ids_is_refused() -> None:
    data = MultiTaskDataModule(TextTasks(), batch_size=24, seed=0)
    with pytest.raises(UserError, match="MixtureOfExperts gates by the inputs, and these are int64 ids"):
        trainer(1, "32-true").fit(MixtureOfExperts(Attention(), 2), datamodule=data)


def test_a_network_of_numbers_on_ids_is_refused_with_a_way_out() -> None:
    with pytest.raises(UserError, match=r"MLP does not take inputs of shape \(6,\) of int64 ids.*torch.nn.Embedding"):
        trainer(1, "32-true").fit(ProtoNet(MLP(LENGTH, (4,))), datamodule=episodes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_becomes_of_each_kind_of_input(dtype: torch.dtype) -> None:
    def of(shape: tuple[int, ...], stored: torch.dtype) -> Tensor:
        return as_input(torch.ones(2, *shape).to(stored), dtype)

    assert of((3, 4, 4), torch.uint8).dtype == dtype
    assert float(of((3, 4, 4), torch.uint8).max()) == pytest.approx(1 / 255, rel=0.01)
    for shape in ((5,), (4, 4), (2, 3, 4, 4)):
        assert of(shape, torch.uint8).dtype == torch.int64, "no image"
    for stored in (torch.int64, torch.int32, torch.int16, torch.int8):
        assert of((3, 4, 4), stored).dtype == of((5,), stored).dtype == torch.int64
    for stored in (torch.float64, torch.float16, torch.float32, torch.bool):
        assert of((5,), stored).dtype == dtype


def test_specs_of_old_checkpoints_are_of_numbers() -> None:
    spec = EpisodeSpec("classification", (1, 28, 28), 5)
    assert spec.input_dtype == ""
    assert output_size(Conv4(1, 4), spec.input_shape, spec.input_dtype) == 4
    module = ProtoNet(Conv4(1, 4), episodes=spec)
    assert len(module.predictor(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), "aabb")(torch.zeros(2, 1, 28, 28))) == 2
