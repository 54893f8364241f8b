"""The data module: any source served as episodes, the same ones everywhere, and clear words for what cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from lightning_meta.batches import SPLITS, Episode, Split
from lightning_meta.data.episodic import EpisodicDataModule
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source
from lightning_meta.errors import UserError
from lightning_meta.meta import ProtoNet
from lightning_meta.nn import MLP
from lightning_meta.sources import FromDataset, Sinusoid

CLASSES: dict[Split, int] = {"train": 8, "val": 5, "test": 6}


class Numbered(Source):
    """Images of 1x2x2 pixels that say class and number; class c of every split has 8 + c of them."""

    def __init__(self) -> None:
        first, self._pools = 0, {}
        for split, count in CLASSES.items():
            sizes = [8 + c for c in range(count)]
            values = [[100 * (first + c) + m] * 4 for c, size in enumerate(sizes) for m in range(size)]
            names = tuple(f"{split} {c}" for c in range(count))
            self._pools[split] = Pool(torch.tensor(values).float().view(-1, 1, 2, 2), torch.tensor(sizes), names, names)
            first += count

    def pools(self) -> dict[Split, Pool]:
        return self._pools


def module(source: Any = None, **options: Any) -> EpisodicDataModule:
    small = {"ways": 3, "shots": 2, "queries": 4, "meta_batches_per_epoch": 5, "val_tasks": 7, "test_tasks": 11}
    return EpisodicDataModule(source or Numbered(), **{**small, "evaluation_meta_batch_size": 3, **options})


def ready(stage: str = "fit", **options: Any) -> EpisodicDataModule:
    data = module(**options)
    data.prepare_data()
    data.setup(stage)
    return data


def inputs(batches: Any) -> Tensor:
    return torch.cat([torch.cat([b.support.x.flatten(1), b.query.x.flatten(1)], 1) for b in batches])


def test_an_epoch_has_as_many_meta_batches_and_tasks_as_asked_for() -> None:
    data = ready(meta_batch_size=2)
    training: list[Episode] = list(data.train_dataloader())
    assert [b.tasks.tolist() for b in training] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [len(b.tasks) for b in data.val_dataloader()] == [3, 3, 1]
    assert torch.cat([b.tasks for b in data.test_dataloader()]).tolist() == list(range(11))
    assert training[0].support.x.shape == (2, 6, 1, 2, 2)
    assert training[0].query.x.shape == (2, 12, 1, 2, 2)


def test_each_split_holds_its_own_classes() -> None:
    data = ready()
    for split, loader in zip(
        SPLITS, (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()), strict=True
    ):
        first = {"train": 0, "val": 8, "test": 13}[split]
        classes = inputs(loader) // 100
        assert first <= int(classes.min()) <= int(classes.max()) < first + CLASSES[split]


def test_training_and_test_shapes_differ_where_asked() -> None:
    data = ready(ways=(2, 4), shots=(1, 3), test_ways=5, test_shots=1, test_queries=2)
    batch = next(iter(data.test_dataloader()))
    assert (batch.ways, batch.support.x.shape[1], batch.query.x.shape[1]) == (5, 5, 10)
    sizes = {(b.ways, b.support.x.shape[1] // b.ways) for b in data.train_dataloader()}
    assert len(sizes) > 1
    assert all(2 <= ways <= 4 and 1 <= shots <= 3 for ways, shots in sizes)
    assert data.spec is not None
    assert data.spec.outputs == 0, "no fixed way to make a head for"


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_no_task(workers: int) -> None:
    here, there = ready(), ready(num_workers=workers)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        assert torch.equal(inputs(getattr(here, name)()), inputs(getattr(there, name)()))


# Seeds


def test_the_seed_makes_other_training_tasks_and_the_same_evaluation_tasks() -> None:
    one, two = ready(seed=1), ready(seed=2)
    assert not torch.equal(inputs(one.train_dataloader()), inputs(two.train_dataloader()))
    assert torch.equal(inputs(one.val_dataloader()), inputs(two.val_dataloader()))
    assert torch.equal(inputs(one.test_dataloader()), inputs(two.test_dataloader()))


def test_the_evaluation_seed_makes_other_evaluation_tasks_and_the_same_training_tasks() -> None:
    one, two = ready(evaluation_seed=1), ready(evaluation_seed=2)
    assert torch.equal(inputs(one.train_dataloader()), inputs(two.train_dataloader()))
    assert not torch.equal(inputs(one.val_dataloader()), inputs(two.val_dataloader()))
    assert not torch.equal(inputs(one.test_dataloader()), inputs(two.test_dataloader()))


def test_the_seed_is_by_default_that_of_seed_everything() -> None:
    unseeded = inputs(ready().train_dataloader())
    assert torch.equal(unseeded, inputs(ready(seed=0).train_dataloader()))
    seed_everything(5)
    seeded = inputs(ready().train_dataloader())
    assert torch.equal(seeded, inputs(ready(seed=5).train_dataloader()))
    assert not torch.equal(seeded, unseeded)
    assert torch.equal(inputs(ready(seed=0).train_dataloader()), unseeded), "a seed of one's own goes before"


def test_training_and_evaluation_tasks_differ_under_one_seed() -> None:
    data = ready("fit", source=Sinusoid(), seed=0, evaluation_seed=0, meta_batch_size=1)
    training, val, test = (inputs(d()) for d in (data.train_dataloader, data.val_dataloader, data.test_dataloader))
    assert not any(torch.equal(a, b) for a, b in ((training[0], val[0]), (val[0], test[0]), (training[0], test[0])))


def test_a_trainer_that_overfits_meets_the_same_meta_batches_in_every_epoch(tmp_path: Path) -> None:
    class Seen(Callback):
        def __init__(self) -> None:
            self.tasks: list[list[int]] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Episode, batch_idx: int) -> None:
            self.tasks.append(batch.tasks.tolist())

    seen = Seen()
    trainer = Trainer(
        overfit_batches=2,
        max_steps=5,
        limit_val_batches=0,
        accelerator="cpu",
        callbacks=[seen],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ProtoNet(MLP(4, [3])), datamodule=module(meta_batch_size=2))
    assert seen.tasks == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]


# What a module is told


def test_the_spec_says_what_a_module_must_know() -> None:
    spec = ready(rotations=["train"]).spec
    assert spec is not None
    assert (spec.task, spec.input_shape, spec.outputs, spec.classes) == ("classification", (1, 2, 2), 3, 32)
    spec = ready(source=Sinusoid()).spec
    assert spec is not None
    assert (spec.task, spec.input_shape, spec.outputs, spec.classes) == ("regression", (1,), 1, 0)


def test_a_trained_model_is_tested_whatever_the_other_splits_can_fill() -> None:
    # Training classes are too few for this way; that is an error in fit, and no matter in test.
    options = {"ways": 9, "test_ways": 4}
    with pytest.raises(UserError, match=r"ways: 9 classes a task .* the train split has 8"):
        ready("fit", **options)
    assert next(iter(ready("test", **options).test_dataloader())).ways == 4
    # Six classes are in the test split, five in that for validation.
    assert next(iter(ready("test", test_ways=6).test_dataloader())).ways == 6
    with pytest.raises(UserError, match=r"test_ways: 6 classes a task .* the val split has 5"):
        ready("fit", test_ways=6)


def test_rotations_are_of_the_splits_asked_for_and_leave_the_source_as_it_was() -> None:
    source = Numbered()
    turned, plain = module(source, rotations=["train"]), module(source)
    turned.setup("fit")
    plain.setup("fit")
    expected = {"turned": [32, 5, 6], "plain": [8, 5, 6]}
    for name, data in (("turned", turned), ("plain", plain)):
        pools = [data.datasets[split].origin for split in SPLITS]
        assert [pool.num_classes for pool in pools if isinstance(pool, Pool)] == expected[name]


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 1}, "ways: a number from 2 up.* got 1"),
        ({"ways": (5, 3), "test_ways": 3}, r"ways: .* rising pair.* got \(5, 3\)"),
        ({"ways": (1, 3), "test_ways": 3}, r"ways: a number from 2 up.* got \(1, 3\)"),
        ({"shots": 0}, "shots: a number from 1 up.* got 0"),
        ({"shots": (0, 2), "test_shots": 1}, r"shots: a number from 1 up.* got \(0, 2\)"),
        ({"queries": 0}, "queries: a number from 1 up.* got 0"),
        ({"test_ways": 0}, "test_ways: a number from 2 up.* got 0"),
        ({"test_shots": -1}, "test_shots: a number from 1 up.* got -1"),
        ({"test_queries": 0}, "test_queries: a number from 1 up.* got 0"),
        ({"ways": (2, 4)}, r"test_ways: .*range in training \(\(2, 4\)\)"),
        ({"shots": (1, 3)}, r"test_shots: .*range in training \(\(1, 3\)\)"),
        ({"meta_batch_size": 0}, "meta_batch_size: at least 1 is needed, got 0"),
        ({"meta_batches_per_epoch": 0}, "meta_batches_per_epoch: at least 1"),
        ({"val_tasks": 0}, "val_tasks: at least 1"),
        ({"test_tasks": -5}, "test_tasks: at least 1 is needed, got -5"),
        ({"evaluation_meta_batch_size": 0}, "evaluation_meta_batch_size: at least 1"),
        ({"num_workers": -1}, "num_workers: .* got -1"),
        (
            {"num_workers": 2, "pool_on": "accelerator"},
            "num_workers: 2 loader processes cannot reach a pool on the acc",
        ),
        ({"rotations": ["training"]}, "rotations: .*'training'"),
    ],
)
def test_bad_options_are_refused_when_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        module(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_ways": 6}, "ways: 6 classes .* the val split has 5"),
        ({"shots": 5}, "5 [+] 4 = 9 examples .* class 'train 0' of the train split has 8"),
        ({"test_queries": 7}, "2 [+] 7 = 9 examples .* class 'val 0' of the val split has 8"),
    ],
)
def test_what_the_pools_cannot_fill_is_refused_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ready("fit", **options)


def pairs(labels: list[int], shape: tuple[int, ...] = (3,)) -> list[tuple[Tensor, int]]:
    return [(torch.full(shape, float(y)), y) for y in labels]


def test_a_source_whose_splits_share_a_class_or_differ_in_shape_is_refused() -> None:
    class Wrong(Numbered):
        def __init__(self, test: Pool) -> None:
            super().__init__()
            self._pools["test"] = test

    twice = Numbered().pools()["val"].select([4])
    with pytest.raises(UserError, match="class 'val 4' is in both the val and the test split"):
        ready(source=Wrong(twice), ways=2)
    flat = Pool(torch.zeros(10, 4), torch.tensor([5, 5]), ("x", "y"), ("", ""))
    with pytest.raises(UserError, match=r"one shape, these have \[\(1, 2, 2\), \(4,\)\]"):
        ready(source=Wrong(flat), ways=2)


def test_a_users_dataset_with_classes_of_different_sizes() -> None:
    train = pairs([0] * 6 + [1] * 9 + [2] * 4 + [0] * 2)
    source = FromDataset(train, pairs([3] * 4 + [4] * 5), pairs([5] * 8 + [6] * 4))
    data = ready(source=source, ways=2, shots=1, queries=3, meta_batch_size=4)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            # x says the class of the example, so support and query agree on what a label stands for
            names = batch.support.x[..., 0]
            assert (names[:, 0] != names[:, 1]).all()
            assert torch.equal(batch.query.x[..., 0], names.repeat_interleave(3, dim=1))
    short = FromDataset(train, pairs([3] * 4 + [4] * 5), pairs([5] * 8 + [6] * 3))
    with pytest.raises(UserError, match="class '6' of the test split has 3"):
        ready(source=short, ways=2, shots=1, queries=3)


# Regression


def sinusoids(**ranges: tuple[float, float]) -> Episode:
    data = ready(source=Sinusoid(**ranges), shots=10, queries=20, meta_batch_size=2_000, meta_batches_per_epoch=1)
    return next(iter(data.train_dataloader()))


def amplitude_and_phase(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """A and φ of y = A sin(x - φ), by least squares on sin x and cos x."""
    basis = np.stack([np.sin(x), np.cos(x)], axis=1)
    (sine, cosine), residuals, *_ = np.linalg.lstsq(basis, y, rcond=None)
    assert float(residuals[0]) < 1e-9
    return math.hypot(sine, cosine), math.atan2(-cosine, sine)


def test_sinusoids_are_those_of_the_paper() -> None:
    batch = sinusoids()
    assert batch.ways == 0
    assert batch.classes is None
    assert batch.support.x.shape == batch.support.y.shape == (2_000, 10, 1)
    assert batch.query.x.shape == batch.query.y.shape == (2_000, 20, 1)
    x = torch.cat([batch.support.x, batch.query.x], 1)
    assert -5 <= float(x.min()) < -4.99
    assert 4.99 < float(x.max()) <= 5
    found = []
    for t in range(300):
        support, query = (
            amplitude_and_phase(part.x[t, :, 0].double().numpy(), part.y[t, :, 0].double().numpy())
            for part in (batch.support, batch.query)
        )
        assert support == pytest.approx(query, abs=1e-4), "support and query are points on one wave"
        found.append(query)
    amplitudes, phases = np.array(found).T
    assert 0.1 - 1e-5 <= amplitudes.min() < 0.4
    assert 4.8 < amplitudes.max() <= 5 + 1e-5
    assert -1e-4 <= phases.min() < 0.1
    assert math.pi - 0.1 < phases.max() <= math.pi + 1e-4
    assert abs(np.corrcoef(amplitudes, phases)[0, 1]) < 0.25


def test_sinusoids_keep_to_the_ranges_given() -> None:
    batch = sinusoids(amplitude=(2.0, 2.0), phase=(0.5, 0.5), x_range=(1.0, 3.0))
    assert 1 <= float(batch.query.x.min()) <= float(batch.query.x.max()) <= 3
    torch.testing.assert_close(batch.query.y, 2 * torch.sin(batch.query.x - 0.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["amplitude", "phase", "x_range"])
def test_a_falling_range_of_sinusoids_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"Sinusoid: {name} .*\(3.0, 1.0\)"):
        Sinusoid(**{name: (3.0, 1.0)})


def test_points_of_a_wave_are_all_different() -> None:
    x = torch.cat([part.x[..., 0] for part in sinusoids()[:2]], 1).sort(1).values
    assert (x.diff(dim=1) > 0).double().mean() > 0.9999


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_loading_leaves_the_random_stream_where_it_was(split: str) -> None:
    data = ready()
    loader = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()
    before = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(before, torch.get_rng_state())


def test_a_way_for_regression_is_refused() -> None:
    with pytest.raises(UserError, match="test_ways: regression tasks have no classes"):
        EpisodicDataModule(Sinusoid(), test_ways=3)
