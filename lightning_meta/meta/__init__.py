"""Learning to learn: one method a file."""

from lightning_meta.meta.base import MetaModule, Outcome
from lightning_meta.meta.baseline import Baseline
from lightning_meta.meta.gradient_based import GradientBasedLearner
from lightning_meta.meta.maml import MAML
from lightning_meta.meta.metric import MetricLearner
from lightning_meta.meta.predictor import Predictor
from lightning_meta.meta.protonet import ProtoNet

__all__ = [
    "MAML",
    "Baseline",
    "GradientBasedLearner",
    "MetaModule",
    "MetricLearner",
    "Outcome",
    "Predictor",
    "ProtoNet",
]
