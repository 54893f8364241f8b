"""Whether a metric is good where it is large or where it is small, by its name."""

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
# What turns a metric round, or makes another of it: nothing is known of these.
_TURNED = {"ci95", "std", "var", "improvement", "reduction", "saved", "minus"}
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
    # This package logs val/<metric>/<task>, others val/<task>/<metric>.
    found = [_of_words(_words(part)) for part in _parts(metric)]
    if len(found) > 1 and "score" in _words(_parts(metric)[-1]):  # a task of that name
        found = found[:1]
    modes = {mode for mode in (found[:1] + found[1:][-1:]) if mode}
    return modes.pop() if len(modes) == 1 else None


def contradiction(metric: str, mode: str) -> str | None:
    """What is wrong with a mode, as far as the metric's name says; None where nothing is."""
    known = known_mode(metric)
    if known is None or known == mode:
        return None
    return f"{metric} is good where it is {'large' if known == 'max' else 'small'}, and mode is {mode}"


def check_mode(whose: str, monitor: str, mode: str) -> None:
    """Refuse a mode that takes a bad value of a metric for a good one; of names that are a metric's alone.

    Args:
        whose: What follows the metric.
        monitor: The metric.
        mode: `min` or `max`.

    Raises:
        UserError: The metric and the mode that it needs.
    """
    parts = _parts(monitor)
    alone = "_".join(_words(parts[0])) if parts else ""
    if alone in [*_MAX, *_MIN, "balanced_accuracy", "log_loss", "score"] and (wrong := contradiction(monitor, mode)):
        raise UserError(f"{whose}: {wrong}; give mode: {'max' if mode == 'min' else 'min'}")


def _of_words(words: list[str]) -> Mode | None:
    if not words or _TURNED & set(words) or words[0].isdigit():  # 1-accuracy
        return None
    joined = f"_{'_'.join(words)}_"
    large, small = (any(f"_{word}_" in joined for word in known) for known in (_MAX, _MIN))
    if words[-1] in ("loss", "losses", "error", "errors"):  # of a Dice loss
        large, small = False, True
    if large == small:  # a score is good where it is large, unless it is said of what, as a Brier score is
        return "max" if not large and "score" in words else None
    negated = bool({"neg", "negative"} & set(words))  # scikit-learn's neg_mean_squared_error, a negative likelihood
    return "max" if large != negated else "min"


def _parts(metric: str) -> list[str]:
    """A name without its stage: the metric, and behind it or before it the task."""
    parts = [part for part in metric.split("/") if part]
    return parts[1:] if len(parts) > 1 and parts[0].lower() in _STAGES else parts


def _words(part: str) -> list[str]:
    """The words of a metric's name, without numbers behind them, as in top1 or mAP50."""
    plain = part.replace("²", "2").replace("mIoU", "miou").replace("mAP", "map").replace("IoU", "iou")
    spelt = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", spelt) if word]
    words = words[1:] if len(words) > 1 and words[0] in _STAGES else words
    known = {"f1", "r2", "ci95", *_MAX, *_MIN}
    words = [word if word in known else word.removesuffix("score") or word for word in words]
    return [word if word in known or word.isdigit() else word.rstrip("0123456789") for word in words]
