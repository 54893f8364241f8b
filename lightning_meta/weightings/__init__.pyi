from .base import Weighting as Weighting
from .dynamic_weight_average import DynamicWeightAverage as DynamicWeightAverage
from .equal import Equal as Equal
from .fixed import Fixed as Fixed
from .random_weights import RandomWeights as RandomWeights
from .uncertainty import Uncertainty as Uncertainty
