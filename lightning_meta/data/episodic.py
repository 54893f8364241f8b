"""The data module of meta-learning: any source, served as support and query sets."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_meta.batches import SPLITS, Episode, Split, dtype_name
from lightning_meta.checks import instance, positive, whole
from lightning_meta.data.augmentation import Augmentation
from lightning_meta.data.augmented import augmented, check_augmentation
from lightning_meta.data.episodes import (
    EpisodeDataset,
    Episodes,
    EpisodeShape,
    Range,
    SmallClasses,
    check_pool,
    large_enough,
)
from lightning_meta.data.loader import EvaluationSampler, TrainSampler, as_is, check_shared
from lightning_meta.data.module import Place, SourceDataModule
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source, TaskGenerator
from lightning_meta.errors import UserError, one_of
from lightning_meta.nn.likeness import input_statistics
from lightning_meta.tasks import EpisodeSpec, Regression

if TYPE_CHECKING:  # lists may name files, which Pillow reads, and features are cached: neither is loaded without need
    from lightning_meta.data.features import Kept
    from lightning_meta.data.task_list import TaskList
    from lightning_meta.nn.frozen import FeatureExtractor

_log = logging.getLogger(__name__)

USED: dict[str, tuple[Split, ...]] = {"fit": SPLITS, "validate": ("val",), "test": ("test",), "predict": ("test",)}
"""The splits of a stage of the Trainer."""


class EpisodicDataModule(SourceDataModule):
    """Episodes from a source: training tasks without end, and fixed validation and test tasks.

    A task is a pure function of (seed, split, number): the same at any number of workers and ranks, and after a
    resume. The three splits hold different classes.

    Args:
        source: Where examples come from: stored classes (`Glyphs`, `Omniglot`, ...), stored regression tasks
            (`RegressionTable`) or made ones (`Sinusoid`).
        ways: N, classes in a training task; a pair draws N anew for each meta-batch, both ends included. Regression
            tasks have none.
        shots: K, support examples of a class (of a task, in regression); a pair draws K for each meta-batch.
        queries: Q, query examples of a class (of a task, in regression).
        test_ways: N of validation and test tasks; that of training by default.
        test_shots: K of validation and test tasks; that of training by default.
        test_queries: Q of validation and test tasks; that of training by default.
        test_dirichlet: α > 0 of a Dirichlet from which the shares of the classes among the N Q queries of a validation
            or test task are drawn, such as 2; by default every class has Q of them. The support sets are the same.
        meta_batch_size: T, training tasks in a step, over all ranks together.
        meta_batches_per_epoch: Training steps between two validations, by default.
        val_tasks: Validation tasks.
        test_tasks: Test tasks.
        evaluation_meta_batch_size: Validation or test tasks that are evaluated at once.
        rotations: Splits in which the quarter-turns of a class are classes of their own (Santoro et al. 2016).
        seed: Of the training tasks; by default that of `seed_everything`, or 0.
        evaluation_seed: Of the validation and test tasks: runs of any seed meet the same ones.
        num_workers: Loader processes; 0 draws in the training process, which is fastest for stored tensors.
        pool_on: Where the stored examples lie: in RAM, or on the accelerator (then `num_workers` is 0).
        augmentation: Changes the images of training tasks, support and query, on the device that they are trained on:
            an `Augmentation`; or a module such as those of kornia and torchvision.transforms.v2, see `augmented`.
        support_dirichlet: α > 0 of a Dirichlet from which the shares of the classes among the N K support examples of a
            task are drawn, in all splits; each has one at least. By default every class has K of them.
        small_classes: What becomes of classes with fewer examples than K + Q: an error (`refuse`); or they are left out
            (`skip`); or they have fewer queries, and other classes of the task more, so that a task has N Q of them
            (`cap`). A line says which are left out.
        test_task_list: A file that lists the test tasks, as `write_test_tasks` writes it, or the folder of Omniglot's
            one-shot runs. The other options of test tasks are then those of validation tasks alone.
    """

    def __init__(
        self,
        source: Source | TaskGenerator,
        ways: Range = 5,
        shots: Range = 1,
        queries: int = 15,
        test_ways: int | None = None,
        test_shots: int | None = None,
        test_queries: int | None = None,
        meta_batch_size: int = 4,
        meta_batches_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        evaluation_meta_batch_size: int = 20,
        rotations: Sequence[Split] = (),
        seed: int | None = None,
        evaluation_seed: int = 0,
        num_workers: int = 0,
        pool_on: Place = "cpu",
        augmentation: Augmentation | nn.Module | None = None,
        test_task_list: str | Path | None = None,
        test_dirichlet: float | None = None,
        support_dirichlet: float | None = None,
        small_classes: SmallClasses = "refuse",
    ) -> None:
        super().__init__(seed, num_workers, pool_on)
        instance("source", source, (Source, TaskGenerator))
        self.source = source
        if self.regression and test_ways is not None:
            raise UserError("test_ways: regression tasks have no classes; leave it out")
        if test_task_list is not None:
            instance("test_task_list", test_task_list, (str, Path))
            self._check_listed("test_task_list")
        one_of("small_classes", small_classes, SmallClasses)
        self._check_balance(test_dirichlet, support_dirichlet, small_classes)
        of_all = {"support_dirichlet": support_dirichlet, "small_classes": small_classes}
        self.train_shape = EpisodeShape(ways, shots, queries, **of_all)  # type: ignore[arg-type]
        _check_shape(self.train_shape)
        self.test_shape = EpisodeShape(
            _fixed("ways", ways, test_ways),
            _fixed("shots", shots, test_shots),
            queries if test_queries is None else test_queries,
            test_dirichlet,
            support_dirichlet,
            small_classes,
        )
        _check_shape(self.test_shape, "test_")
        whole(
            1,
            meta_batch_size=meta_batch_size,
            meta_batches_per_epoch=meta_batches_per_epoch,
            val_tasks=val_tasks,
            test_tasks=test_tasks,
            evaluation_meta_batch_size=evaluation_meta_batch_size,
        )
        for split in rotations:
            if split not in SPLITS:
                raise UserError(f"rotations: expected a list of splits, out of {', '.join(SPLITS)}; got {split!r}")
        if rotations and self.regression:
            raise UserError("rotations: regression tasks have no classes that could be turned; leave it out")
        self.meta_batch_size, self.meta_batches_per_epoch = meta_batch_size, meta_batches_per_epoch
        self.evaluation_tasks = {"val": val_tasks, "test": test_tasks}
        self.evaluation_meta_batch_size = evaluation_meta_batch_size
        self.rotations, self.evaluation_seed = tuple(rotations), evaluation_seed
        if augmentation is not None:
            instance("augmentation", augmentation, (Augmentation, nn.Module))
            if self.regression:
                raise UserError("augmentation: regression tasks have no images; leave it out")
        self.augmentation = augmentation
        self.test_task_list = None if test_task_list is None else Path(test_task_list).expanduser()
        self._largest_test_shape: EpisodeShape | None = None
        self.datasets: dict[Split, Episodes] = {}
        self._features: Kept = {}
        self._left_out_said: set[tuple[Split, int]] = set()
        self.spec: EpisodeSpec | None = None

    @property
    def makes_tasks(self) -> bool:
        """Whether the source makes its tasks instead of drawing them from stored examples."""
        return isinstance(self.source, TaskGenerator)

    @property
    def regression(self) -> bool:
        """Whether targets are real numbers, so that a task has no classes."""
        return isinstance(self.source, TaskGenerator) or self.source.regression

    @property
    def test_conditions(self) -> str:
        """What a test task is, in words: `5-way 1-shot, chance 20 %`."""
        if self.test_task_list is not None:
            return f"as listed in {self.test_task_list.name}"
        ways, shots = self.test_shape.ways, self.test_shape.shots
        assert isinstance(ways, int)
        given = {"support": self.test_shape.support_dirichlet, "queries": self.test_shape.dirichlet}
        shares = "".join(f", Dirichlet({alpha:g}) {of}" for of, alpha in given.items() if alpha is not None)
        return f"{shots}-shot" if self.regression else f"{ways}-way {shots}-shot{shares}, chance {100 / ways:.3g} %"

    @property
    def test_chance(self) -> float | None:
        """The accuracy of guessing in a test task, in (0, 1); None in regression, and where tasks are listed."""
        ways = self.test_shape.ways
        listed = self.test_task_list is not None
        return None if self.regression or listed or not isinstance(ways, int) else 1 / ways

    def prepare_data(self) -> None:
        """Download and decode, once per machine."""
        if isinstance(self.source, Source):
            self.source.prepare()

    def setup(self, stage: str) -> None:
        """Open the pools, check that they can fill the episodes, and say what a module must know of them."""
        if stage == "fit":
            check_shared(self.meta_batch_size, self.ranks[0])
        if isinstance(self.source, TaskGenerator):
            self.spec = EpisodeSpec("regression", tuple(self.source.input_shape), self.source.outputs)
        elif self.source.regression:
            self.spec = self._stored_spec
        else:
            ways: set[Range] = {self.train_shape.ways} if stage == "fit" else set()
            if "test" not in USED[stage] or stage == "fit" or self.test_task_list is None:
                ways |= {self.test_shape.ways}
            if "test" in USED[stage] and self.test_task_list is not None:
                ways |= set(self._task_list.tasks.ways.tolist())
            fixed = ways.pop() if len(ways) == 1 else 0
            self.spec = replace(self._stored_spec, outputs=fixed if isinstance(fixed, int) else 0)
            if self.augmentation is not None and stage == "fit":
                check_augmentation(self.augmentation, self._pools["train"])
        if isinstance(self.source, Source) and self._largest_test_shape is not None:
            check_pool(self._pools["test"], "test", self._largest_test_shape, self._more_classes)
        # A trained model may be tested on ways and shots that the other splits could not fill.
        for split in USED[stage]:
            listed = split == "test" and self.test_task_list is not None
            if isinstance(self.source, Source) and not listed:
                check_pool(self._pools[split], split, self._shape(split), self._more_classes)
                self._say_left_out(split)
            self.datasets[split] = self._episodes(split)
        self.configure_module()

    def train_dataloader(self) -> DataLoader[Episode]:
        """The training tasks of this rank."""
        dataset = self._dataset("train", "fit")
        if dataset.meta_batch_size != self.meta_batch_size:  # `Tuner.scale_batch_size` tries other sizes after `setup`
            dataset = self.datasets["train"] = self._episodes("train")
        return self.training_loader(TrainSampler(self._served("train", dataset), *self.ranks))

    def val_dataloader(self) -> DataLoader[Episode]:
        """The validation tasks of this rank."""
        return self._evaluation_loader("val", "validate")

    def test_dataloader(self) -> DataLoader[Episode]:
        """The test tasks of this rank."""
        return self._evaluation_loader("test", "test")

    def predict_dataloader(self) -> DataLoader[Episode]:
        """The test tasks of this rank."""
        return self._evaluation_loader("test", "predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch as the module in training does, and augment it where the Trainer trains.

        A module's own `on_after_batch_transfer` is called as well, on what is augmented.
        """
        if self.trainer is None:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        augmentation = self.augmentation if self.trainer.training and isinstance(batch, Episode) else None
        number = 0 if augmentation is None else self._number_of(batch)  # before it leaves the CPU
        batch = self.trainer.lightning_module.transfer_batch_to_device(batch, device, dataloader_idx)
        return batch if augmentation is None else augmented(batch, augmentation, self.train_seed, number)

    def training_images(self, most: int) -> Tensor:
        """Images of the training split, spread evenly over its classes; not augmented.

        Args:
            most: How many at most.

        Returns:
            `(M, *input_shape)`, the same each time.
        """
        pool = self._pools["train"]
        count = pool.rotations * len(pool.x)
        return pool.examples(torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).long())

    def augmented(self, batch: Episode) -> Episode:
        """A meta-batch as it is trained on; the loader does not augment, only a Trainer that is given the data module.

        `Augmentation` draws for each image from (seed, task, position in the task): the same on any rank, at any number
        of ranks and workers, and after a resume. Another module is called once on all images `(M, C, H, W)` of a rank's
        batch, in [0, 1], under generators of torch, Python and NumPy seeded from (seed, first task of the batch). It is
        the same after a resume, but neither at another number of ranks nor for the same image in another batch; and it
        decides whether images differ: those of kornia draw for each image, those of torchvision once for all of them.
        It must keep the shape of images, and roughly their range.

        Args:
            batch: T training tasks.

        Returns:
            The same tasks; the batch itself where there is no augmentation.
        """
        if self.augmentation is None:
            return batch
        return augmented(batch, self.augmentation, self.train_seed, self._number_of(batch))

    def fingerprint(self) -> str:
        """A hash of the decoded examples, recorded with the results; "" where tasks are made."""
        return self._hash_of_examples

    def division(self) -> dict[Split, str]:
        """A hash of the classes of each split, their sizes, and the decoded examples; empty where tasks are made."""
        if not isinstance(self.source, Source):
            return {}
        self._dataset("train", "fit")
        contents = {split: [self.fingerprint(), pool.names, pool.sizes.tolist()] for split, pool in self._pools.items()}
        contents["test"] += [value for name, value in self.provenance().items() if name.endswith("sha256")]
        return {split: hashlib.sha256(json.dumps(c).encode()).hexdigest() for split, c in contents.items()}

    def _number_of(self, batch: Episode) -> int:
        """The number of its first task, which seeds a user's module. Only a pool on the accelerator is waited for."""
        return int(batch.tasks[0]) if isinstance(self.augmentation, nn.Module) else 0

    def provenance(self) -> dict[str, str]:
        """What identifies listed test tasks: their file, its sha256, and that of the images which it brings itself."""
        if self.test_task_list is None:
            return {}
        listed = self._task_list
        images = {} if listed.images_sha256 is None else {"task_list_images_sha256": listed.images_sha256}
        return {"task_list": str(self.test_task_list), "task_list_sha256": listed.sha256, **images}

    def write_test_tasks(self, file: str | Path) -> None:
        """Write the test tasks that are drawn as a list, for others to evaluate on: see `test_task_list`.

        Args:
            file: Where to, a CSV file; `docs/evaluation.md` says what is in it.

        Raises:
            UserError: The tasks are made, or listed already, or too many for a list.
        """
        from lightning_meta.data.task_list import write_task_list

        if self.test_task_list is not None:
            raise UserError(f"test_task_list: the tasks are listed already, in {self.test_task_list}; copy that")
        self._check_listed("source")
        assert isinstance(self.source, Source)
        dataset = self._dataset("test", "test")
        assert isinstance(dataset, EpisodeDataset)
        write_task_list(Path(file), dataset, self.source.example_names("test"))

    @contextmanager
    def testing(self, shape: EpisodeShape, tasks: int, largest: EpisodeShape) -> Iterator[None]:
        """Draw test tasks of another shape for a while; pools that were read stay.

        Args:
            shape: Theirs.
            tasks: How many.
            largest: A shape that the test split must be able to fill as well, refused before the first task.
        """
        changed = {
            "test_shape": shape,
            "evaluation_tasks": {**self.evaluation_tasks, "test": tasks},
            "test_task_list": None,
            "_largest_test_shape": largest,
        }
        before = {name: getattr(self, name) for name in (*changed, "spec")}
        self.__dict__.update(changed)
        try:
            yield
        finally:
            self.__dict__.update(before)
            self.datasets.pop("test", None)  # these are not the tasks that it draws otherwise

    @cached_property
    def _hash_of_examples(self) -> str:
        return self.source.fingerprint() if isinstance(self.source, Source) else ""

    @cached_property
    def _pools(self) -> dict[Split, Pool]:
        """The pools of the source, asked for and checked once for all stages of the Trainer."""
        assert isinstance(self.source, Source)
        given = self.source.pools()
        pools = {split: given[split] for split in SPLITS}
        check_disjoint(pools)
        shapes = {pool.input_shape for pool in pools.values()}
        if len(shapes) > 1:
            raise UserError(f"source: examples of all splits have one shape, these have {sorted(shapes)}")
        for split, pool in pools.items():
            self._check_targets(split, pool, pools["train"])
        for split in self.rotations:
            pools[split] = pools[split].rotated()
        return pools

    @cached_property
    def _stored_spec(self) -> EpisodeSpec:
        """What a module must know of the stored examples; not yet the way."""
        train = self._pools["train"]
        dtype, statistics = dtype_name(train.x.dtype), input_statistics(train.x)
        if train.y is None:
            return EpisodeSpec("classification", train.input_shape, 0, train.num_classes, dtype, statistics)
        known = Regression(train.y.shape[1]).fitted(train.y)
        of_targets = tuple(map(float, known.mean)), known.scale
        return EpisodeSpec("regression", train.input_shape, known.outputs, 0, dtype, statistics, *of_targets)

    def _check_balance(
        self, test_dirichlet: float | None, support_dirichlet: float | None, small_classes: SmallClasses
    ) -> None:
        """Refuse options on classes where there are none, and those that contradict each other."""
        given = {"test_dirichlet": test_dirichlet, "support_dirichlet": support_dirichlet}
        chosen = {name: value for name, value in given.items() if value is not None}
        positive(**chosen)
        if self.regression and (chosen or small_classes != "refuse"):
            name = next(iter(chosen), "small_classes")
            raise UserError(f"{name}: regression tasks have no classes; leave it out")
        if chosen and small_classes == "cap":
            raise UserError(
                f"small_classes: cap sets the shares of the classes, and so does {next(iter(chosen))}; use skip"
            )

    def _say_left_out(self, split: Split) -> None:
        """Say on rank 0 which classes are never drawn, for want of examples."""
        pool, shape = self._pools[split], self._shape(split)
        said = (split, shape.needed())
        if said in self._left_out_said:
            return
        self._left_out_said.add(said)
        few = torch.ones(len(pool.names), dtype=torch.bool)
        few[large_enough(pool, shape) % len(pool.names)] = False
        if few.any() and (self.trainer is None or self.trainer.is_global_zero):
            names = [repr(pool.names[i]) for i in few.nonzero()[:, 0].tolist()]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            _log.warning(
                "small_classes: %d of %d classes of the %s split have fewer than %d examples and are left out: %s%s",
                *(len(names), len(pool.names), split, shape.needed(), ", ".join(names[:5]), more),
            )

    def _check_targets(self, split: Split, pool: Pool, train: Pool) -> None:
        """Refuse real targets where the source says that there are none, and the other way round."""
        assert isinstance(self.source, Source)
        name = type(self.source).__name__
        if (pool.y is not None) != self.source.regression:
            expected = "y of every pool" if self.source.regression else "pools without y, or regression = True"
            raise UserError(f"source: {name} has regression={self.source.regression}; expected {expected}")
        if pool.y is not None and not pool.y.is_floating_point():
            raise UserError(f"source: targets of {name} are floating-point numbers, these are {pool.y.dtype}")
        if pool.y is not None and train.y is not None:
            try:
                Regression(train.y.shape[1]).check(pool.y, train.y.shape[1])
            except UserError as error:
                raise UserError(f"source: the {split} split of {name}: {error}") from error

    def _check_listed(self, option: str) -> None:
        """Refuse tasks that cannot stand in a list."""
        if isinstance(self.source, TaskGenerator):
            raise UserError(f"{option}: tasks of stored examples are listed, and this source makes its tasks")
        if self.source.regression:
            raise UserError(f"{option}: tasks of classes are listed, and these are regression tasks")

    @cached_property
    def _task_list(self) -> TaskList:
        from lightning_meta.data.task_list import read_task_list

        assert self.test_task_list is not None
        assert isinstance(self.source, Source)
        names = self.source.example_names("test")
        return read_task_list(self.test_task_list, self._pools["test"], names, self._stored_spec.input_shape)

    def _episodes(self, split: Split, backbone: FeatureExtractor | None = None) -> Episodes:
        """The tasks of a split.

        Args:
            split: Which.
            backbone: One that is frozen: the examples are then its features in place of images.
        """
        listed = self._task_list if split == "test" and self.test_task_list is not None else None
        origin = self.source if isinstance(self.source, TaskGenerator) else self._origin(split, listed, backbone)
        if listed is not None:
            from lightning_meta.data.listed import ListedEpisodes

            assert isinstance(origin, Pool)
            return ListedEpisodes(origin, listed.tasks, self.evaluation_meta_batch_size)
        train = split == "train"
        return EpisodeDataset(
            origin,
            split,
            self._shape(split),
            self.meta_batch_size if train else self.evaluation_meta_batch_size,
            self.meta_batch_size * self.meta_batches_per_epoch if train else self.evaluation_tasks[split],
            self.train_seed if train else self.evaluation_seed,
        )

    def _origin(self, split: Split, listed: TaskList | None, backbone: FeatureExtractor | None) -> Pool:
        """The examples of a split, or those that a list of tasks brings itself."""
        brought = None if listed is None else listed.pool
        pool = self._pools[split] if brought is None else brought
        if backbone is not None:
            from lightning_meta.data.features import feature_pool

            assert self.trainer is not None
            known = self.fingerprint() if brought is None else ""
            examples = f"{known} {split}" if known else ""
            pool = feature_pool(self.trainer, backbone, pool, examples, self._features)
        return self.placed(pool)

    def _shape(self, split: Split) -> EpisodeShape:
        return self.train_shape if split == "train" else self.test_shape

    def _more_classes(self) -> str:
        assert isinstance(self.source, Source)
        return self.source.more_classes({split: self._shape(split).largest() for split in SPLITS})

    def _dataset(self, split: Split, stage: str) -> Episodes:
        """The tasks of a split; without a Trainer, nobody has set them up yet."""
        if split not in self.datasets:
            self.prepare_data()
            self.setup(stage)
        return self.datasets[split]

    def _served(self, split: Split, tasks: Episodes) -> Episodes:
        """The tasks with features in place of images, where the module's backbone is frozen; see `nn.Frozen`.

        This is known when loaders are made: only then the weights of a checkpoint are in their place.
        """
        if (split == "train" and self.augmentation is not None) or not isinstance(self.source, Source):
            return tasks
        from lightning_meta.data.features import backbone_of_features

        backbone = backbone_of_features(self.trainer, self._stored_spec.input_shape)
        return tasks if backbone is None else self._episodes(split, backbone)

    def _evaluation_loader(self, split: Split, stage: str) -> DataLoader[Episode]:
        dataset = self._served(split, self._dataset(split, stage))
        sampler = EvaluationSampler(dataset, *self.ranks)
        # By keywords, since Lightning makes the loader again for predicting.
        options = {"batch_size": dataset.meta_batch_size, "collate_fn": as_is, **self.loader_options()}
        return DataLoader(dataset, sampler=sampler, **options)


def check_disjoint(pools: dict[Split, Pool]) -> None:
    """Refuse splits that share a class.

    Raises:
        UserError: A class of one split is also in another.
    """
    seen: dict[str, Split] = {}
    for split, pool in pools.items():
        for name in pool.names:
            if name in seen:
                raise UserError(f"source: class {name!r} is in both the {seen[name]} and the {split} split")
            seen[name] = split


def _fixed(name: str, training: Range, testing: int | None) -> int:
    if testing is not None:
        return testing
    if not isinstance(training, int):
        raise UserError(f"test_{name}: say which to test with, since {name} is a range in training ({training})")
    return training


def _check_shape(shape: EpisodeShape, prefix: str = "") -> None:
    for name, low, values in (
        ("ways", 2, shape.ways),
        ("shots", 1, shape.shots),
        ("queries", 1, shape.queries),
    ):
        pair = ", or a rising pair of them," if name != "queries" and not prefix else ""
        ends = list(values) if pair and isinstance(values, Sequence) and len(values) == 2 else [values]
        if not all(isinstance(end, Integral) and low <= end for end in ends) or ends != sorted(ends):
            raise UserError(f"{prefix}{name}: a number from {low} up{pair} is needed; got {values!r}")
