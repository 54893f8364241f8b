"""Cache of the features of stored images from a frozen backbone: computed once, then memory-mapped."""

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
from safetensors.torch import save_file
from torch import Tensor

from lightning_meta.data.cache import OTHER_CONTENT, cache_folder, read_cached, replacing
from lightning_meta.data.decoded import progress
from lightning_meta.data.hashes import bytes_of, of_weights
from lightning_meta.data.pool import Pool
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.nn.frozen import FeatureExtractor, frozen_part

FORMAT = 1  # part of every key; increase it when the layout of the files changes
BATCH = 64  # number of images per forward pass
PROBED = 8  # number of images whose features are recomputed to check a file
TOLERANCE = 1e-2  # largest difference, relative to the norm of their features; rounding of bf16 is 4e-3

_log = logging.getLogger(__name__)


def backbone_of_features(trainer: Trainer | None, input_shape: tuple[int, ...]) -> FeatureExtractor | None:
    """Return the frozen backbone of a meta-learner, if features can replace its images; otherwise None.

    Args:
        trainer: Trainer of the meta-learner.
        input_shape: Shape of a stored image.
    """
    module: Any = None if trainer is None else trainer.lightning_module
    if module is None or not hasattr(module, "episodes") or getattr(module, "needs_images", False):
        return None
    part = frozen_part(module.backbone)
    replaceable = part is not None and part.passes is not None and module.spec.input_shape == input_shape
    return part if replaceable else None


Kept = dict[str, tuple[Path, tuple[int, ...], Tensor]]
"""By the identity of examples: the file read last, its version (inode, time and size), and its features."""


def feature_pool(trainer: Trainer, backbone: FeatureExtractor, pool: Pool, examples: str, kept: Kept) -> Pool:
    """Return the features of a pool's examples as a pool, from the cache.

    If they are not in the cache, one process of each machine computes them first. The name of the file is a hash of
    everything known to determine its content: the examples, the weights and the configuration of the backbone, the
    precision and the kind of device. Other causes of different features, such as a change in the code of the backbone,
    are detected by recomputing the features of a few images.

    Args:
        trainer: Trainer whose module is on its device.
        backbone: Frozen part of the module's backbone.
        pool: Pool of images.
        examples: Identity of the examples, such as the hash of a data set and the split; "" if it is not known, in
            which case the images are hashed.
        kept: Features read before, so that each file is read and checked only once; the result is added to it.

    Returns:
        A pool of features `(n, F)`, with the same classes.

    Raises:
        UserError: The cache folder cannot be written, or a written file cannot be read back.
    """
    key = _key(trainer, backbone, pool, examples or hashlib.sha256(bytes_of(pool.x)).hexdigest())
    path = cache_folder() / "features" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    features = None
    if trainer.local_rank == 0:
        features = _read_once(path, examples, kept)
        if features is not None and not _probe(trainer, backbone, pool, features):
            _log.warning("the cached features in %s no longer match this backbone; they are recomputed", path)
            features = None
        if features is None:
            computed = _computed(trainer, backbone, pool, path)
            with replacing(path) as temporary:
                sha = hashlib.sha256(bytes_of(computed)).hexdigest()
                save_file({"features": computed}, temporary, metadata={"key": key, "sha256": sha})
    trainer.strategy.barrier("features")  # waits for all machines, which have separate caches or share one
    features = _read_once(path, examples, kept)
    if features is None:
        raise UserError(f"{path}: cannot be read back after it was written; check the disk for errors")
    names, times = tuple(pool.class_names(range(pool.num_classes))), pool.rotations
    # Rotated classes become separate classes of the pool, as features cannot be rotated when tasks are drawn.
    return Pool(features, pool.sizes.repeat(times), names, pool.groups * times, y=pool.y)


def _computed(trainer: Trainer, backbone: FeatureExtractor, pool: Pool, path: Path) -> Tensor:
    began, count = time.monotonic(), pool.rotations * len(pool.x)
    batches = torch.arange(count).split(BATCH)
    batches_shown = progress(batches, f"features of {count:,} images", total=len(batches))
    features = torch.cat([_run(trainer, backbone, pool, rows) for rows in batches_shown])
    seconds = time.monotonic() - began
    _log.info("features of %s images took %.0f s, and are stored in %s", f"{count:,}", seconds, path)
    return features


@torch.no_grad()
def _run(trainer: Trainer, backbone: FeatureExtractor, pool: Pool, rows: Tensor) -> Tensor:
    """Compute the features of images by number; number `r * n + i` is image i of n, rotated by 90 r degrees."""
    images = pool.examples(rows)
    module: Any = trainer.lightning_module
    with trainer.precision_plugin.forward_context(), module.exact_arithmetic():
        features: Tensor = backbone(module.inputs(images.to(module.device)))
    return features.cpu()


def _probe(trainer: Trainer, backbone: FeatureExtractor, pool: Pool, features: Tensor) -> bool:
    """Whether a few images, spread evenly over the pool, have the stored features."""
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
    """Return the features of a file, without reading it again if it is unchanged."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    version = state.st_ino, state.st_mtime_ns, state.st_size
    previous = kept.get(examples)
    if previous is not None and previous[:2] == (path, version):
        return previous[2]
    features = read_cached(path, _checked)
    if features is not None:
        kept[examples] = path, version, features
    return features


def _checked(tensors: dict[str, Tensor], header: dict[str, str]) -> Tensor:
    features = tensors["features"]
    if hashlib.sha256(bytes_of(features)).hexdigest() != header["sha256"]:
        raise ValueError(OTHER_CONTENT)
    return features
