"""Whether a metric is good where it is large or where it is small, by its name."""

from __future__ import annotations

import re
from typing import Literal

from lightning_meta.errors import UserError

Mode = Literal["max", "min"]

_MAX = """acc accuracy ap auc auprc auroc average_precision bleu correlation dice explained f1 fbeta gain iou jaccard
kappa likelihood map matthews mcc pearson precision psnr r2 recall return reward roc rouge sensitivity similarity
spearman specificity ssim"""
_MIN = """bce brier cer cost crossentropy cross_entropy deviance distance divergence ece err error errors hinge kl loss
losses lr mae mape mse nll perplexity ppl regret rmse time wer xent"""
_STAGES = {"train", "val", "valid", "validation", "test"}


def mode_of(metric: str) -> Mode:
    """Whether a good value of a metric is large ("max") or small ("min").

    Args:
        metric: Its logged name, such as `val/accuracy`, `val/loss/<task>` or `val_f1`.

    Raises:
        UserError: The name says neither, or both.
    """
    mode = known_mode(metric)
    if mode is None:
        raise UserError(
            f"mode: give max or min, as the name {metric!r} does not say whether large or small values are good"
        )
    return mode


def known_mode(metric: str) -> Mode | None:
    """As `mode_of`, but None for a name that says neither or both."""
    words = _words(metric)
    if {"ci95", "std", "var"} & set(words):  # the spread of a metric
        return None
    joined = f"_{'_'.join(words)}_"
    large, small = (any(f"_{word}_" in joined for word in known.split()) for known in (_MAX, _MIN))
    if large == small:  # a score is good where it is large, unless it is said of what, as a Brier score is
        return "max" if not large and "score" in words else None
    negated = bool({"neg", "negative"} & set(words))  # scikit-learn's neg_mean_squared_error, a negative likelihood
    return "max" if large != negated else "min"


def contradiction(metric: str, mode: str) -> str | None:
    """What is wrong with a mode, as far as the metric's name says; None where nothing is."""
    known = known_mode(metric)
    if known is None or known == mode:
        return None
    return f"{metric} is good where it is {'large' if known == 'max' else 'small'}, and mode is {mode}"


def check_mode(whose: str, monitor: str, mode: str) -> None:
    """Refuse a mode that takes a bad value of a metric for a good one.

    Args:
        whose: What follows the metric.
        monitor: The metric.
        mode: `min` or `max`.

    Raises:
        UserError: The metric and the mode that it needs.
    """
    if wrong := contradiction(monitor, mode):
        raise UserError(f"{whose}: {wrong}; give mode: {'max' if mode == 'min' else 'min'}")


def _words(metric: str) -> list[str]:
    """The words of the metric itself: neither the stage before it nor the name of the task behind it."""
    parts = [part for part in metric.split("/") if part]
    if len(parts) > 1 and parts[0].lower() in _STAGES:
        parts = parts[1:]
    measure = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", parts[0]) if parts else ""
    words = [word for word in re.split(r"[^a-z0-9]+", measure.lower().replace("²", "2")) if word]
    return words[1:] if len(words) > 1 and words[0] in _STAGES else words
