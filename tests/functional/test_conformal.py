"""Temperature, prediction sets and the open-set AUROC, against scipy, scikit-learn and counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from lightning_meta.errors import UserError
from lightning_meta.functional.conformal import (
    conformal_quantile,
    fit_temperature,
    hierarchical_quantile,
    open_set_auroc,
    prediction_sets,
)


def drawn(count: int, scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are `scale` times those by which the labels were drawn, `(M, 4)` and `(M,)`."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 4, generator=g, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    return scale * logits, labels


def best_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature with the least cross-entropy, by scipy."""

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_t), targets))

    return float(np.exp(minimize_scalar(loss, bounds=(-9, 9), method="bounded", options={"xatol": 1e-9}).x))


@pytest.mark.parametrize("scale", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("count", [7, 400])
def test_the_temperature_is_that_of_least_loss_with_smoothed_labels(scale: float, count: int) -> None:
    logits, labels = drawn(count, scale)
    smoothed = torch.full((count, 4), 1 / (count + 2) / 3, dtype=torch.float64)
    smoothed.scatter_(1, labels[:, None], (count + 1) / (count + 2))
    assert float(fit_temperature(logits, labels)) == pytest.approx(best_temperature(logits, smoothed), rel=1e-5)


@pytest.mark.parametrize("scale", [0.2, 1.0, 30.0])
def test_of_many_examples_the_temperature_is_that_of_maximum_likelihood(scale: float) -> None:
    logits, labels = drawn(20_000, scale)
    found = float(fit_temperature(logits, labels))
    assert found == pytest.approx(best_temperature(logits, labels), rel=0.001)
    assert found == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize("count", [1, 9, 15, 100])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("ways", [2, 3, 20])
def test_predictions_that_are_all_right_are_no_surer_than_their_number_allows(
    count: int, scale: float, ways: int
) -> None:
    """Laplace's rule of succession: after M of M, the next is right with probability (M + 1) / (M + 2)."""
    labels = torch.arange(count) % ways
    logits = scale * F.one_hot(labels, ways).double()
    p = (logits / fit_temperature(logits, labels)).softmax(1)
    torch.testing.assert_close(p.amax(1), torch.full((count,), (count + 1) / (count + 2), dtype=torch.float64))


def test_logits_that_are_always_wrong_give_a_guess() -> None:
    assert float(fit_temperature(-torch.eye(3), torch.arange(3))) > 1e8


@pytest.mark.parametrize(("count", "error", "rank"), [(9, 0.1, 9), (10, 0.1, 10), (19, 0.1, 18), (99, 0.05, 95)])
def test_the_quantile_is_the_k_th_smallest_score(count: int, error: float, rank: int) -> None:
    logits, labels = drawn(count, 1.0)
    p = logits.softmax(1)
    scores = sorted(float(1 - p[i, y]) for i, y in enumerate(labels))
    assert float(conformal_quantile(p, labels, error)) == scores[rank - 1]


def test_too_few_examples_leave_no_label_out() -> None:
    logits, labels = drawn(8, 1.0)
    quantile = conformal_quantile(logits.softmax(1), labels, 0.1)
    assert quantile == torch.inf
    assert prediction_sets(logits.softmax(1), quantile).all()


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_sets_hold_the_label_as_often_as_was_asked_for(scale: float) -> None:
    """For any logits, the mean over calibrations lies between 1 − α and 1 − α + 1 / (n + 1)."""
    covered = []
    for seed in range(300):
        logits, labels = drawn(49 + 200, scale, seed)
        p = logits.softmax(1)
        sets = prediction_sets(p[49:], conformal_quantile(p[:49], labels[:49], 0.1))
        covered.append(float(sets.gather(1, labels[49:, None]).double().mean()))
    mean, error = np.mean(covered), np.std(covered) / 300**0.5
    assert 0.9 - 3 * error < mean < 0.92 + 3 * error


@pytest.mark.parametrize(("tasks", "examples", "error"), [(9, 4, 0.1), (19, 3, 0.1), (5, 7, 0.3), (8, 2, 0.1)])
def test_the_quantile_of_tasks_is_that_of_weighted_scores(tasks: int, examples: int, error: float) -> None:
    """Each score weighs 1 / ((n + 1) M), and infinity 1 / (n + 1)."""
    scores = torch.rand(tasks, examples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = np.append(np.sort(scores.numpy().ravel()), np.inf)
    weights = np.append(np.full(tasks * examples, 1 / ((tasks + 1) * examples)), 1 / (tasks + 1))
    expected = values[np.argmax(weights.cumsum() >= 1 - error - 1e-12)]
    assert float(hierarchical_quantile(scores, error)) == expected


def test_examples_of_a_task_may_be_alike() -> None:
    """Scores of a task share a large part, so that its examples are worth hardly more than one."""
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(2000, 20, 1, generator=g) + 0.3 * torch.randn(2000, 20, 10, generator=g)  # 19 tasks and a new
    within = [(s[19] <= hierarchical_quantile(s[:19], 0.1)).double().mean() for s in scores]
    error = float(torch.stack(within).std()) / 2000**0.5
    assert 0.9 - 3 * error < float(torch.stack(within).mean()) < 0.95 + 3 * error


def test_a_share_of_errors_is_between_0_and_1() -> None:
    logits, labels = drawn(8, 1.0)
    with pytest.raises(UserError, match=r"error: a share above 0 and below 1 is needed, such as 0.1; got 1"):
        conformal_quantile(logits.softmax(1), labels, 1)


def test_the_open_set_auroc_is_scikit_learn_s() -> None:
    known, unknown = drawn(50, 3.0)[0].softmax(1), drawn(30, 1.0, 1)[0].softmax(1)
    scores = torch.cat([known, unknown]).amax(1).numpy()
    expected = roc_auc_score([1] * 50 + [0] * 30, scores)
    assert float(open_set_auroc(known, unknown)) == pytest.approx(expected)
