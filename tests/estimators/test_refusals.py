"""Arrays and arguments that the estimators refuse, each in one line that names the argument."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import lightning_meta as lm

pandas = pytest.importorskip("pandas", reason="the developer tools bring it")

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(20, 4))
NUMBERS, LABELS = DRAW.normal(size=20), np.array(["a", "b"] * 10)
SMALL = {"hidden": (4,), "max_epochs": 1}
MAKE: dict[str, Callable[..., Any]] = {
    "few": lm.estimators.FewShotClassifier,
    "numbers": lambda **options: lm.estimators.MultiTaskRegressor(**{**SMALL, **options}),
    "labels": lambda **options: lm.estimators.MultiTaskClassifier(**{**SMALL, **options}),
}
CLASSIFIERS = ["few", "labels"]


def targets(kind: str) -> Any:
    return NUMBERS if kind == "numbers" else LABELS


def frame(first: Any) -> Any:
    return pandas.DataFrame({"first": first, "b": [1, 2], "c": [1, 2], "d": [1, 2]})


def check(said: str, function: Callable[..., Any], *arguments: Any) -> None:
    """The error is one line, which says what is wrong."""
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


WRONG_FEATURES: dict[str, tuple[Any, str]] = {
    "None": (None, "^X: an array, a list or a DataFrame is needed, got None"),
    "dictionary": ({"a": [1.0]}, "^X: an array, a list or a DataFrame is needed, got dict"),
    "one row": (X[0], r"^X: rows and columns are needed, got 4 numbers\. Reshape your data: X.reshape\(1, -1\)"),
    "tensors of one number": (list(torch.ones(4)), "^X: Expected 2D array, got 1D array instead$"),
    "list of numbers": (X[0].tolist(), r"^X: rows and columns are needed, got 4 numbers"),
    "column of a table": (pandas.Series(X[0]), r"^X: rows and columns are needed, got 4 numbers"),
    "missing": (np.full((2, 4), np.nan), "^X: Input X contains NaN; fill in missing values first"),
    "infinite": (np.full((2, 4), np.inf), "^X: Input X contains infinity"),
    "complex": (X + 1j, "^X: Complex data not supported"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], "^X: rows of the same length with a number in each place are needed"),
    "arrays of different shapes": ([np.zeros((2, 3)), np.zeros((2, 4))], "^X: rows of the same length"),
    "dictionaries": ([{"a": 1}], "^X: rows of the same length with a number in each place are needed.*not 'dict'"),
    "text": (np.array([["a"] * 4]), "^X: could not convert string to float.*OneHotEncoder"),
    "text column": (frame(["u", "v"]), "^X: could not convert string to float: 'u'.*OneHotEncoder"),
    "category": (frame(pandas.Categorical(["u", "v"])), "^X: could not convert string to float: 'u'.*OneHotEncoder"),
    "dates": (frame(pandas.to_datetime(["2020-01-01"] * 2)), "^X: column 'first' holds dates"),
    "array of dates": (np.array([["2020-01-01"] * 4], dtype="datetime64[D]"), "^X: it holds dates"),
    "sparse": (csr_matrix(X), r"^X: Sparse data was passed for X.*toarray.*sparse_output=False.*sparse_threshold=0 of"),
    "columns": (X[:, :3], r"^X: X has 3 features, but \w+ is expecting 4"),
}


@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.parametrize("case", WRONG_FEATURES)
@pytest.mark.parametrize("kind", MAKE)
def test_features(kind: str, case: str) -> None:
    x, said = WRONG_FEATURES[case]
    own = MAKE[kind]().fit(X, targets(kind))
    check(said, own.predict, x)
    if case != "columns":
        check(said, own.fit, x, targets(kind)[: len(X) if x is None or case == "sparse" else len(x)])


WRONG_LABELS: dict[str, tuple[Any, str]] = {
    "scalar": (3, "^y: an array, a list or a DataFrame is needed, got int"),
    "text": ("ab", "^y: an array, a list or a DataFrame is needed, got str"),
    "mixed list": (["a", 1] * 10, "^y: labels of one kind are needed, got text, such as 'a' and numbers, such as 1"),
    "mixed objects": (np.array(["a", 1] * 10, object), "^y: labels of one kind are needed"),
    "truth and numbers": ([True, 1] * 10, "^y: labels of one kind are needed"),
    "objects": ([Decimal(1), Decimal(2)] * 10, "^y: labels are .* got objects of type Decimal, such as Decimal"),
    "dates": ([datetime.date(2020, 1, day) for day in (1, 2)] * 10, "^y: labels are .* got objects of type date"),
    "bytes": ([b"a", b"b"] * 10, "^y: labels are .* got objects of type bytes"),
    "array of bytes": (np.array([b"a", b"b"] * 10), "^y: labels are .* got objects of type bytes"),
    "complex": (np.array([1j, 2j] * 10), "^y: "),
    "ragged": ([[1], [2, 3]] * 10, "^y: labels are .* got objects of type list"),
    "dimensions": (np.zeros((20, 2, 2)), "^y: Found array with dim 3"),
}


@pytest.mark.parametrize("case", WRONG_LABELS)
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_labels(kind: str, case: str) -> None:
    y, said = WRONG_LABELS[case]
    own = MAKE[kind]().fit(X, LABELS)
    check(said, own.calibrate, X, y)
    check(said, own.score, X, y)
    check(said, own.fit, X, y)


@pytest.mark.parametrize("y", [["a", None] * 10, [float("nan"), "a", "b", "a"] * 5, [0.0, float("nan")] * 10], ids=str)
def test_each_few_shot_example_has_a_label(y: list[Any]) -> None:
    check("^y: row [01] has no label, got ", MAKE["few"]().fit, X, y)


def test_a_missing_label_beside_text_is_not_a_class() -> None:
    own = MAKE["labels"]().fit(X, [float("nan"), "a", "b", "a"] * 5)
    assert own.classes_.tolist() == ["a", "b"]


def test_labels_may_be_tensors() -> None:
    for kind in CLASSIFIERS:
        for y in (torch.arange(20) % 2, list(torch.arange(20) % 2)):
            assert MAKE[kind]().fit(X, y).classes_.tolist() == [0, 1]


WRONG_TARGETS: dict[str, tuple[Any, str]] = {
    "scalar": (3, "^y: an array, a list or a DataFrame is needed, got int"),
    "text": (["a"] * 20, "^y: could not convert string to float: 'a'; a regression takes numbers"),
    "dates": (pandas.Series(pandas.to_datetime(["2020-01-01"] * 20)), "^y: it holds dates"),
    "frame of dates": (pandas.DataFrame({"u": pandas.to_datetime(["2020-01-01"] * 20)}), "^y: column 'u' holds dates"),
    "objects": ([datetime.date(2020, 1, 1)] * 20, "^y: rows of the same length with a number in each place are needed"),
    "ragged": ([[1], [2, 3]] * 10, "^y: rows of the same length"),
    "infinite": ([np.inf, 1.0] * 10, "^y: Input y contains infinity"),
    "dimensions": (np.zeros((20, 2, 2)), "^y: Found array with dim 3"),
}


@pytest.mark.parametrize("case", WRONG_TARGETS)
def test_numbers(case: str) -> None:
    y, said = WRONG_TARGETS[case]
    own = MAKE["numbers"]().fit(X, NUMBERS)
    check(said, own.calibrate, X, y)
    check(said, own.score, X, y)
    check(said, own.fit, X, y)


@pytest.mark.parametrize("kind", MAKE)
def test_as_many_targets_as_rows(kind: str) -> None:
    own, y = MAKE[kind]().fit(X, targets(kind)), targets(kind)[:5]
    for function in (own.calibrate, own.score, own.fit):
        check("inconsistent numbers of samples", function, X, y)


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "accelerator": (
        {"accelerator": "warp"},
        "^accelerator: expected auto or cpu or cuda or gpu or mps or tpu, got warp",
    ),
    "case": ({"accelerator": "GPU"}, "^accelerator: .*; did you mean 'gpu'"),
    "no accelerator": ({"accelerator": None}, "^accelerator: expected auto .* got None"),
    "device": ({"accelerator": torch.device("cpu")}, "^accelerator: expected auto .* got cpu"),
    "list": ({"accelerator": ["cpu"]}, "^accelerator: expected auto"),
    "absent": ({"accelerator": "tpu"}, "^accelerator: torch finds no TPU here"),
    "epochs": ({"max_epochs": None}, "^max_epochs: a value is needed, got None"),
    "patience": ({"patience": None}, "^patience: a value is needed, got None"),
    "batch": ({"batch_size": None}, "^batch_size: a value is needed, got None"),
    "options": ({"options": {3: 1}}, "^options: a dict of arguments by name is needed"),
    "backbone": ({"options": {"backbone": torch.nn.Flatten()}}, r"^options: backbone is .*\(backbone=...\)"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
@pytest.mark.parametrize("kind", ["numbers", "labels"])
def test_options(kind: str, case: str) -> None:
    options, said = WRONG_OPTIONS[case]
    check(said, MAKE[kind](**options).fit, X, targets(kind))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["cuda", "gpu"])
def test_an_accelerator_that_is_not_there(accelerator: str) -> None:
    if accelerator == "gpu" and torch.backends.mps.is_available():
        pytest.skip("there is a GPU")
    check("^accelerator: torch finds no (cuda|GPU) here", MAKE["numbers"](accelerator=accelerator).fit, X, NUMBERS)


@pytest.mark.parametrize(("factor", "extent"), [(1e155, "widely"), (1e200, "widely"), (1e-170, "little")])
def test_columns_whose_variance_is_beyond_float64(factor: float, extent: str) -> None:
    wide = X * [1, factor, 1, 1]
    check(
        f"^X: column 1 varies too {extent} to be scaled; give it in another unit", MAKE["numbers"]().fit, wide, NUMBERS
    )
    MAKE["numbers"]().fit(X * [1, 1e150 if factor > 1 else 1e-150, 1, 1], NUMBERS)
