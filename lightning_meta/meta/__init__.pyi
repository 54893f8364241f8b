from .base import MetaModule as MetaModule
from .base import Outcome as Outcome
from .baseline import Baseline as Baseline
from .gradient_based import GradientBasedLearner as GradientBasedLearner
from .maml import MAML as MAML
from .metric import MetricLearner as MetricLearner
from .predictor import Predictor as Predictor
from .protonet import ProtoNet as ProtoNet
