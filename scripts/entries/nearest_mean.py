"""What needs no learning: the nearest class mean of raw inputs; in regression, the mean of the support targets."""

from torch import nn

import lightning_meta as lm
from lightning_meta.functional import squared_euclidean

STEPS = 0  # nothing is trained


class NearestMean(lm.MetaModule):
    """Classify by the nearest class mean, or predict the mean target."""

    def adapt(self, support: lm.Examples, ways: int):
        """Learn a task from its support set."""
        if not ways:
            return {"target": support.y.mean(0)}
        labels = nn.functional.one_hot(support.y, ways).to(support.x.dtype)  # (N*K, N)
        return {"means": (labels / labels.sum(0)).T @ self.backbone(support.x)}

    def predict(self, state, x):
        """Predict the queries of the task."""
        if "target" in state:
            return state["target"].expand(len(x), -1)
        return -squared_euclidean(self.backbone(x), state["means"])


def build(domain):
    """The module for a domain."""
    return NearestMean(nn.Flatten())
