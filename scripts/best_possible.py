"""Print the best possible results on generated tasks whose distribution is known.

    python scripts/best_possible.py

No method can beat them on average.
"""

from __future__ import annotations

import numpy as np
import torch
from reproducing.page import table
from reproducing.rows import ROOT
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.distributions import Normal

import lightning_meta as lm
from lightning_meta.reading import read_yaml
from lightning_meta.testing import RareTasks


def gaussian_process() -> tuple[float, float]:
    """Negative log likelihood and mean squared error of the exact Gaussian process on the test tasks."""
    options = dict(read_yaml(ROOT / "configs" / "cnp_gaussian_process.yaml")["data"]["init_args"])
    source = lm.sources.GaussianProcess(**options.pop("source")["init_args"])
    data = lm.EpisodicDataModule(source, **options)
    data.setup("test")
    likelihoods, errors = [], []
    for batch in data.test_dataloader():
        mean, deviation = source.posterior(batch.support, batch.query.x)  # (B, Q, 1)
        y = batch.query.y.double()
        likelihoods.append(-Normal(mean, deviation).log_prob(y))
        errors.append((y - mean) ** 2)
    return float(torch.cat(likelihoods).mean()), float(torch.cat(errors).mean())


def rare_tasks() -> RareTasks:
    """The tasks of `ladder_rare_tasks`."""
    data = read_yaml(ROOT / "configs" / "ladder_rare_tasks.yaml")["shared"]["data"]["init_args"]
    return RareTasks(**data["source"]["init_args"])


def best_auroc(source: RareTasks) -> float:
    """Mean AUROC over tasks of the true probabilities, on the test rows."""
    test = source.sets()["test"]
    assert isinstance(test.inputs, Tensor)
    true = source.probabilities(test.inputs)
    return float(np.mean([roc_auc_score(y.numpy(), true[n][test.rows[n]].numpy()) for n, y in test.targets.items()]))


def main() -> None:
    """Print the table."""
    likelihood, error = gaussian_process()
    rows = [
        ["`cnp_gaussian_process`", "negative log likelihood ↓", f"{likelihood:.3f}"],
        ["`cnp_gaussian_process`", "MSE ↓", f"{error:.3f}"],
        ["`ladder_rare_tasks`", "mean AUROC ↑", f"{best_auroc(rare_tasks()):.3f}"],
    ]
    print(table(["configuration", "metric", "best possible"], rows))


if __name__ == "__main__":
    main()
