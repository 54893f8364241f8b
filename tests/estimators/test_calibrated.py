"""Sets and intervals of the estimators of several targets, as numpy computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from torch import nn

import lightning_meta as lm
from lightning_meta.errors import UserError

SMALL: dict[str, Any] = {"hidden": (8,), "max_epochs": 3, "learning_rate": 0.02}


def kth(scores: Any, coverage: float) -> float:
    return float(np.sort(scores)[int(np.ceil((len(scores) + 1) * coverage - 1e-9)) - 1])


def rows(seed: int, count: int) -> tuple[Any, Any, Any]:
    """Features, numbers of two targets, and labels of two, some missing."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, 3))
    numbers = np.stack([10 * x[:, 0] + draw.normal(size=count), 1000 * x[:, 1] * (1 + draw.random(count))], 1)
    labels = np.stack([np.digitize(numbers[:, 0], [-5, 5]).astype(float), (numbers[:, 1] > 0).astype(float)], 1)
    numbers[::4, 0] = labels[1::4, 1] = np.nan
    return x, numbers, labels


def test_intervals_are_the_prediction_and_a_quantile_of_the_residuals() -> None:
    x, y, _ = rows(0, 80)
    regressor = lm.estimators.MultiTaskRegressor(**SMALL).fit(x, y)
    with pytest.raises(UserError, match="predict_interval: call calibrate"):
        regressor.predict_interval(x)
    other, targets, _ = rows(1, 60)
    assert regressor.calibrate(other, targets, error=0.2) is regressor
    new = rows(2, 10)[0]
    found, predicted = regressor.predict_interval(new), regressor.predict(new)
    assert found.shape == (10, 2, 2)
    for task in (0, 1):
        residuals = np.abs(regressor.predict(other) - targets)[:, task]
        radius = kth(residuals[~np.isnan(residuals)], 0.8)
        np.testing.assert_allclose(found[:, task, 0], predicted[:, task] - radius)
        np.testing.assert_allclose(found[:, task, 1], predicted[:, task] + radius)
    alone = lm.estimators.MultiTaskRegressor(**SMALL).fit(x, y[:, 1]).calibrate(other, targets[:, 1])
    assert alone.predict_interval(new).shape == (10, 2)
    with pytest.raises(UserError, match=r"error: 0\.01 needs 99 rows with a target in each column of y, and column 0"):
        regressor.calibrate(other, targets, error=0.01)
    few = targets.copy()
    few[8:, 1] = np.nan
    with pytest.raises(UserError, match=r"column 1 has 8; give 0\.112 or more, or more rows"):
        regressor.calibrate(other, few)
    regressor.calibrate(other, few, error=0.112)  # as the message says
    few[:, 1] = np.nan
    with pytest.raises(UserError, match="column 1 has 0; give more rows"):
        regressor.calibrate(other, few)
    with pytest.raises(UserError, match=r"y: the shape \(n, 2\) of fit is needed, got \(60,\)"):
        regressor.calibrate(other, targets[:, 1])
    assert not hasattr(regressor.fit(x, y), "calibrations_")


def test_per_cent_are_refused_before_anything_is_computed() -> None:
    model, data = lm.MultiHead(lm.nn.MLP(2)), lm.MultiTaskDataModule(lm.sources.Table("none.csv", {"y": "regression"}))
    with pytest.raises(UserError, match=r"coverage: a share above 0 and below 1 .* got 90; for 90 % give 0\.9$"):
        lm.calibrate_table(model, data, coverage=90)
    learner, episodes = lm.ProtoNet(lm.nn.MLP(2)), lm.EpisodicDataModule(lm.sources.Glyphs())
    with pytest.raises(UserError, match=r"coverage: .* got 95; for 95 % give 0\.95$"):
        lm.calibrate(learner, episodes, coverage=95)
    for cls in (lm.estimators.MultiTaskRegressor, lm.estimators.MultiTaskClassifier, lm.estimators.FewShotClassifier):
        with pytest.raises(UserError, match=r"error: .* got 10; for 10 % give 0\.1$"):
            cls().calibrate(None, None, error=10)


def test_sets_are_the_labels_that_are_probable_enough() -> None:
    x, _, y = rows(0, 80)
    classifier = lm.estimators.MultiTaskClassifier(**SMALL).fit(x, y)
    other, _, labels = rows(1, 60)
    new = rows(2, 10)[0]
    of_other, of_new = classifier.predict_proba(other), classifier.predict_proba(new)
    sets = classifier.calibrate(other, labels, error=0.2).predict_set(new)
    for task in (0, 1):
        there = ~np.isnan(labels[:, task])
        p = of_other[task][there]
        score = 1 - p[np.arange(len(p)), labels[there, task].astype(int)]
        expected = 1 - of_new[task] <= kth(score, 0.8) + 1e-6
        assert (sets[task] == expected).all()
    with pytest.raises(UserError, match=r"y: '7\.0' in column 0 is not one of the classes of fit"):
        classifier.calibrate(other, np.where(np.isnan(labels), labels, 7 * (labels > 0)), error=0.2)
    names = np.array(["a", "b", None], dtype=object)[np.nan_to_num(y[:, 1], nan=2).astype(int)]
    alone = lm.estimators.MultiTaskClassifier(**SMALL).fit(x, names).calibrate(x, names)
    assert alone.predict_set(new).shape == (10, 2)


def test_probabilities_and_abstention_follow_the_labels_of_calibration() -> None:
    """The temperature is that of scipy; the threshold is a quantile by numpy, below which a fifth of the rows lie."""
    x, _, y = rows(0, 80)
    classifier = lm.estimators.MultiTaskClassifier(**SMALL).fit(x, y)
    with pytest.raises(UserError, match=r"abstain: call calibrate\(X, y\) first"):
        classifier.abstain(x)
    other, _, labels = rows(1, 60)
    new = rows(2, 200)[0]
    plain, of_other, predicted = classifier.predict_proba(new), classifier.predict_proba(other), classifier.predict(new)
    classifier.calibrate(other, labels, error=0.2)
    tempered, abstained, unsure = classifier.predict_proba(new), classifier.abstain(new), classifier.abstain(new, 0.8)
    assert abstained.shape == unsure.shape == (200, 2)
    for task in (0, 1):
        there = ~np.isnan(labels[:, task])
        p, truth = of_other[task][there], labels[there, task].astype(int)
        beta = 1 / best_temperature(p, truth)
        expected = plain[task] ** beta / (plain[task] ** beta).sum(1, keepdims=True)
        np.testing.assert_allclose(tempered[task], expected, rtol=1e-4)
        assert abs(beta - 1) > 0.1  # it makes a difference
        assert (unsure[:, task] == (tempered[task].max(1) < 0.8)).all()
        assert (abstained[:, task] == (1 - plain[task].max(1) > kth(1 - p.max(1), 0.8) + 1e-6)).all()
        assert 0 < abstained[:, task].mean() < 0.35
    assert (classifier.predict(new) == predicted).all()
    alone = lm.estimators.MultiTaskClassifier(**SMALL).fit(x, y[:, 0]).calibrate(other, labels[:, 0])
    assert alone.abstain(new).shape == alone.abstain(new, 0.9).shape == (200,)
    assert (classifier.fit(x, y).predict_proba(new)[0] == plain[0]).all()


@pytest.mark.parametrize("threshold", ["a", 90, -0.1, float("nan"), True])
@pytest.mark.parametrize("name", ["FewShotClassifier", "MultiTaskClassifier"])
def test_a_threshold_is_a_probability(name: str, threshold: Any) -> None:
    x, y = [[0.0], [1.0]] * 10, ["a", "b"] * 10
    options = {} if name == "FewShotClassifier" else {"method": "Linear"}
    classifier = getattr(lm.estimators, name)(**options).fit(x, y)
    with pytest.raises(UserError, match=rf"threshold: a probability in \[0, 1\] is needed, got {threshold!r}"):
        classifier.abstain(x, threshold)


@pytest.mark.parametrize("name", ["FewShotClassifier", "MultiTaskClassifier"])
def test_as_many_rows_as_was_asked_for_are_abstained_from(name: str) -> None:
    """The share of new rows is at most α on average over calibrations, and at least α − 1 / (n + 1)."""
    draw = np.random.default_rng(0)
    centres, shares = draw.normal(size=(3, 4)), []

    def examples(count: int) -> tuple[Any, Any]:
        y = draw.integers(0, 3, count)
        return centres[y] + draw.normal(size=(count, 4)), y

    options = {} if name == "FewShotClassifier" else SMALL
    classifier = getattr(lm.estimators, name)(**options).fit(*examples(60))
    new = examples(500)[0]
    for _ in range(60):
        shares.append(classifier.calibrate(*examples(49), error=0.2).abstain(new).mean())
    slack = 3 * np.std(shares) / len(shares) ** 0.5
    assert 0.2 - 1 / 50 - slack < np.mean(shares) < 0.2 + slack


def best_temperature(p: Any, labels: Any) -> float:
    """The temperature of least log loss, with labels smoothed as if one more were wrong."""
    smoothed = np.full(p.shape, 1 / (len(p) + 2) / (p.shape[1] - 1))
    smoothed[np.arange(len(p)), labels] = (len(p) + 1) / (len(p) + 2)

    def loss(log_beta: float) -> float:
        z = np.exp(log_beta) * np.log(p)
        return float(-(smoothed * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum())

    return float(np.exp(-minimize_scalar(loss, options={"xtol": 1e-9}).x))


def test_outputs_that_depend_on_the_other_rows_of_a_batch_are_not_calibrated() -> None:
    x, numbers, labels = rows(0, 80)
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    for kind, y in ((lm.estimators.MultiTaskRegressor, numbers), (lm.estimators.MultiTaskClassifier, labels)):
        own = kind(backbone=norm, max_epochs=1).fit(x, y)
        with pytest.raises(UserError, match=r"backbone: backbone\.1 .* has no running statistics"):
            own.calibrate(x, y)
