from .few_shot import FewShotClassifier as FewShotClassifier
from .multi_task import MultiTaskClassifier as MultiTaskClassifier
from .multi_task import MultiTaskRegressor as MultiTaskRegressor
