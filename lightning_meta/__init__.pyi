from . import functional as functional
from . import nn as nn
from . import pictures as pictures
from . import sources as sources
from . import tasks as tasks
from . import testing as testing
from . import weightings as weightings
from .batches import Episode as Episode
from .batches import Examples as Examples
from .batches import TaskBatch as TaskBatch
from .configuration import Described as Described
from .data.episodes import EpisodeShape as EpisodeShape
from .data.episodic import EpisodicDataModule as EpisodicDataModule
from .data.multi_task import MultiTaskDataModule as MultiTaskDataModule
from .data.pool import Pool as Pool
from .data.source import Source as Source
from .data.source import TaskGenerator as TaskGenerator
from .data.source import TaskSource as TaskSource
from .data.task_set import TaskSet as TaskSet
from .errors import NonFiniteLossError as NonFiniteLossError
from .errors import UserError as UserError
from .functional.inner_optimizers import InnerAdam as InnerAdam
from .functional.inner_optimizers import InnerOptimizer as InnerOptimizer
from .functional.inner_optimizers import InnerSGD as InnerSGD
from .loading import load as load
from .meta.base import MetaModule as MetaModule
from .meta.base import Outcome as Outcome
from .meta.baseline import Baseline as Baseline
from .meta.gradient_based import GradientBasedLearner as GradientBasedLearner
from .meta.maml import MAML as MAML
from .meta.metric import MetricLearner as MetricLearner
from .meta.predictor import Predictor as Predictor
from .meta.protonet import ProtoNet as ProtoNet
from .multitask.base import MultiTaskModule as MultiTaskModule
from .multitask.conditioned import Conditioned as Conditioned
from .multitask.cross_stitch import CrossStitch as CrossStitch
from .multitask.gradient_conflict import GradientConflict as GradientConflict
from .multitask.independent import Independent as Independent
from .multitask.mixture_of_experts import MixtureOfExperts as MixtureOfExperts
from .multitask.multi_head import MultiHead as MultiHead
from .run.checkpoints import RunCheckpoint as RunCheckpoint
from .run.fit import fit as fit
from .run.logger import RunLogger as RunLogger
from .run.training import Run as Run

__version__: str

__all__: list[str]
