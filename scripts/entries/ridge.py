"""What a linear model learns from the examples of a task alone: ridge regression on raw inputs."""

import torch
from torch import nn

import lightning_meta as lm

STEPS = 0  # nothing is trained
PENALTY = 30.0  # of 0.3, 1, 3, ..., 300 the best on the validation people of Parkinson's


class Ridge(lm.MetaModule):
    """Ridge regression with an intercept that is not penalised."""

    def adapt(self, support: lm.Examples, ways: int):
        """Learn a task from its support set."""
        x, y = self.backbone(support.x), support.y
        mean, level = x.mean(0), y.mean(0)
        penalty = PENALTY * torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
        weight = torch.linalg.solve((x - mean).T @ (x - mean) + penalty, (x - mean).T @ (y - level))
        return {"weight": weight, "bias": level - mean @ weight}

    def predict(self, state, x):
        """Predict the queries of the task."""
        return self.backbone(x) @ state["weight"] + state["bias"]


def build(domain):
    """The module for a domain."""
    return Ridge(nn.Flatten()) if domain.regression else None
