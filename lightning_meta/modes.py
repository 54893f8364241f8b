"""Infer from the name of a metric whether larger or smaller values are better."""

from __future__ import annotations

import re
from typing import Literal

from lightning_meta.errors import UserError

Mode = Literal["max", "min"]

_MAX = [
    "acc",
    "accuracy",
    "ap",
    "auc",
    "auprc",
    "auroc",
    "average_precision",
    "bleu",
    "correlation",
    "dice",
    "elbo",
    "explained",
    "f1",
    "fbeta",
    "hits",
    "iou",
    "jaccard",
    "kappa",
    "likelihood",
    "map",
    "matthews",
    "mcc",
    "miou",
    "mrr",
    "ndcg",
    "pearson",
    "precision",
    "psnr",
    "r2",
    "recall",
    "return",
    "reward",
    "roc",
    "rouge",
    "sensitivity",
    "similarity",
    "spearman",
    "specificity",
    "ssim",
    "top",
]
_MIN = [
    "bce",
    "brier",
    "cer",
    "cost",
    "crossentropy",
    "cross_entropy",
    "deviance",
    "divergence",
    "ece",
    "err",
    "error",
    "errors",
    "fid",
    "hinge",
    "kl",
    "loss",
    "losses",
    "lpips",
    "lr",
    "mae",
    "mape",
    "mse",
    "nll",
    "perplexity",
    "ppl",
    "regret",
    "rmse",
    "wer",
    "xent",
]
# Words that invert a metric or turn it into a different quantity; the mode of these is unknown.
_TURNED = {"ci95", "std", "var", "improvement", "reduction", "saved", "minus"}
_STAGES = {"train", "val", "valid", "validation", "test"}


def mode_of(metric: str) -> Mode:
    """Return "max" if larger values of a metric are better, "min" if smaller ones are.

    Args:
        metric: Logged name, such as `val/accuracy`, `val/loss/<task>` or `val_f1`.

    Raises:
        UserError: The mode cannot be inferred from the name.
    """
    mode = known_mode(metric)
    if mode is None:
        raise UserError(
            f"mode: give max or min, as the name {metric!r} does not say whether large or small values are good"
        )
    return mode


def known_mode(metric: str) -> Mode | None:
    """Return the mode as `mode_of`, or None if it cannot be inferred from the name."""
    # This package logs val/<metric>/<task>, others val/<task>/<metric>.
    by_part = [_mode_of_words(_words(part)) for part in _parts(metric)]
    if len(by_part) > 1 and "score" in _words(_parts(metric)[-1]):  # the name of a task
        by_part = by_part[:1]
    modes = {mode for mode in (by_part[:1] + by_part[1:][-1:]) if mode}
    return modes.pop() if len(modes) == 1 else None


def contradiction(metric: str, mode: str) -> str | None:
    """Describe how a mode contradicts the name of a metric; None if it does not."""
    inferred = known_mode(metric)
    if inferred is None or inferred == mode:
        return None
    return f"{metric} is good where it is {'large' if inferred == 'max' else 'small'}, and mode is {mode}"


def check_mode(whose: str, monitor: str, mode: str) -> None:
    """Refuse a mode that contradicts the name of a metric; only exact names of metrics are checked.

    Args:
        whose: Name of the callback or schedule, for the error message.
        monitor: Logged name of the metric.
        mode: `min` or `max`.

    Raises:
        UserError: The mode contradicts the name.
    """
    parts = _parts(monitor)
    name = "_".join(_words(parts[0])) if parts else ""
    if name in [*_MAX, *_MIN, "balanced_accuracy", "log_loss", "score"] and (wrong := contradiction(monitor, mode)):
        raise UserError(f"{whose}: {wrong}; give mode: {'max' if mode == 'min' else 'min'}")


def _mode_of_words(words: list[str]) -> Mode | None:
    if not words or _TURNED & set(words) or words[0].isdigit():  # such as 1-accuracy
        return None
    joined = f"_{'_'.join(words)}_"
    large, small = (any(f"_{word}_" in joined for word in names) for names in (_MAX, _MIN))
    if words[-1] in ("loss", "losses", "error", "errors"):  # such as a Dice loss
        large, small = False, True
    if large == small:  # larger scores are better, except for known ones such as the Brier score
        return "max" if not large and "score" in words else None
    negated = bool({"neg", "negative"} & set(words))  # such as neg_mean_squared_error of scikit-learn
    return "max" if large != negated else "min"


def _parts(metric: str) -> list[str]:
    """Split a logged name at slashes and drop the stage: the metric, and after or before it the task."""
    parts = [part for part in metric.split("/") if part]
    return parts[1:] if len(parts) > 1 and parts[0].lower() in _STAGES else parts


def _words(part: str) -> list[str]:
    """Split the name of a metric into words, without trailing numbers, as in top1 or mAP50."""
    plain = part.replace("²", "2").replace("mIoU", "miou").replace("mAP", "map").replace("IoU", "iou")
    spelt = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", spelt) if word]
    words = words[1:] if len(words) > 1 and words[0] in _STAGES else words
    known = {"f1", "r2", "ci95", *_MAX, *_MIN}
    words = [word if word in known else word.removesuffix("score") or word for word in words]
    return [word if word in known or word.isdigit() else word.rstrip("0123456789") for word in words]
