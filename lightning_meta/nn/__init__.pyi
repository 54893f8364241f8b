from .channel_normalized import ChannelNormalized as ChannelNormalized
from .conv4 import Conv4 as Conv4
from .frozen import Frozen as Frozen
from .lenet import LeNet as LeNet
from .mlp import MLP as MLP
from .normalization import TaskBatchNorm as TaskBatchNorm
from .normalization import per_task as per_task
from .normalization import statistics_from as statistics_from
from .pretrained import Pretrained as Pretrained
from .resnet12 import ResNet12 as ResNet12
from .tabular_mlp import TabularMLP as TabularMLP

__all__: list[str]
