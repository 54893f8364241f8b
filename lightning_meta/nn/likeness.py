"""Checks that new inputs resemble those of training in shape, dtype, range and brightness."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.nn.features import IMAGE_DIMS, are_ids, as_input

SAMPLE = 1000  # most inputs that statistics are computed from
FAR = 10  # inputs beyond this multiple of the largest training input cause a warning


class InputWarning(UserWarning):
    """New inputs differ from those of training, so predictions are likely to be wrong.

    Args:
        what: The difference.
        remedy: The fix.

    Attributes:
        inverted: Whether light and dark seem to be swapped.
    """

    def __init__(self, what: str, remedy: str, inverted: bool = False) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what, self.inverted = what, inverted


def input_statistics(x: Tensor) -> tuple[float, ...]:
    """Statistics of training inputs, as the network takes them, from an evenly spaced sample.

    Args:
        x: Stored inputs `(n, *input_shape)`.

    Returns:
        Minimum and maximum, 0 and 1 for uint8 images; then mean and standard deviation over inputs of their mean (the
        brightness of an image). Empty for ids, and if a value is not finite.
    """
    if not x.numel() or are_ids(x.shape[1:], str(x.dtype).removeprefix("torch.")) or x.is_complex():
        return ()
    stored = x[:: -(-len(x) // SAMPLE)]
    sample = as_input(stored, torch.float32).flatten(1)
    low, high = (0.0, 1.0) if x.dtype == torch.uint8 else (float(sample.min()), float(sample.max()))
    means = sample.mean(1)
    statistics = (low, high, float(means.mean()), float(means.std(correction=0)))
    return statistics if all(map(torch.isfinite, torch.tensor(statistics))) else ()


def without(x: Tensor, coded: Sequence[int]) -> Tensor:
    """Inputs `(n, D)` without those at some places."""
    chosen = set(coded)
    return x[:, [i for i in range(x.shape[1]) if i not in chosen]]


class Likeness:
    """Refuses inputs that a network was not trained for, and warns once per kind of other differences.

    Args:
        input_shape: Shape of one training input.
        input_dtype: Dtype of stored training inputs; "" if unknown.
        statistics: `input_statistics` of the training inputs; empty if unknown, as in older checkpoints.
        coded: Indices of inputs that are codes of categories, whose range is not compared.
        brightness: Whether to compare the brightness of images.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        input_dtype: str,
        statistics: Sequence[float],
        coded: Sequence[int] = (),
        brightness: bool = True,
    ) -> None:
        self.brightness = brightness
        self.coded = list(coded)
        self.shape, self.dtype, self.statistics = tuple(input_shape), input_dtype, tuple(statistics)
        self._warned: set[str] = set()

    def check(self, x: Tensor) -> None:
        """Check inputs `(M, *input_shape)`.

        Raises:
            UserError: Another dtype, shape or range of images, or numbers that are not finite.
        """
        self._check_dtype(x)
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(self._shape_error(x))
        if not x.numel():
            return
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise UserError("inputs contain NaN or infinity, so predictions mean nothing: fix them or leave them out")
        if are_ids(self.shape, self.dtype):
            return
        if self.coded:
            x = without(x, self.coded)
            if not x.numel():
                return
        low, high = (float(v) for v in x.aminmax())
        if len(self.shape) == IMAGE_DIMS:
            self._check_images(x, low, high)
        elif self.statistics and max(-low, high) > FAR * max(-self.statistics[0], self.statistics[1]):
            self._warn(
                f"inputs reach from {low:.4g} to {high:.4g}, in training from {self._trained}",
                "preprocess them as in the data module, for example by standardisation",
            )

    def compare(self, statistics: Sequence[float]) -> InputWarning | None:
        """The difference between other data and those of training, by `input_statistics`; None if there is none."""
        if not (self.statistics and statistics) or len(self.shape) != IMAGE_DIMS:
            return None
        if _leave(statistics[0], statistics[1], self._bounds):
            what = f"the data's images reach from {statistics[0]:.3g} to {statistics[1]:.3g}"
            return InputWarning(f"{what}, those of training from {self._trained}", "scale them as in training")
        return self._inverted(statistics[2], "the data's images")

    @property
    def _trained(self) -> str:
        low, high = self.statistics[:2] if self.statistics else (0.0, 1.0)
        return f"{low:.3g} to {high:.3g}"

    def _check_dtype(self, x: Tensor) -> None:
        if are_ids(self.shape, self.dtype):
            if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
                raise UserError(f"inputs are whole numbers, such as the int64 ids of training; got {x.dtype}")
            return
        is_image = x.dtype == torch.uint8 and len(self.shape) == IMAGE_DIMS
        if not (x.is_floating_point() or is_image or str(x.dtype) == f"torch.{self.dtype}"):
            raise UserError(f"inputs are real numbers, or images as uint8 in [0, 255]; got {x.dtype}")

    def _shape_error(self, x: Tensor) -> str:
        needed = f"inputs of shape (M, {', '.join(map(str, self.shape))}) are needed, got {tuple(x.shape)}"
        if tuple(x.shape) == self.shape:
            return f"{needed}; for a single one give x[None]"
        if len(self.shape) == IMAGE_DIMS and x.dim() == IMAGE_DIMS + 1:
            if tuple(x.shape[1:]) == (*self.shape[1:], self.shape[0]):
                return f"{needed}; channels come first: x.permute(0, 3, 1, 2)"
            if x.shape[1] == self.shape[0]:
                return f"{needed}; resize them to {self.shape[1]} x {self.shape[2]} pixels"
        return needed

    def _check_images(self, x: Tensor, low: float, high: float) -> None:
        if x.dtype == torch.uint8:
            if high == 1:
                self._warn("images in uint8 only contain 0 and 1, which are nearly black", "255 is white: x * 255")
            if _leave(*self._bounds, (0.0, 1.0)) and self.statistics:
                raise UserError(
                    f"images in uint8 become numbers in [0, 1], but those of training were real, from {self._trained}; "
                    "give real numbers, scaled as in training"
                )
        elif _leave(low, high, self._bounds):
            what = f"images reach from {low:.4g} to {high:.4g}, in training from {self._trained}"
            if self.dtype == "uint8":
                raise UserError(f"{what}; give numbers in [0, 1], neither standardised nor up to 255, or uint8")
            self._warn(what, "scale them as in training")
        if self.statistics and (warning := self._inverted(float(as_input(x, torch.float32).mean()), "images")):
            self._warn_once("inverted", warning)

    @property
    def _bounds(self) -> tuple[float, float]:
        if self.dtype == "uint8":
            return 0.0, 1.0
        return (self.statistics[0], self.statistics[1]) if self.statistics else (-torch.inf, torch.inf)

    def _inverted(self, brightness: float, what: str) -> InputWarning | None:
        """A warning if light and dark seem to be swapped: the brightness is closer to that of inverted training images.

        Only if training images are clearly light or dark, like drawings and unlike photographs.
        """
        if not self.brightness:
            return None
        low, high, mean, spread = self.statistics
        width = (high - low) or 1.0
        mean, spread, new = (mean - low) / width, spread / width, (brightness - low) / width
        if abs(mean - 0.5) < 0.15 or abs(new - mean) < 4 * spread or abs(1 - new - mean) > abs(new - mean):
            return None
        swapped = "dark on light" if mean < 0.5 else "light on dark"
        message = f"{what} have a mean brightness of {new:.2f}, those of training {mean:.2f}: they seem to be {swapped}"
        return InputWarning(message, "invert them: 255 - x of uint8, 1 - x of real images", inverted=True)

    def _warn(self, what: str, remedy: str) -> None:
        self._warn_once(remedy, InputWarning(what, remedy))

    def _warn_once(self, kind: str, warning: InputWarning) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(warning, stacklevel=4)


def _leave(low: float, high: float, bounds: tuple[float, float]) -> bool:
    """Whether values exceed bounds by more than half of their width; noise and resizing exceed them by less."""
    margin = (bounds[1] - bounds[0]) / 2
    return low < bounds[0] - margin or high > bounds[1] + margin


def check_outputs(outputs: Tensor) -> Tensor:
    """Return the outputs if they are valid.

    Args:
        outputs: Outputs `(M, outputs)`; single entries may be -inf, for classes that a head excludes.

    Raises:
        UserError: An entry is NaN or complex, or all entries of an example are infinite.
    """
    if outputs.is_complex() or bool(torch.isnan(outputs).any() | torch.isinf(outputs).all(-1).any()):
        raise UserError(
            "the predictions are NaN, infinite or complex: training diverged, the weights are damaged, or the inner "
            "steps of a meta-learner diverged; use another checkpoint, a lower learning rate or fewer inner steps"
        )
    return outputs
