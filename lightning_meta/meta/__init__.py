"""Learning to learn: one method a file."""

from lightning_meta.meta.base import MetaModule, Outcome
from lightning_meta.meta.baseline import Baseline
from lightning_meta.meta.maml import MAML
from lightning_meta.meta.predictor import Predictor
from lightning_meta.meta.protonet import ProtoNet

__all__ = ["MAML", "Baseline", "MetaModule", "Outcome", "Predictor", "ProtoNet"]
