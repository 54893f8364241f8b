"""scikit-learn's own tests of estimators, on arrays of two dimensions."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.utils.estimator_checks import check_estimator

import lightning_meta as lm

NOT_RUN = {"check_array_api_input": "scikit-learn runs it only where SCIPY_ARRAY_API is set"}
SMALL = {"hidden": (16,), "max_epochs": 10, "learning_rate": 0.02}
ESTIMATORS: list[tuple[str, dict[str, Any]]] = [
    ("FewShotClassifier", {}),
    ("FewShotClassifier", {"learner": "logistic"}),
    ("FewShotClassifier", {"learner": "nearest_mean"}),
    ("MultiTaskRegressor", SMALL),
    ("MultiTaskClassifier", SMALL),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the checks provoke them
@pytest.mark.parametrize(("name", "options"), ESTIMATORS, ids=lambda part: str(part)[:30])
def test_scikit_learn_finds_nothing(name: str, options: dict[str, Any]) -> None:
    pytest.importorskip("pandas", reason="the checks of DataFrames need it")
    results = check_estimator(getattr(lm.estimators, name)(**options), on_fail="raise", on_skip=None)
    statuses = {result["check_name"]: result["status"] for result in results}
    assert len(statuses) > 40
    assert {name: status for name, status in statuses.items() if status != "passed"} == dict.fromkeys(
        NOT_RUN, "skipped"
    )
