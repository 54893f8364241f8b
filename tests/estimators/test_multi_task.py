"""Several targets at once with scikit-learn's interface."""

from __future__ import annotations

import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import lightning_meta as lm
from lightning_meta.errors import UserError

MultiTaskRegressor, MultiTaskClassifier = lm.estimators.MultiTaskRegressor, lm.estimators.MultiTaskClassifier
SMALL: dict[str, Any] = {"hidden": (8,), "max_epochs": 4, "learning_rate": 0.02}
METHODS = ["MultiHead", "Independent", "Conditioned", "CrossStitch", "MixtureOfExperts", "Linear"]


def rows(count: int = 120) -> tuple[NDArray[Any], NDArray[Any]]:
    """Three features of other scales, two targets that are linear in them, and a quarter of the first missing."""
    draw = np.random.default_rng(0)
    x = draw.normal([0, 100, -3], [1, 20, 0.01], (count, 3))
    y = np.stack([10 * x[:, 0] + x[:, 1], 1000 * x[:, 2] - x[:, 0]], axis=1)
    y[::4, 0] = np.nan
    return x, y


def labels(count: int = 120) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two targets with labels of text, some of which are missing."""
    x, y = rows(count)
    of_first = np.where(x[:, 0] > 0, "high", "low").astype(object)
    of_first[::4] = None
    of_second = np.array(["a", "b", "c"], object)[np.digitize(y[:, 1], [-3005, -2995])]
    return x, np.stack([of_first, of_second], axis=1)


def test_linear_regression_of_what_is_labelled() -> None:
    """A linear method gives scikit-learn's regression of each target on the rows that have it."""
    x, y = rows()
    own = MultiTaskRegressor("Linear").fit(x, y)
    for column, target in zip(own.predict(x).T, y.T, strict=True):
        there = ~np.isnan(target)
        np.testing.assert_allclose(column, LinearRegression().fit(x[there], target[there]).predict(x), rtol=1e-2)
    expected = [r2_score(t[~np.isnan(t)], p[~np.isnan(t)]) for t, p in zip(y.T, own.predict(x).T, strict=True)]
    assert own.score(x, y) == pytest.approx(np.mean(expected))


def test_a_constant_column_and_an_empty_row_change_nothing() -> None:
    x, y = rows()
    wider = np.concatenate([x, np.full((len(x), 1), 0.1)], axis=1)
    y[5] = np.nan
    own = MultiTaskRegressor("Linear").fit(wider, y)
    assert np.isfinite(own.predict(wider)).all()
    assert own.score(wider, y) > 0.99


@pytest.mark.parametrize("method", ["MultiHead", "Linear"])
def test_the_constant_is_predicted_for_a_constant_target(method: str) -> None:
    x, y = rows()
    y = np.stack([y[:, 1], np.full(len(y), 37.5)], axis=1)
    y[::3, 1] = np.nan
    predicted = MultiTaskRegressor(method, **SMALL, random_state=0).fit(x, y).predict(x[:20])
    assert predicted[:, 1].tolist() == [37.5] * 20
    assert len(np.unique(predicted[:, 0])) == 20


def test_one_target_is_flat() -> None:
    x, y = rows(40)
    own = MultiTaskRegressor(**SMALL).fit(x, y[:, 1])
    assert own.predict(x).shape == (40,)
    assert own.score(x, y[:, 1]) == pytest.approx(r2_score(y[:, 1], own.predict(x)))


def test_labels_of_text_with_some_missing() -> None:
    x, y = labels()
    own = MultiTaskClassifier("Linear").fit(x, y)
    assert [list(classes) for classes in own.classes_] == [["high", "low"], ["a", "b", "c"]]
    assert [p.shape for p in own.predict_proba(x)] == [(120, 2), (120, 3)]
    for p, classes, column in zip(own.predict_proba(x), own.classes_, own.predict(x).T, strict=True):
        np.testing.assert_allclose(p.sum(1), 1)
        assert (classes[p.argmax(1)] == column).all()
    there = y[:, 0] != None  # noqa: E711
    parts = [
        accuracy_score(y[there, 0].astype(str), own.predict(x)[there, 0]),
        accuracy_score(y[:, 1].astype(str), own.predict(x)[:, 1]),
    ]
    assert own.score(x, y) == pytest.approx(np.mean(parts))
    assert min(parts) > 0.9


def test_labels_keep_their_kind() -> None:
    x, _ = rows(60)
    numbers = (x[:, 0] > 0).astype(float)
    numbers[::5] = np.nan
    own = MultiTaskClassifier(**SMALL).fit(x, numbers)
    assert own.classes_.tolist() == [0.0, 1.0]
    assert own.predict_proba(x).shape == (60, 2)
    mixed = np.stack([x[:, 0] > 0, np.where(x[:, 1] > 100, "big", "small")], axis=1, dtype=object)
    first = MultiTaskClassifier(**SMALL).fit(x, mixed).predict(x)[0].tolist()
    assert isinstance(first[0], bool)
    assert first[1] in ("big", "small")


def test_a_class_of_one_row_is_trained_on() -> None:
    y = np.zeros(30, int)
    y[15:] = 1
    for rare in range(30):  # wherever it lies
        y_rare = y.copy()
        y_rare[rare] = 2
        held = lm.estimators.training.held_out_rows([y_rare == c for c in range(3)], 0.3, 0)
        assert not held[rare]
        assert held.any()


def test_the_same_seed_is_the_same_model_and_leaves_other_generators_alone() -> None:
    x, y = rows(60)
    before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    first, second = (MultiTaskRegressor(**SMALL).fit(x, y).predict(x) for _ in range(2))
    assert (first == second).all()
    assert (MultiTaskRegressor(**SMALL, random_state=1).fit(x, y).predict(x) != first).any()
    after = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    assert (before[0] == after[0]).all()
    assert str(before[1:]) == str(after[1:])


def test_nothing_is_said_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MultiTaskRegressor(**SMALL).fit(*rows(60))
    assert not caught
    assert not list(tmp_path.iterdir())
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_training_stops_and_keeps_the_best_epoch() -> None:
    """Noise cannot be learned: the best epoch is early, and its weights are those of a run that ends there."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(60, 3)), draw.normal(size=60)
    own = MultiTaskRegressor(hidden=(16,), learning_rate=0.05, patience=3, max_epochs=60).fit(x, y)
    assert own.n_iter_ < 57
    again = MultiTaskRegressor(hidden=(16,), learning_rate=0.05, patience=3, max_epochs=own.n_iter_).fit(x, y)
    assert (own.predict(x) == again.predict(x)).all()


def test_pipelines_searches_and_copies() -> None:
    x, y = labels(60)
    pipeline = make_pipeline(StandardScaler(), MultiTaskClassifier("Linear"))
    search = GridSearchCV(pipeline, {"multitaskclassifier__method": ["Linear", "MultiHead"]}, cv=KFold(2))
    pipeline.set_params(**{f"multitaskclassifier__{name}": value for name, value in SMALL.items()})
    assert search.fit(x, y).best_score_ > 0.7
    x, y = rows(60)
    assert cross_val_score(MultiTaskRegressor("Linear"), x, y, cv=3).min() > 0.9
    fitted = MultiTaskRegressor(**SMALL).fit(x, y)
    assert (pickle.loads(pickle.dumps(fitted)).predict(x) == fitted.predict(x)).all()
    assert clone(fitted).get_params() == fitted.get_params()


def test_a_network_and_options_of_ones_own() -> None:
    x, y = rows(60)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
    before = [p.clone() for p in network.parameters()]
    own = MultiTaskRegressor(
        lm.MultiHead, backbone=network, options={"weighting": lm.weightings.Uncertainty()}, max_epochs=2
    )
    assert type(own.fit(x, y).module_.weighting) is lm.weightings.Uncertainty
    assert all(torch.equal(p, q) for p, q in zip(before, network.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_way_of_sharing_learns(method: str) -> None:
    x, y = rows(200)
    own = MultiTaskRegressor(method, hidden=(16, 16), learning_rate=0.01, max_epochs=60).fit(x[:150], y[:150])
    assert own.score(x[150:], y[150:]) > 0.9
    x, y = labels(200)
    classifier = MultiTaskClassifier(method, hidden=(16, 16), learning_rate=0.01, max_epochs=30).fit(x[:150], y[:150])
    assert classifier.score(x[150:], y[150:]) > 0.85


def test_data_frames() -> None:
    pandas = pytest.importorskip("pandas", reason="the developer tools bring it")
    x, y = labels(60)
    frame = pandas.DataFrame(x, columns=["age", "height", "weight"])
    targets = pandas.DataFrame(y, columns=["first", "second"])
    targets.loc[3, "first"] = pandas.NA
    own = MultiTaskClassifier("Linear").fit(frame, targets)
    assert own.feature_names_in_.tolist() == ["age", "height", "weight"]
    assert own.classes_[0].tolist() == ["high", "low"]
    assert own.score(frame, targets) > 0.9
    with pytest.raises(ValueError, match="feature names should match"):
        own.predict(frame[["height", "age", "weight"]])
    with pytest.raises(lm.UserError, match=r"could not convert string to float: 'x'; encode .*ColumnTransformer"):
        own.fit(frame.assign(weight="x"), targets)
    with pytest.raises(lm.UserError, match=r"X: column 'born' holds dates; give numbers"):
        own.fit(frame.assign(born=pandas.Timestamp("2001-05-01")), targets)
    with pytest.raises(lm.UserError, match=r"y: could not convert .*; a regression takes numbers"):
        MultiTaskRegressor("Linear").fit(frame, targets)
    kinds = targets.astype({"first": "category"}).assign(second=(targets["second"] == "c").astype("boolean"))
    own.fit(frame, kinds)  # pandas finds no common type of these columns
    assert [classes.tolist() for classes in own.classes_] == [["high", "low"], [False, True]]
    assert own.score(frame, kinds) > 0.9


@pytest.mark.parametrize("method", ["Linear", "MultiHead"])
def test_a_column_that_is_constant_in_training_changes_nothing_in_new_rows(method: str) -> None:
    x, y = rows(60)
    constant = np.full((60, 1), 19.1)
    options: dict[str, Any] = {"hidden": (8,), "max_epochs": 2}
    own = MultiTaskRegressor(method, **options).fit(np.hstack([x, constant]), y)
    np.testing.assert_array_equal(own.predict(np.hstack([x, constant])), own.predict(np.hstack([x, 1e6 + constant])))


def test_mistakes_are_one_line_each() -> None:
    x, y = rows(30)
    nothing = y.copy()
    nothing[:, 1] = np.nan
    mistakes: list[tuple[dict[str, Any], Any, Any, str]] = [
        ({"method": "ProtoNet"}, x, y, "method: MultiTaskRegressor takes a multi-task method, such as 'MultiHead'"),
        ({"options": {"depth": 3}}, x, y, "depth: there is no such option of MultiHead"),
        ({"validation_fraction": 1}, x, y, "validation_fraction: a share above 0 and below 1"),
        ({"random_state": -1}, x, y, "random_state: a whole number"),
        ({"max_epochs": 0}, x, y, "max_epochs: at least 1 is needed, got 0"),
        ({"method": "MultiHed"}, x, y, "got 'MultiHed'; did you mean 'MultiHead'"),
        ({"method": "ProtoNet"}, x, y, "got 'ProtoNet'$"),
        ({"options": ["a"]}, x, y, r"options: a dict of arguments by name is needed, got \['a'\]"),
        ({"backbone": "mlp"}, x, y, "backbone: a network is needed, got str"),
        ({}, x, nothing, "y: column 1 has no label"),
        ({}, x[:1], y[1:2], "X: n_samples=1 leave no row for validation"),
    ]
    for options, inputs, targets, said in mistakes:
        with pytest.raises(lm.UserError, match=said):
            MultiTaskRegressor(**options).fit(inputs, targets)
    with pytest.raises(lm.UserError, match="y: column 0 has 1 class, '0'; at least 2 classes"):
        MultiTaskClassifier().fit(x, np.zeros(30, int))


def test_duplicate_column_names_are_all_named() -> None:
    x, y = rows()
    with pytest.raises(UserError, match=r"X: the names of columns must be unique, got 'a' 2 times$"):
        MultiTaskRegressor(**SMALL).fit(pd.DataFrame(x, columns=["a", "a", "b"]), y)


def test_a_fit_that_fails_leaves_nothing_of_an_earlier_one() -> None:
    x, y = rows()
    regressor = lm.estimators.MultiTaskRegressor(max_epochs=1).fit(x, y)
    with pytest.raises(lm.UserError, match="no label"):
        regressor.fit(x, np.full_like(y, np.nan))
    with pytest.raises(NotFittedError):
        regressor.predict(x)


@pytest.mark.parametrize("cls", [MultiTaskRegressor, MultiTaskClassifier])
def test_targets_to_score_have_the_shape_of_those_of_fit(cls: Any) -> None:
    x, y = rows(60)
    y = (y > np.nanmean(y, 0)).astype(float)
    own = cls("Linear").fit(x, y)
    with pytest.raises(lm.UserError, match=r"y: the shape \(n, 2\) of fit is needed, got \(60, 3\)"):
        own.score(x, np.hstack([y, y[:, :1]]))
    with pytest.raises(lm.UserError, match=r"y: the shape \(n, 2\) of fit is needed, got \(60,\)"):
        own.score(x, y[:, 0])


def test_truth_values_stay_truth_values_and_mixed_labels_are_refused() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = pd.DataFrame({"a": x[:, 0] > 0, "b": pd.array(x[:, 1] > 0, dtype="boolean"), "n": (x[:, 2] > 0) * 2})
    classifier = MultiTaskClassifier("Linear").fit(x, y)
    assert [classes.dtype.kind for classes in classifier.classes_] == ["b", "b", "i"]
    predicted = classifier.predict(x)
    assert type(predicted[0, 0]) is bool
    assert (predicted == y.astype(object).to_numpy()).mean() > 0.9
    mixed = np.array([1, "a"] * 30, dtype=object)
    for fit in (MultiTaskClassifier("Linear").fit, lm.estimators.FewShotClassifier().fit):
        with pytest.raises(UserError, match="of one kind are needed, got numbers, such as 1 and text, such as 'a'"):
            fit(x, mixed)
    few = lm.estimators.FewShotClassifier().fit(x, list(x[:, 0] > 0))
    assert few.predict(x).dtype == bool
    few = lm.estimators.FewShotClassifier().fit(x, ((x[:, 0] > 0) * 3).astype(object))
    assert set(few.predict(x)) == {0, 3}
