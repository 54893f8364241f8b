"""A learned task as a function of new inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import is_missing
from lightning_meta.errors import UserError
from lightning_meta.functional.inference import outside_inference_mode
from lightning_meta.functional.precision import loses_digits
from lightning_meta.meta.examples import inputs_of, labels_of, targets_of
from lightning_meta.meta.export import AdaptedModel, export
from lightning_meta.meta.learner import Learner
from lightning_meta.nn.features import are_ids, images_at_once
from lightning_meta.nn.frozen import frozen_part
from lightning_meta.nn.likeness import Likeness, check_outputs
from lightning_meta.nn.pretrained import Pretrained
from lightning_meta.nn.stateless import exact_derivatives, in_evaluation_mode, untouched


class Predictor:
    """A meta-learner in evaluation mode, adapted to a support set.

    Example:
        >>> import lightning_meta as lm
        >>> model = lm.ProtoNet(lm.nn.MLP(in_features=2), episodes=lm.tasks.EpisodeSpec(input_shape=(2,)))
        >>> model.configure_model()  # done by `fit` and `load`
        >>> predictor = lm.Predictor(model, torch.tensor([[0.0, 0.0], [9.0, 9.0]]), ["near", "far"])
        >>> predictor(torch.tensor([[8.0, 9.0], [0.0, 1.0]]))
        ['far', 'near']

    Args:
        module: The meta-learner; it is not changed.
        x: Support inputs `(M, *input_shape)`: real numbers, images as uint8, or ids as integers, as in training.
        labels: M labels of any type, none of them None or NaN, of at least two classes; for regression real targets
            `(M, outputs)`, or `(M,)` for one output. Both may be a column of pandas.

    Attributes:
        classes: The distinct labels, sorted (by their text if they have no order); column n of the outputs belongs to
            `classes[n]`. Empty for regression.
        state: State that `MetaModule.adapt` returned.

    Raises:
        UserError: Inputs of another shape, missing labels, or a number of classes that the module does not support.
    """

    def __init__(self, module: Learner, x: Tensor, labels: Sequence[Any] | Tensor) -> None:
        self.module = module
        self._likeness = likeness_of(module)
        self.classes: list[Any] = []
        x = self._inputs(x)
        if not len(x):
            raise UserError("the support set is empty: at least one example of each class is needed")
        plain = targets_of(labels) if module.spec.task == "regression" else labels_of(labels)
        if len(x) != len(plain):
            raise UserError(f"labels: one for each of the {len(x)} support inputs is needed, got {len(plain)}")
        if isinstance(plain, Tensor):
            assert isinstance(module.dtype, torch.dtype)
            targets = plain
            if targets.dim() == 1 and module.spec.outputs == 1:
                targets = targets.unsqueeze(1)
            if module.spec.target_scale:
                targets = module.targets(targets.cpu().double())
            elif loses_digits(targets, module.dtype):
                raise UserError(
                    f"labels: {module.dtype} cannot tell these targets apart; subtract a constant from them"
                )
            y = targets.to(module.device, module.dtype)
        else:
            self.classes = _distinct(plain)
            y = torch.tensor([self.classes.index(label) for label in plain], device=module.device)
            module.check_ways(len(self.classes))
        try:
            module.task.check(y, len(self.classes) or module.spec.outputs)
        except UserError as error:
            raise UserError(f"labels: {error}") from error
        with evaluating(module):
            x = in_features(module, x)
            self.state = outside_inference_mode(module.adapt, Examples(x, y), len(self.classes))

    def outputs(self, x: Tensor) -> Tensor:
        """Logits `(M, N)`; in regression predictions `(M, outputs)` in the units of the targets.

        Raises:
            UserError: Inputs that differ in type from those of training, too few queries for a transductive method, or
                non-finite outputs.
        """
        x = self._inputs(x)
        self.module.check_queries(len(x))
        return self.module.task.readable(check_outputs(self._run(x)))

    def _run(self, x: Tensor) -> Tensor:
        with evaluating(self.module):
            return self.module.predict(self.state, x)

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities `(M, N)`; each row sums to 1.

        Raises:
            UserError: As `outputs`, or the task is a regression task.
        """
        if not self.classes:
            raise UserError("probabilities: a regression task has no classes; call the predictor for its predictions")
        return self.outputs(x).softmax(-1)

    @cached_property
    def depends_on_company(self) -> bool:
        """Whether a prediction depends on the other inputs of the same call: by the method, or by normalisation."""
        if self.module.uses_query_set:
            return True
        g = torch.Generator().manual_seed(0)
        shape = self.module.spec.input_shape
        if self._takes_ids:
            noise = torch.randint(2, (1, *shape), generator=g)
            others = [0 * noise, 1 - noise]
        else:
            noise = torch.rand(1, *shape, generator=g)
            others = [noise / 9, 1 - noise]
        x = self.module.inputs(torch.cat([noise, *others]).to(self.module.device))
        alone, together = self._run(x[:1])[0], self._run(x)[0]
        return bool((alone - together).abs().max() > 1e-3 * together.abs().max().clamp_min(1e-6))  # more than rounding

    def as_module(self, probabilities: bool = True) -> nn.Module:
        """The learned task as a plain `torch.nn.Module`, in evaluation mode.

        Args:
            probabilities: Whether to return probabilities `(M, N)` instead of logits; regression returns predictions.

        Returns:
            A module that maps inputs `(M, *input_shape)`, images as uint8 or real values in [0, 1], to outputs in the
            order of `classes`.
        """
        return AdaptedModel(self, probabilities)

    def export(self, file: str | Path, dtype: torch.dtype | None = None, invert: bool = False) -> Path:
        """Write the learned task to a `.pt2` or `.onnx` file; see `lightning_meta.meta.export`."""
        return export(self, file, dtype, invert)

    def __call__(self, x: Tensor) -> list[Any] | Tensor:
        """The M most probable labels, or predictions `(M, outputs)` in regression."""
        outputs = self.outputs(x)
        return [self.classes[n] for n in outputs.argmax(-1).tolist()] if self.classes else outputs

    @property
    def _takes_ids(self) -> bool:
        return are_ids(self.module.spec.input_shape, self.module.spec.input_dtype)

    def _inputs(self, x: Tensor) -> Tensor:
        x = inputs_of(x)
        self._likeness.check(x)
        return self.module.inputs(x.to(self.module.device))


def _distinct(labels: list[Any]) -> list[Any]:
    """The sorted labels of at least two classes; each NaN would be a class of its own, since it differs from itself."""
    if missing := [n for n, label in enumerate(labels) if is_missing(label)]:
        first = f"labels[{missing[0]}] is {labels[missing[0]]!r}"
        raise UserError(f"labels: {len(missing)} of {len(labels)} are missing: {first}; leave their examples out")
    try:
        distinct = set(labels)
    except TypeError as error:
        raise UserError(
            f"labels: {len(labels)} names or numbers are needed, got {labels[0]!r} for the first"
        ) from error
    if len(distinct) < 2:
        raise UserError(f"labels: at least 2 classes are needed, all {len(labels)} labels are {labels[0]!r}")
    try:
        return sorted(distinct)
    except TypeError:
        return sorted(distinct, key=repr)


def likeness_of(module: Learner) -> Likeness:
    """The check of new inputs of a meta-learner.

    Brightness is not compared where nothing was learned from the training images: if the backbone is a frozen
    `Pretrained`, and nothing beside it is stored but single numbers, such as the scale of a head.
    """
    spec, backbone = module.spec, module.backbone
    learned = not isinstance(backbone, Pretrained) or frozen_part(backbone) is None
    if not learned:
        stored = [value for name, value in module.state_dict().items() if not name.startswith("backbone.")]
        learned = any(not isinstance(value, Tensor) or value.numel() > 1 for value in stored)
    return Likeness(spec.input_shape, spec.input_dtype, spec.input_statistics, brightness=learned)


def in_features(module: Learner, x: Tensor) -> Tensor:
    """Support inputs as features of a frozen backbone, computed in batches; unchanged if it is not frozen.

    Args:
        module: The meta-learner, within `evaluating`.
        x: Inputs `(M, *input_shape)`.

    Returns:
        Features `(M, F)`, which the frozen backbone returns unchanged when it receives them; or `x`.

    Raises:
        UserError: A feature is NaN or infinite.
    """
    frozen = frozen_part(module.backbone)
    if frozen is None or frozen.passes is None or getattr(module, "needs_images", False):
        return x
    features = torch.cat([frozen(part) for part in x.split(images_at_once(x.device))])
    if bad := int((~features.isfinite()).flatten(1).any(1).sum()):  # a class of such features would never be predicted
        raise UserError(
            f"backbone: {type(frozen).__name__} makes features that are NaN or infinite for {bad} of {len(x)} support "
            "images; compute in float32, or check its weights"
        )
    return features


@contextmanager
def evaluating(module: Learner) -> Iterator[None]:
    """A context for evaluation, without gradients; afterwards it restores modes, buffers and random state."""
    exact = exact_derivatives(module.network)
    with in_evaluation_mode(module), torch.no_grad(), module.exact_arithmetic(), untouched(module), exact:
        yield
