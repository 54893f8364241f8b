"""How the losses of several tasks become one: one weighting a file."""

from lightning_meta.multitask.weightings.base import Weighting
from lightning_meta.multitask.weightings.dynamic_weight_average import DynamicWeightAverage
from lightning_meta.multitask.weightings.equal import Equal
from lightning_meta.multitask.weightings.fixed import Fixed
from lightning_meta.multitask.weightings.random_weights import RandomWeights
from lightning_meta.multitask.weightings.uncertainty import Uncertainty

__all__ = ["DynamicWeightAverage", "Equal", "Fixed", "RandomWeights", "Uncertainty", "Weighting"]
