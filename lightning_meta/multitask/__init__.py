"""LightningModules for a fixed set of tasks: one method a file."""

from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.conditioned import Conditioned
from lightning_meta.multitask.cross_stitch import CrossStitch
from lightning_meta.multitask.gradient_conflict import GradientConflict
from lightning_meta.multitask.independent import Independent
from lightning_meta.multitask.mixture_of_experts import MixtureOfExperts
from lightning_meta.multitask.multi_head import MultiHead

__all__ = [
    "Conditioned",
    "CrossStitch",
    "GradientConflict",
    "Independent",
    "MixtureOfExperts",
    "MultiHead",
    "MultiTaskModule",
]
