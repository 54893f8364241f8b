"""Which way round a metric is good."""

from __future__ import annotations

import pytest

from lightning_meta.errors import UserError
from lightning_meta.modes import check_mode, contradiction, mode_of

ALONE = {
    "max": "val/balanced_accuracy val/accuracy val/accuracy/greek val/r2 val/R² val_f1 valAcc accuracy",
    "min": "val/loss val/mse val_loss val/log_loss val/log_loss/greek",
}
LARGE = f"""{ALONE["max"]} val/accuracy_step_3 val/top5_accuracy val/score val/joint_score val/auroc/x val/neg_mse
val/log_likelihood val/explained_variance val/reward val/f1score val/MulticlassF1Score val/R2Score val/mIoU val/miou
val/acc1 val/top1 val/map50 val/mAP50-95 val/ndcg val/mrr val/hits@10 val/elbo val/french/accuracy"""
SMALL = f"""{ALONE["min"]} val/mse_median val/mae/score loss valid/loss val/error_rate val/regret val/perplexity
val/nll val/negative_log_likelihood val/MeanSquaredError val/brier_score lr-Adam val/accuracy_loss val/dice_loss
val/iou_loss val/fid val/loss/greek"""
UNKNOWN = [
    "val/foo",
    "val/accuracy_ci95",
    "val/",
    "val/losses_of_accuracy",
    "val/roundtrip",
    "val/survival_time",
    "val/time_saved",
    "val/inter_class_distance",
    "val/loss_improvement",
    "val/error_detection/accuracy",
    "val/similarity/loss",
    "val/1-accuracy",
]


@pytest.mark.parametrize(("names", "mode", "other"), [(LARGE, "max", "min"), (SMALL, "min", "max")])
def test_the_mode_follows_from_the_name(names: str, mode: str, other: str) -> None:
    for name in names.split():
        assert mode_of(name) == mode, name
        assert contradiction(name, mode) is None
    for name in ALONE[mode].split():
        with pytest.raises(UserError, match=rf"^EarlyStopping: .*mode is {other}; give mode: {mode}$"):
            check_mode("EarlyStopping", name, other)


def test_a_callback_may_have_its_own_view_of_other_names() -> None:
    for name in ("val/accuracy_step_3", "val/dice_loss", "val/survival_time"):
        check_mode("EarlyStopping", name, "max")
        check_mode("EarlyStopping", name, "min")


@pytest.mark.parametrize("name", [*UNKNOWN, ""])
def test_what_a_name_does_not_say_must_be_given(name: str) -> None:
    with pytest.raises(UserError, match=r"mode: give max or min, as the name .* does not say"):
        mode_of(name)
    assert contradiction(name, "max") is contradiction(name, "min") is None


def test_a_score_that_is_followed_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(UserError, match=r"EarlyStopping: val/score is good where it is large.*give mode: max"):
        check_mode("EarlyStopping", "val/score", "min")
