"""One row per shipped method: how to make a small one. Tests that run on every method read these tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning_meta as lm
from lightning_meta.nn import MLP, Conv4
from lightning_meta.weightings import Weighting


def conv4() -> Conv4:
    return Conv4(width=4, blocks=2)


# Meta-learners for the images of `toys.pictures`. `options` are further options of the method.
META: dict[str, Callable[..., lm.MetaModule]] = {
    "AlphaTIM": lambda **options: lm.AlphaTIM(MLP(256, (8,)), steps=10, step_size=0.01, **options),
    "ANIL": lambda **options: lm.ANIL(conv4(), inner_lr=0.1, inner_steps=2, batch_norm="inductive", **options),
    "AttentiveCNP": lambda **options: lm.AttentiveCNP(MLP(2, (8,)), heads=2, decoder=(8,), **options),
    "BDCSPN": lambda **options: lm.BDCSPN(MLP(256, (8,)), **options),
    "BOIL": lambda **options: lm.BOIL(conv4(), inner_lr=0.1, inner_steps=2, batch_norm="inductive", **options),
    "Baseline": lambda **options: lm.Baseline(MLP(256, (8,)), head_steps=5, **options),
    "CAVIA": lambda **options: lm.CAVIA(MLP(4, (8,)), context_size=3, inner_lr=0.1, inner_steps=2, **options),
    "CNP": lambda **options: lm.CNP(MLP(2, (8,)), decoder=(8,), **options),
    "FEAT": lambda **options: lm.FEAT(conv4(), **options),
    "IMAML": lambda **options: lm.IMAML(
        conv4(), inner_lr=0.1, inner_steps=3, solver_steps=2, batch_norm="inductive", **options
    ),
    "InContextTransformer": lambda **options: lm.InContextTransformer(
        MLP(256, (8,)), width=8, layers=2, heads=2, hidden=8, **options
    ),
    "LaplacianShot": lambda **options: lm.LaplacianShot(MLP(256, (8,)), **options),
    "MAML": lambda **options: lm.MAML(conv4(), inner_lr=0.1, inner_steps=2, batch_norm="inductive", **options),
    "MAMLPlusPlus": lambda **options: lm.MAMLPlusPlus(
        conv4(), inner_lr=0.1, inner_steps=2, multi_step_loss_steps=3, batch_norm="inductive", **options
    ),
    "MatchingNet": lambda **options: lm.MatchingNet(conv4(), **options),
    "MetaBaseline": lambda **options: lm.MetaBaseline(conv4(), **options),
    "MetaOptNet": lambda **options: lm.MetaOptNet(conv4(), **options),
    "MetaSGD": lambda **options: lm.MetaSGD(conv4(), inner_lr=0.1, batch_norm="inductive", **options),
    "ProtoMAML": lambda **options: lm.ProtoMAML(
        conv4(), inner_lr=0.1, inner_steps=2, batch_norm="inductive", **options
    ),
    "ProtoNet": lambda **options: lm.ProtoNet(conv4(), **options),
    "PTMAP": lambda **options: lm.PTMAP(MLP(256, (8,)), steps=5, **options),
    "R2D2": lambda **options: lm.R2D2(conv4(), **options),
    "RelationNet": lambda **options: lm.RelationNet(conv4(), channels=4, width=4, **options),
    "Reptile": lambda **options: lm.Reptile(MLP(256, (8,)), 4, inner_lr=0.001, inner_steps=4, **options),
    "RFS": lambda **options: lm.RFS(MLP(256, (8,)), lm.Augmentation(2), support_views=2, **options),
    "SimpleShot": lambda **options: lm.SimpleShot(MLP(256, (8,)), **options),
    "SoftKMeans": lambda **options: lm.SoftKMeans(conv4(), **options),
    "TIM": lambda **options: lm.TIM(MLP(256, (8,)), steps=10, **options),
}
# Those of them that take vectors, from sine waves in place of images.
OF_SINES = {"AttentiveCNP", "CAVIA", "CNP"}


def sines() -> lm.EpisodicDataModule:
    return lm.EpisodicDataModule(
        lm.sources.Sinusoid(),
        shots=5,
        queries=5,
        meta_batch_size=4,
        meta_batches_per_epoch=3,
        val_tasks=4,
        test_tasks=4,
    )


# Methods for the three tasks of `toys.sums`.
MULTI_TASK: dict[str, Callable[..., lm.MultiTaskModule]] = {
    "CGC": lambda **options: lm.CGC(MLP(4, (8,)), **options),
    "Conditioned": lambda **options: lm.Conditioned(MLP(4, (8, 8)), **options),
    "CrossStitch": lambda **options: lm.CrossStitch(MLP(4, (8, 8)), **options),
    "Grouped": lambda **options: lm.Grouped(MLP(4, (8, 8)), [["sum", "sign"], ["largest"]], **options),
    "Independent": lambda **options: lm.Independent(MLP(4, (8,)), **options),
    "Linear": lambda **options: lm.Linear(**options),
    "LoRA": lambda **options: lm.LoRA(MLP(4, (8, 8)), rank=2, **options),
    "MixtureOfExperts": lambda **options: lm.MixtureOfExperts(MLP(4, (8,)), **options),
    # Batch statistics are those of each rank's share, which two ranks would see.
    "MTAN": lambda **options: lm.MTAN(MLP(4, (8, 8)), batch_norm=False, **options),
    "MultiHead": lambda **options: lm.MultiHead(MLP(4, (8, 8)), **options),
    "PLE": lambda **options: lm.PLE(MLP(4, (8, 8)), **options),
}
# Arguments of the weightings that need some, for the tasks of `toys.sums`.
WEIGHTINGS: dict[str, dict[str, Any]] = {"Fixed": {"weights": {"sum": 1.0, "largest": 2.0, "sign": 0.5}}}


def weighting(cls: type[Weighting]) -> Weighting:
    """Make a weighting for the tasks of `toys.sums`."""
    if cls is lm.weightings.TorchJD:
        from torchjd.aggregation import AlignedMTL  # an extra

        return cls(AlignedMTL())
    return cls(**WEIGHTINGS.get(cls.__name__, {}))
