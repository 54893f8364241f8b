from .base import MultiTaskModule as MultiTaskModule
from .conditioned import Conditioned as Conditioned
from .cross_stitch import CrossStitch as CrossStitch
from .gradient_conflict import GradientConflict as GradientConflict
from .independent import Independent as Independent
from .mixture_of_experts import MixtureOfExperts as MixtureOfExperts
from .multi_head import MultiHead as MultiHead
