"""Export of a learned task to a file that does not need this package."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_meta.errors import UserError
from lightning_meta.meta.learner import LearnedTask
from lightning_meta.nn.features import IMAGE_DIMS, as_input
from lightning_meta.nn.stateless import tensors_of
from lightning_meta.run.files import check_target
from lightning_meta.run.programs import FORMATS, exported_dtype, input_facts, write_program

OPTIONS = ("batch_norm", "test_inner_steps")  # options of methods that change predictions


class AdaptedModel(nn.Module):
    """A copy of a meta-learner and the task it learned as a plain module, in evaluation mode.

    Args:
        predictor: The learned task.
        probabilities: Whether to return probabilities instead of logits; regression returns predictions.
        invert: Whether to invert images first, as in images that are read with `invert`.
    """

    def __init__(self, predictor: LearnedTask, probabilities: bool = True, invert: bool = False) -> None:
        super().__init__()
        self._inverts = invert
        self.learner = copy.deepcopy(predictor.module)
        self._normalises = probabilities and bool(predictor.classes)
        self._is_the_network = self._taken_over(predictor.state)
        leaves, self._structure = pytree.tree_flatten(() if self._is_the_network else predictor.state)
        self._leaves = len(leaves)
        for number, leaf in enumerate(leaves):
            self.register_buffer(f"state_{number}", leaf.detach().clone())
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs `(M, *input_shape)`, images as uint8 or real in [0, 1], to `(M, N)` or `(M, outputs)`."""
        dtype = next((t.dtype for t in chain(self.parameters(), self.buffers()) if t.is_floating_point()), x.dtype)
        x = as_input(x, dtype)
        outputs = self.learner.predict(self._state(), 1 - x if self._inverts else x)
        return outputs.softmax(-1) if self._normalises else self.learner.task.readable(outputs)

    def _taken_over(self, state: Any) -> bool:
        """Overwrite the network's weights by adapted ones of the same names, so that the file does not hold both."""
        parameters, buffers = tensors_of(self.learner.network)
        own = {**parameters, **buffers}
        if not isinstance(state, Mapping) or not own or state.keys() != own.keys():
            return False
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.data = state[name].detach().clone()  # the head may have another number of outputs
        return True

    def _state(self) -> Any:
        if self._is_the_network:
            parameters, buffers = tensors_of(self.learner.network)
            return {**parameters, **buffers}
        return pytree.tree_unflatten([getattr(self, f"state_{n}") for n in range(self._leaves)], self._structure)


def export(predictor: LearnedTask, file: str | Path, dtype: torch.dtype | None = None, invert: bool = False) -> Path:
    """Export a learned task to a `.pt2` file, by `torch.export`, or to an `.onnx` file.

    The exported function runs on the CPU, takes inputs `(M, *input_shape)` for any M, and returns probabilities `(M,
    N)`, or predictions in regression. The names of the N classes are stored in the file: in `.pt2` as the extra file
    `lightning_meta.json`, in `.onnx` as the metadata `lightning_meta.json`. There, `before` lists the steps from an
    image file to the inputs, in order, and `within` those that the function takes itself.

    Args:
        predictor: The learned task.
        file: Output file with the suffix `.pt2` or `.onnx`; an existing file is replaced when the new one is complete.
        dtype: Dtype of the inputs: float32 for images in [0, 1], uint8 for images in [0, 255], or int64 for ids. By
            default float32, or int64 if the module was trained on ids.
        invert: Whether the function inverts images itself, for a task learned from images that were read with `invert`.

    Returns:
        The file.

    Raises:
        UserError: Unknown suffix or dtype, a missing package, or an operator that cannot be exported.
    """
    path = Path(file)
    check_target(path, FORMATS)
    module = predictor.module
    spec = module.spec
    dtype = exported_dtype(dtype, spec.input_shape, spec.input_dtype)
    if invert and (len(spec.input_shape) != IMAGE_DIMS or dtype == torch.int64):
        raise UserError(f"invert: only images can be inverted, these inputs have shape {spec.input_shape}")
    example = {"x": torch.zeros(3, *spec.input_shape, dtype=dtype)}
    about = {"classes": list(map(str, predictor.classes)), **_facts(predictor, dtype, invert)}
    name = type(module).__name__
    write_program(
        path, [lambda: AdaptedModel(predictor, invert=invert).cpu()], example, about, name, _fewest(predictor)
    )
    return path


def _fewest(predictor: LearnedTask) -> int:
    """The smallest number of inputs: 2 for methods that refuse a single query."""
    try:
        predictor.module.check_queries(1)
    except UserError:
        return 2
    return 1


def _facts(predictor: LearnedTask, dtype: torch.dtype, invert: bool) -> dict[str, Any]:
    """The metadata of an exported file."""
    module = predictor.module
    options = {name: getattr(module, name) for name in OPTIONS if hasattr(module, name)}
    return {
        **input_facts(module.spec.input_shape, dtype, invert),
        "output": "probabilities" if predictor.classes else "predictions",
        "inverts": invert,
        "method": type(module).__name__,
        **options,
        "depends_on_company": predictor.depends_on_company,
        **({"uses_query_set": module.uses_query_set} if getattr(module, "uses_query_set", None) else {}),
    }
