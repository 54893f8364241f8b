"""The data module of meta-learning: support and query sets from any source."""

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
from lightning_meta.data.source import Source, TaskGenerator, check_detached, check_inputs, check_parts
from lightning_meta.errors import UserError, one_of, some_of
from lightning_meta.nn.likeness import input_statistics
from lightning_meta.tasks import EpisodeSpec, Regression

if TYPE_CHECKING:  # imported where they are used, because few runs need task lists or cached features
    from lightning_meta.data.features import Kept
    from lightning_meta.data.task_list import TaskList
    from lightning_meta.nn.frozen import FeatureExtractor

_log = logging.getLogger(__name__)

USED: dict[str, tuple[Split, ...]] = {"fit": SPLITS, "validate": ("val",), "test": ("test",), "predict": ("test",)}
"""The splits used by each stage of the Trainer."""


class EpisodicDataModule(SourceDataModule):
    """Episodes from a source: an endless stream of training tasks, and fixed validation and test tasks.

    A task is a pure function of (seed, split, number), so it does not depend on the number of workers and ranks and is
    the same after a resume. The three splits have different classes.

    Example:
        >>> import lightning_meta as lm
        >>> data = lm.EpisodicDataModule(lm.sources.Sinusoid(), shots=5, queries=10, meta_batch_size=4)
        >>> data.setup("fit")
        >>> support, query, *_ = next(iter(data.train_dataloader()))
        >>> support.x.shape, query.x.shape
        (torch.Size([4, 5, 1]), torch.Size([4, 10, 1]))

    Args:
        source: Source of the examples: stored classes (`Glyphs`, `Omniglot`, ...), stored regression tasks
            (`RegressionTable`) or generated tasks (`Sinusoid`).
        ways: Number of classes N of a training task; a pair is a range, ends included, from which N is drawn for each
            meta-batch. Ignored in regression.
        shots: Number of support examples K per class (per task in regression); a pair is a range as for `ways`.
        queries: Number of query examples Q per class (per task in regression).
        test_ways: N of validation and test tasks; by default that of training.
        test_shots: K of validation and test tasks; by default that of training.
        test_queries: Q of validation and test tasks; by default that of training.
        test_dirichlet: Concentration α > 0, such as 2, of the Dirichlet distribution of the class shares among the N Q
            queries of a validation or test task; by default every class has Q queries. It does not affect support sets.
        meta_batch_size: Number of training tasks T per step, over all ranks.
        meta_batches_per_epoch: Number of training steps per epoch; by default, validation follows each epoch.
        val_tasks: Number of validation tasks.
        test_tasks: Number of test tasks.
        evaluation_meta_batch_size: Number of validation or test tasks evaluated at a time.
        rotations: Splits in which images rotated by 90, 180 and 270 degrees are additional classes (Santoro et al.
            2016).
        seed: Seed of the training tasks; by default that of `seed_everything`, or 0.
        evaluation_seed: Seed of the validation and test tasks, which therefore do not depend on `seed`.
        num_workers: Number of loader processes; 0 draws in the training process, which is fastest for stored tensors.
        pool_on: Location of the stored examples: RAM, or the accelerator (requires `num_workers` 0).
        augmentation: Augmentation of the support and query images of training tasks, on the training device: an
            `Augmentation`, or a module such as those of kornia and torchvision.transforms.v2, see `augmented`.
        support_dirichlet: Concentration α > 0 of the Dirichlet distribution of the class shares among the N K support
            examples of a task, in all splits, with at least one per class; by default every class has K.
        small_classes: Treatment of classes with fewer than K + Q examples: an error (`refuse`), exclusion with a log
            message (`skip`), or fewer queries of these and more of other classes of the task, N Q in total (`cap`).
        test_task_list: File with a list of test tasks, see `write_test_tasks`, or the folder of Omniglot's one-shot
            runs. The options of test tasks then apply to validation tasks only.
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
        ways, shots, queries = _whole(ways), _whole(shots), _whole(queries)
        test_ways, test_shots, test_queries = _whole(test_ways), _whole(test_shots), _whole(test_queries)
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
        self.meta_batch_size, self.meta_batches_per_epoch = _whole(meta_batch_size), _whole(meta_batches_per_epoch)
        self.evaluation_tasks = {"val": _whole(val_tasks), "test": _whole(test_tasks)}
        self.evaluation_meta_batch_size = _whole(evaluation_meta_batch_size)
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
        self._warned_left_out: set[tuple[Split, int]] = set()
        self.spec: EpisodeSpec | None = None

    @property
    def makes_tasks(self) -> bool:
        """Whether the source generates its tasks instead of drawing them from stored examples."""
        return isinstance(self.source, TaskGenerator)

    @property
    def regression(self) -> bool:
        """Whether tasks are regression tasks, which have no classes."""
        return isinstance(self.source, TaskGenerator) or self.source.regression

    @property
    def test_conditions(self) -> str:
        """Description of a test task, such as `5-way 1-shot, chance 20 %`."""
        if self.test_task_list is not None:
            return f"as listed in {self.test_task_list.name}"
        ways, shots = self.test_shape.ways, self.test_shape.shots
        assert isinstance(ways, int)
        alphas = {"support": self.test_shape.support_dirichlet, "queries": self.test_shape.dirichlet}
        shares = "".join(f", Dirichlet({alpha:g}) {part}" for part, alpha in alphas.items() if alpha is not None)
        return f"{shots}-shot" if self.regression else f"{ways}-way {shots}-shot{shares}, chance {100 / ways:.3g} %"

    @property
    def test_chance(self) -> float | None:
        """Chance accuracy of a test task, in (0, 1); None in regression and for a list of tasks."""
        ways = self.test_shape.ways
        listed = self.test_task_list is not None
        return None if self.regression or listed or not isinstance(ways, int) else 1 / ways

    def prepare_data(self) -> None:
        """Download and decode, once per machine."""
        if isinstance(self.source, Source):
            self.source.prepare()

    def setup(self, stage: str) -> None:
        """Open the pools, check that they are large enough for the episodes, and describe them in `spec`."""
        self.undo_reset()
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
        # Only the splits of this stage: a model may be tested with more ways and shots than other splits allow.
        for split in USED[stage]:
            listed = split == "test" and self.test_task_list is not None
            if isinstance(self.source, Source) and not listed:
                check_pool(self._pools[split], split, self._shape(split), self._more_classes)
                self._warn_left_out(split)
            self.datasets[split] = self._episodes(split)
        self.configure_module()

    def train_dataloader(self) -> DataLoader[Episode]:
        """Return a loader of the training tasks of this rank."""
        dataset = self._dataset("train", "fit")
        if dataset.meta_batch_size != self.meta_batch_size:  # `Tuner.scale_batch_size` tries other sizes after `setup`
            dataset = self.datasets["train"] = self._episodes("train")
        return self.training_loader(TrainSampler(self._served("train", dataset), *self.ranks))

    def val_dataloader(self) -> DataLoader[Episode]:
        """Return a loader of the validation tasks of this rank."""
        return self._evaluation_loader("val", "validate")

    def test_dataloader(self) -> DataLoader[Episode]:
        """Return a loader of the test tasks of this rank."""
        return self._evaluation_loader("test", "test")

    def predict_dataloader(self) -> DataLoader[Episode]:
        """Return a loader of the test tasks of this rank."""
        return self._evaluation_loader("test", "predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device with the hook of the module, and augment it during training.

        The hook `on_after_batch_transfer` of the module receives the augmented batch.
        """
        if self.trainer is None:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        augmentation = self.augmentation if self.trainer.training and isinstance(batch, Episode) else None
        number = (
            0 if augmentation is None else self._number_of(batch)
        )  # read on the CPU, where it needs no device synchronisation
        batch = self.trainer.lightning_module.transfer_batch_to_device(batch, device, dataloader_idx)
        return batch if augmentation is None else augmented(batch, augmentation, self.train_seed, number)

    def training_images(self, most: int) -> Tensor:
        """Return images spread evenly over the training split, without augmentation.

        Args:
            most: Largest number of images.

        Returns:
            Images `(M, *input_shape)`, the same at each call.
        """
        pool = self._pools["train"]
        count = pool.rotations * len(pool.x)
        return pool.examples(torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).long())

    def augmented(self, batch: Episode) -> Episode:
        """Augment a meta-batch as in training. Loaders do not augment; a Trainer does, given this data module.

        `Augmentation` draws for each image from (seed, task, position in the task), so the result does not depend on
        the number of ranks and workers and is the same after a resume.

        Any other module is called once on all images `(M, C, H, W)` of the batch of a rank, in [0, 1], with the
        generators of torch, Python and NumPy seeded from (seed, first task of the batch). The result is the same after
        a resume, but depends on the number of ranks. Modules of kornia draw for each image, those of torchvision once
        for all images of the call. The module must keep the shape of the images, and roughly their range.

        Args:
            batch: T training tasks.

        Returns:
            The augmented tasks; the batch itself without augmentation.
        """
        if self.augmentation is None:
            return batch
        return augmented(batch, self.augmentation, self.train_seed, self._number_of(batch))

    def fingerprint(self) -> str:
        """Return a hash of the decoded examples, recorded with the results; "" for generated tasks."""
        return self._hash_of_examples

    def division(self) -> dict[Split, str]:
        """Return a hash of the classes, their sizes and the examples by split; empty for generated tasks."""
        if not isinstance(self.source, Source):
            return {}
        self._dataset("train", "fit")
        hashes = {split: self._hash_of(split) for split in self._pools}
        hashes["test"] = self._hash_of(
            "test", *(value for name, value in self.provenance().items() if name.endswith("sha256"))
        )
        return hashes

    def training_hash(self) -> str:
        """Return the entry of the training split in `division`, which need not be large enough for the test tasks."""
        return self._hash_of("train") if isinstance(self.source, Source) else ""

    def _hash_of(self, split: Split, *others: str) -> str:
        pool = self._pools[split]
        contents = [self.fingerprint(), pool.names, pool.sizes.tolist(), *others]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    def _number_of(self, batch: Episode) -> int:
        """The number of the first task, which seeds a custom augmentation; synchronises only if it is on a device."""
        return int(batch.tasks[0]) if isinstance(self.augmentation, nn.Module) else 0

    def provenance(self) -> dict[str, str]:
        """Return what identifies a list of test tasks: its path, its sha256, and that of its own images."""
        if self.test_task_list is None:
            return {}
        listed = self._task_list
        images = {} if listed.images_sha256 is None else {"task_list_images_sha256": listed.images_sha256}
        return {"task_list": str(self.test_task_list), "task_list_sha256": listed.sha256, **images}

    def write_test_tasks(self, file: str | Path) -> None:
        """Write the drawn test tasks to a list for other evaluations; see `test_task_list`.

        Args:
            file: Path of the CSV file to write; see `docs/evaluation.md` for its format.

        Raises:
            UserError: The tasks are generated, come from a list, or are too many for a list.
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
    def testing(
        self, shape: EpisodeShape, tasks: int, largest: EpisodeShape | None, split: Split = "test"
    ) -> Iterator[None]:
        """Within the context, draw test tasks of another shape from the pools that are already open.

        Args:
            shape: Shape of the tasks.
            tasks: Number of tasks.
            largest: Another shape for which the test split must be large enough; checked before the first task.
            split: Split of the tasks; `val` changes the validation tasks instead.
        """
        changed = {
            "test_shape": shape,
            "evaluation_tasks": {**self.evaluation_tasks, split: tasks},
            "test_task_list": None,
            "_largest_test_shape": largest,
        }
        before = {name: getattr(self, name) for name in (*changed, "spec")}
        self.__dict__.update(changed)
        try:
            yield
        finally:
            self.__dict__.update(before)
            self.datasets.pop(split, None)  # drawn with the temporary shape

    @cached_property
    def _hash_of_examples(self) -> str:
        return self.source.fingerprint() if isinstance(self.source, Source) else ""

    @cached_property
    def _pools(self) -> dict[Split, Pool]:
        """The pools of the source, opened and checked once for all stages of the Trainer."""
        assert isinstance(self.source, Source)
        of_source = self.source.pools()
        check_parts(of_source, Pool, "pools()")
        pools = {split: of_source[split] for split in SPLITS}  # in this order
        check_disjoint(pools)
        shapes = {pool.input_shape for pool in pools.values()}
        if len(shapes) > 1:
            raise UserError(f"source: examples of all splits have one shape, these have {sorted(shapes)}")
        for split, pool in pools.items():
            check_inputs(pool.x, f"source: {split} split")
            self._check_targets(split, pool, pools["train"])
        for split in self.rotations:
            pools[split] = pools[split].rotated()
        return pools

    @cached_property
    def _stored_spec(self) -> EpisodeSpec:
        """Description of the stored examples for the module, without the number of ways."""
        train = self._pools["train"]
        dtype, statistics = dtype_name(train.x.dtype), input_statistics(train.x)
        if train.y is None:
            return EpisodeSpec("classification", train.input_shape, 0, train.num_classes, dtype, statistics)
        task = Regression(train.y.shape[1]).fitted(train.y)
        mean = tuple(map(float, task.mean))
        return EpisodeSpec("regression", train.input_shape, task.outputs, 0, dtype, statistics, mean, task.scale)

    def _check_balance(
        self, test_dirichlet: float | None, support_dirichlet: float | None, small_classes: SmallClasses
    ) -> None:
        """Refuse class options in regression, and options that contradict each other."""
        alphas = {"test_dirichlet": test_dirichlet, "support_dirichlet": support_dirichlet}
        chosen = {name: value for name, value in alphas.items() if value is not None}
        positive(**chosen)
        if self.regression and (chosen or small_classes != "refuse"):
            name = next(iter(chosen), "small_classes")
            raise UserError(f"{name}: regression tasks have no classes; leave it out")
        if chosen and small_classes == "cap":
            raise UserError(
                f"small_classes: cap sets the shares of the classes, and so does {next(iter(chosen))}; use skip"
            )

    def _warn_left_out(self, split: Split) -> None:
        """Warn on rank 0, once per split and size, about classes with too few examples to be drawn."""
        pool, shape = self._pools[split], self._shape(split)
        warning = (split, shape.needed())
        if warning in self._warned_left_out:
            return
        self._warned_left_out.add(warning)
        few = torch.ones(len(pool.names), dtype=torch.bool)
        few[large_enough(pool, shape) % len(pool.names)] = False
        if few.any() and (self.trainer is None or self.trainer.is_global_zero):
            names = [repr(pool.names[i]) for i in few.nonzero()[:, 0].tolist()]
            _log.warning(
                "small_classes: %d of %d classes of the %s split have fewer than %d examples and are left out: %s",
                *(len(names), len(pool.names), split, shape.needed(), some_of(names, 5)),
            )

    def _check_targets(self, split: Split, pool: Pool, train: Pool) -> None:
        """Refuse pools whose targets contradict `source.regression`, or are not valid regression targets."""
        assert isinstance(self.source, Source)
        name = type(self.source).__name__
        if (pool.y is not None) != self.source.regression:
            expected = "y of every pool" if self.source.regression else "pools without y, or regression = True"
            raise UserError(f"source: {name} has regression={self.source.regression}; expected {expected}")
        if pool.y is not None and not pool.y.is_floating_point():
            raise UserError(f"source: targets of {name} are floating-point numbers, these are {pool.y.dtype}")
        if pool.y is not None and train.y is not None:
            check_detached(pool.y, f"source: {split} split: targets")
            try:
                Regression(train.y.shape[1]).check(pool.y, train.y.shape[1])
            except UserError as error:
                raise UserError(f"source: the {split} split of {name}: {error}") from error

    def _check_listed(self, option: str) -> None:
        """Refuse a source whose tasks cannot be listed."""
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
        """Create the tasks of a split.

        Args:
            split: The split.
            backbone: A frozen backbone, whose features then replace the images.
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
        """The examples of a split, or the images of a list of tasks that has its own."""
        own = None if listed is None else listed.pool
        pool = self._pools[split] if own is None else own
        if backbone is not None:
            from lightning_meta.data.features import feature_pool

            assert self.trainer is not None
            fingerprint = self.fingerprint() if own is None else ""
            examples = f"{fingerprint} {split}" if fingerprint else ""
            pool = feature_pool(self.trainer, backbone, pool, examples, self._features)
        return pool.to(self.pool_device, self.has_float64)

    def _shape(self, split: Split) -> EpisodeShape:
        return self.train_shape if split == "train" else self.test_shape

    def _more_classes(self) -> str:
        assert isinstance(self.source, Source)
        return self.source.more_classes({split: self._shape(split).largest() for split in SPLITS})

    def _dataset(self, split: Split, stage: str) -> Episodes:
        """The tasks of a split; sets them up if no Trainer has."""
        if split not in self.datasets:
            self.prepare_data()
            self.setup(stage)
        return self.datasets[split]

    def _served(self, split: Split, tasks: Episodes) -> Episodes:
        """Replace images by features if the backbone of the module is frozen; see `nn.Frozen`.

        Decided when loaders are created, because only then the weights of a checkpoint are loaded.
        """
        if (split == "train" and self.augmentation is not None) or not isinstance(self.source, Source):
            return tasks
        from lightning_meta.data.features import backbone_of_features

        backbone = backbone_of_features(self.trainer, self._stored_spec.input_shape)
        return tasks if backbone is None else self._episodes(split, backbone)

    def _evaluation_loader(self, split: Split, stage: str) -> DataLoader[Episode]:
        dataset = self._served(split, self._dataset(split, stage))
        sampler = EvaluationSampler(dataset, *self.ranks)
        # Keyword arguments, because Lightning re-creates the loader from them for `predict`.
        options = {"batch_size": dataset.meta_batch_size, "collate_fn": as_is, **self.loader_options()}
        return DataLoader(dataset, sampler=sampler, **options)


def check_disjoint(pools: dict[Split, Pool]) -> None:
    """Refuse splits that share a class.

    Raises:
        UserError: Two splits have a class in common.
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
        raise UserError(f"test_{name}: set it, because {name} is a range in training ({training})")
    return training


def _whole(value: Any) -> Any:
    """Convert whole numbers of NumPy, alone or in a pair, to those of Python, which torch's loaders need."""
    if isinstance(value, list | tuple):
        return type(value)(map(_whole, value))
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


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
