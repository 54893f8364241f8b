"""Which way round a metric is good."""

from __future__ import annotations

import pytest

from lightning_meta.errors import UserError
from lightning_meta.modes import check_mode, contradiction, mode_of

LARGE = """val/accuracy val/accuracy/greek val/accuracy_step_3 val/top5_accuracy val/score val/joint_score val/r2
val/R² val/r2/loss val/auroc/x val/f1 val_f1 valAcc accuracy val/neg_mse val/log_likelihood
val/explained_variance val/reward"""
SMALL = """val/loss val/loss/accuracy val/mse val/mse_median val/mae/score val_loss loss valid/loss val/error_rate
val/regret val/perplexity val/nll val/negative_log_likelihood val/MeanSquaredError val/brier_score lr-Adam"""
UNKNOWN = ["val/foo", "val/accuracy_ci95", "val/accuracy_loss", "val/", "", "val/losses_of_accuracy", "val/roundtrip"]


@pytest.mark.parametrize(("names", "mode", "other"), [(LARGE, "max", "min"), (SMALL, "min", "max")])
def test_the_mode_follows_from_the_name(names: str, mode: str, other: str) -> None:
    for name in names.split():
        assert mode_of(name) == mode, name
        assert contradiction(name, mode) is None
        with pytest.raises(UserError, match=rf"^EarlyStopping: .*mode is {other}; give mode: {mode}$"):
            check_mode("EarlyStopping", name, other)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_a_name_does_not_say_must_be_given(name: str) -> None:
    with pytest.raises(UserError, match=r"mode: give max or min, as the name .* does not say"):
        mode_of(name)
    assert contradiction(name, "max") is contradiction(name, "min") is None
