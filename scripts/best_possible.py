"""Print the best possible results on generated tasks whose distribution is known: no method can beat them on average.

python scripts/best_possible.py
"""

from __future__ import annotations

import math

import numpy as np
from reproducing.page import table
from reproducing.rows import ROOT
from sklearn.metrics import roc_auc_score
from torch import Tensor

import lightning_meta as lm
from lightning_meta.reading import read_yaml


def gaussian_process() -> tuple[float, float]:
    """Negative log likelihood and mean squared error of the exact Gaussian process on the test tasks."""
    options = dict(read_yaml(ROOT / "configs" / "cnp_gaussian_process.yaml")["data"]["init_args"])
    source = lm.sources.GaussianProcess(**options.pop("source")["init_args"])
    data = lm.EpisodicDataModule(source, **options)
    data.setup("test")
    likelihoods, errors = [], []
    for batch in data.test_dataloader():
        mean, deviation = source.posterior(batch.support, batch.query.x)
        square = (batch.query.y.double() - mean) ** 2
        likelihoods.append(0.5 * square / deviation**2 + deviation.log() + 0.5 * math.log(2 * math.pi))
        errors.append(square)
    sums = [sum(float(part.sum()) for part in parts) for parts in (likelihoods, errors)]
    count = sum(part.numel() for part in errors)
    return sums[0] / count, sums[1] / count


def rare_tasks() -> float:
    """Mean AUROC of the true probabilities on the test rows of `ladder_rare_tasks`."""
    shared = read_yaml(ROOT / "configs" / "ladder_rare_tasks.yaml")["shared"]["data"]["init_args"]
    source = lm.testing.RareTasks(**shared["source"]["init_args"])
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
        ["`ladder_rare_tasks`", "mean AUROC ↑", f"{rare_tasks():.3f}"],
    ]
    print(table(["configuration", "metric", "best possible"], rows))


if __name__ == "__main__":
    main()
