"""A learned task as a file that needs nothing of this package."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_meta.errors import UserError
from lightning_meta.meta.learner import LearnedTask
from lightning_meta.nn.features import IMAGE_DIMS, are_ids, as_input
from lightning_meta.nn.stateless import tensors_of
from lightning_meta.run.files import replacing
from lightning_meta.tasks import EpisodeSpec

FORMATS = (".pt2", ".onnx")
METADATA = "lightning_meta.json"
OPTIONS = ("batch_norm", "test_inner_steps")  # of methods, that change what is predicted
INPUTS = {
    torch.float32: "float32; images in [0, 1]",
    torch.uint8: "uint8; images in [0, 255]",
    torch.int64: "int64; ids",
}


class AdaptedModel(nn.Module):
    """A copy of a meta-learner and of the task it learned, as a plain function of inputs, in evaluation mode.

    Args:
        predictor: The learned task.
        probabilities: Whether it returns probabilities; else logits. Regression returns predictions.
        invert: Whether it turns dark into light first, as in images that are read with `invert`.
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
        """Inputs `(M, *input_shape)`, images as uint8 or real in [0, 1], to `(M, N)` or `(M, outputs)`."""
        dtype = next((t.dtype for t in chain(self.parameters(), self.buffers()) if t.is_floating_point()), x.dtype)
        x = as_input(x, dtype)
        outputs = self.learner.predict(self._state(), 1 - x if self._inverts else x)
        return outputs.softmax(-1) if self._normalises else self.learner.task.readable(outputs)

    def _taken_over(self, state: Any) -> bool:
        """Put adapted weights in the place of the network's own, which would lie beside them in the file, unused."""
        parameters, buffers = tensors_of(self.learner.network)
        own = {**parameters, **buffers}
        if not isinstance(state, Mapping) or not own or state.keys() != own.keys():
            return False
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
        return True

    def _state(self) -> Any:
        if self._is_the_network:
            parameters, buffers = tensors_of(self.learner.network)
            return {**parameters, **buffers}
        return pytree.tree_unflatten([getattr(self, f"state_{n}") for n in range(self._leaves)], self._structure)


def export(predictor: LearnedTask, file: str | Path, dtype: torch.dtype | None = None, invert: bool = False) -> Path:
    """Write a learned task to a file: `.pt2`, by `torch.export`, or `.onnx`.

    The function in it runs on the CPU, takes inputs `(M, *input_shape)` for any M, and returns probabilities `(M, N)`,
    or predictions in regression. The names of the N classes lie in the file beside it: in `.pt2` as the extra file
    `lightning_meta.json`, in `.onnx` as the metadata `lightning_meta.json`. There, `before` says what is to be done to
    an image file before the function, in this order, and `within` what the function does.

    Args:
        predictor: The learned task.
        file: Where to, with the suffix `.pt2` or `.onnx`; a file that is there is replaced once the new one is whole.
        dtype: Of the inputs: float32, images in [0, 1], or uint8, images in [0, 255]; int64 for ids. By default
            float32, or int64 where the module learned from ids.
        invert: Whether the function turns dark into light, for a task that was learned from images that were read with
            `invert`: then it takes images as they are.

    Returns:
        The file.

    Raises:
        UserError: Another suffix or dtype, a package that is missing, or an operator that cannot be exported.
    """
    path = Path(file)
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: a file ending in {' or '.join(FORMATS)} is needed to export to")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path.parent}: there is no such folder to export to")
    if path.is_dir():
        raise UserError(f"{path}: this is a folder; name a file to export to")
    module = predictor.module
    served = _served(module.spec)
    dtype = served[0] if dtype is None else dtype
    if dtype not in served:
        raise UserError(f"dtype: {' or '.join(map(str, served))} inputs can be exported, got {dtype}")
    if invert and (len(module.spec.input_shape) != IMAGE_DIMS or dtype == torch.int64):
        raise UserError(f"invert: only images can be inverted, these inputs have shape {module.spec.input_shape}")
    x = torch.zeros(3, *module.spec.input_shape, dtype=dtype)
    about = json.dumps({"classes": list(map(str, predictor.classes)), **_facts(predictor, dtype, invert)})
    write = _pt2 if path.suffix == ".pt2" else _onnx
    with _quiet():
        try:
            model = AdaptedModel(predictor, invert=invert).cpu()
            batch = {"x": {0: torch.export.Dim("inputs", min=_fewest(predictor), max=1 << 20)}}
            program = torch.export.export(model, (x,), dynamic_shapes=batch, strict=False)
            content = write(program, x, about)
        except UserError:
            raise
        except Exception as error:  # whatever the exporters raise for what they do not know
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: {type(module).__name__} cannot be exported: {reason}") from error
    with replacing(path, "wb") as out:
        out.write(content)
    return path


def _fewest(predictor: LearnedTask) -> int:
    """How many inputs the exported function takes at least: two where one alone means nothing to the method."""
    try:
        predictor.module.check_queries(1)
    except UserError:
        return 2
    return 1


def _served(spec: EpisodeSpec) -> list[torch.dtype]:
    """The dtypes of inputs that can be exported, that of most use first."""
    if are_ids(spec.input_shape, spec.input_dtype):
        return [torch.int64]
    return [torch.float32, torch.uint8] if len(spec.input_shape) == IMAGE_DIMS else [torch.float32]


def _facts(predictor: LearnedTask, dtype: torch.dtype, invert: bool) -> dict[str, Any]:
    """What the reader of an exported file must know."""
    module = predictor.module
    before, within = _steps(module.spec, dtype, invert)
    options = {name: getattr(module, name) for name in OPTIONS if hasattr(module, name)}
    return {
        "input_shape": list(module.spec.input_shape),
        "input": INPUTS[dtype],
        "output": "probabilities" if predictor.classes else "predictions",
        "before": before,
        "within": within,
        "inverts": invert,
        "method": type(module).__name__,
        **options,
        "depends_on_company": predictor.depends_on_company,
        **({"uses_query_set": module.uses_query_set} if getattr(module, "uses_query_set", None) else {}),
    }


def _steps(spec: EpisodeSpec, dtype: torch.dtype, invert: bool) -> tuple[list[str], list[str]]:
    """What is done to an image file before the function, as `read_images` does it, and within; nothing to ids."""
    if len(spec.input_shape) != IMAGE_DIMS or dtype == torch.int64:
        return [], []
    channels, height, width = spec.input_shape
    before: list[str] = []
    within: list[str] = []
    if channels in (1, 3) and height == width:
        before = [
            "decode the file and turn it upright by its EXIF orientation",
            "convert it to grey: 0.299 R + 0.587 G + 0.114 B" if channels == 1 else "convert it to RGB, without alpha",
            f"resize it to {width} x {height} pixels by Pillow's LANCZOS, whatever its proportions, in 8 bits",
            "lay it out channels first",
        ]
    (within if dtype == torch.uint8 else before).append("divide by 255")
    return before, within + (["turn dark into light: 1 - x"] if invert else [])


def _pt2(program: Any, x: Tensor, about: str) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: about})
    return file.getvalue()


def _onnx(program: Any, x: Tensor, about: str) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("onnx and onnxscript are not installed; pip install 'lightning_meta[export]'") from error
    made = torch.onnx.export(program, (x,), dynamo=True, verbose=False)
    assert made is not None
    model = made.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, about
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on themselves: where they fail, they print the whole graph."""
    exporters = [logging.getLogger(name) for name in ("torch.fx", "torch.onnx", "onnxscript", "onnx_ir")]
    shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    levels = [(log, log.level) for log in (*exporters, shapes)]
    for log, _ in levels:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in levels:
            log.setLevel(level)
