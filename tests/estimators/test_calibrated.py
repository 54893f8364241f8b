"""Sets and intervals of the estimators of several targets, as numpy computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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
    sets = classifier.calibrate(other, labels, error=0.2).predict_set(new)
    for task in (0, 1):
        there = ~np.isnan(labels[:, task])
        p = classifier.predict_proba(other)[task][there]
        score = 1 - p[np.arange(len(p)), labels[there, task].astype(int)]
        expected = 1 - classifier.predict_proba(new)[task] <= kth(score, 0.8) + 1e-6
        assert (sets[task] == expected).all()
    with pytest.raises(UserError, match=r"y: '7\.0' in column 0 is not one of the classes of fit"):
        classifier.calibrate(other, np.where(np.isnan(labels), labels, 7 * (labels > 0)), error=0.2)
    names = np.array(["a", "b", None], dtype=object)[np.nan_to_num(y[:, 1], nan=2).astype(int)]
    alone = lm.estimators.MultiTaskClassifier(**SMALL).fit(x, names).calibrate(x, names)
    assert alone.predict_set(new).shape == (10, 2)
