"""Stored images as the features that a frozen backbone makes of them: computed once, then memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_meta.configuration import describe
from lightning_meta.data.cache import cache_folder, replacing
from lightning_meta.data.decoded import progress
from lightning_meta.data.hashes import bytes_of, of_weights
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.nn.frozen import FeatureExtractor, frozen_part

FORMAT = 1  # part of every key: raise it when the layout of the files changes
BATCH = 64  # images that are run at once
PROBED = 8  # images that are run again when a file is read
TOLERANCE = 1e-2  # of the norm of their features: rounding of bf16 is 4e-3

_log = logging.getLogger(__name__)


def backbone_of_features(trainer: Trainer | None, input_shape: tuple[int, ...]) -> FeatureExtractor | None:
    """The frozen backbone whose features a meta-learner can be given in place of its images; None where it cannot."""
    module: Any = None if trainer is None else trainer.lightning_module
    if module is None or not hasattr(module, "episodes") or getattr(module, "needs_images", False):
        return None
    part = frozen_part(module.backbone)
    known = part is not None and part.passes is not None and module.spec.input_shape == input_shape
    return part if known else None


Kept = dict[str, tuple[Path, tuple[int, ...], Tensor]]
"""By examples: the file that was read last, what told it from an earlier one of its name, and its features."""


def feature_pool(trainer: Trainer, backbone: FeatureExtractor, pool: Pool, examples: str, kept: Kept) -> Pool:
    """The features of a pool's examples as a pool, from the cache; computed first by one process of each machine.

    The file is named by all that decides what is in it: the examples, the backbone's weights and how it was made, the
    precision and the kind of device. What no name says, such as the code of the backbone, is found out by running a few
    images again.

    Args:
        trainer: Its module is on its device.
        backbone: The frozen part of the module's backbone.
        pool: Images.
        examples: What identifies them, such as the hash of a data set and the split; "" where it is not known.
        kept: What was read before, so that a file is read and checked once; it is added to.

    Returns:
        A pool of `(n, F)`, with the same classes.

    Raises:
        UserError: The cache folder cannot be written.
    """
    key = _key(trainer, backbone, pool, examples or hashlib.sha256(bytes_of(pool.x)).hexdigest())
    path = cache_folder() / "features" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    features = None
    if trainer.local_rank == 0:
        features = _read_once(path, examples, kept)
        if features is not None and not _probe(trainer, backbone, pool, features):
            _log.warning("the cached features in %s are not those of this backbone any more; they are made again", path)
            features = None
        if features is None:
            computed = _computed(trainer, backbone, pool, path)
            with replacing(path) as temporary:
                sha = hashlib.sha256(bytes_of(computed)).hexdigest()
                save_file({"features": computed}, temporary, metadata={"key": key, "sha256": sha})
    trainer.strategy.barrier("features")  # of all machines, each of which has its own cache or shares one
    features = _read_once(path, examples, kept)
    if features is None:
        raise UserError(f"{path}: cannot be read back after it was written; is the disk sound?")
    names, times = tuple(pool.class_names(range(pool.num_classes))), pool.rotations
    return Pool(features, pool.sizes.repeat(times), names, pool.groups * times, y=pool.y)  # no task is turned


def _computed(trainer: Trainer, backbone: FeatureExtractor, pool: Pool, path: Path) -> Tensor:
    began, count = time.monotonic(), pool.rotations * len(pool.x)
    batches = torch.arange(count).split(BATCH)
    shown = progress(batches, f"features of {count:,} images", total=len(batches))
    features = torch.cat([_run(trainer, backbone, pool, rows) for rows in shown])
    seconds = time.monotonic() - began
    _log.info("features of %s images took %.0f s, and are kept in %s", f"{count:,}", seconds, path)
    return features


@torch.no_grad()
def _run(trainer: Trainer, backbone: FeatureExtractor, pool: Pool, rows: Tensor) -> Tensor:
    """The features of images by number; those of each further quarter-turn follow those of the one before."""
    images = pool.examples(rows)
    module: Any = trainer.lightning_module
    with trainer.precision_plugin.forward_context(), module.exact_arithmetic():
        features: Tensor = backbone(module.inputs(images.to(module.device)))
    return features.cpu()


def _probe(trainer: Trainer, backbone: FeatureExtractor, pool: Pool, features: Tensor) -> bool:
    """Whether a few images, taken from all over the pool, have the features that are stored."""
    count = pool.rotations * len(pool.x)
    if len(features) != count:
        return False
    rows = torch.linspace(0, count - 1, min(PROBED, count)).long()
    new, old = _run(trainer, backbone, pool, rows).float(), features[rows].float()
    return new.shape == old.shape and bool((new - old).norm() <= TOLERANCE * new.norm())


def _key(trainer: Trainer, backbone: FeatureExtractor, pool: Pool, examples: str) -> str:
    module: Any = trainer.lightning_module
    about = {
        "format": FORMAT,
        "examples": [examples, pool.rotations, list(pool.x.shape), str(pool.x.dtype)],
        "weights": of_weights((*backbone.named_parameters(), *backbone.named_buffers())),
        "backbone": describe(backbone),
        "layers": re.sub(r" at 0x[0-9a-f]+", "", repr(backbone)),
        "dtype": str(module.dtype),
        "precision": str(trainer.precision),
        "device": module.device.type,
    }
    return json.dumps(about, sort_keys=True)


def _read_once(path: Path, examples: str, kept: Kept) -> Tensor | None:
    """As `_read`, unless the very file was read before."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    version = found.st_ino, found.st_mtime_ns, found.st_size
    known = kept.get(examples)
    if known is not None and known[:2] == (path, version):
        return known[2]
    features = _read(path)
    if features is not None:
        kept[examples] = path, version, features
    return features


def _read(path: Path) -> Tensor | None:
    """The features, memory-mapped; None where there is no file, or a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            features: Tensor = file.get_tensor("features")
            expected = file.metadata()["sha256"]
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file can break any step of the above
        _log.warning("the cache file %s is damaged (%s) and is made again", path, error)
        return None
    if hashlib.sha256(bytes_of(features)).hexdigest() != expected:
        _log.warning("the cache file %s is damaged (its content differs from its hash) and is made again", path)
        return None
    return features
