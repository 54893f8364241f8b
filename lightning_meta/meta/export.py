"""A learned task as a file that needs nothing of this package."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_meta.errors import UserError
from lightning_meta.meta.predictor import Predictor

FORMATS = (".pt2", ".onnx")
METADATA = "lightning_meta.json"


class AdaptedModel(nn.Module):
    """A meta-learner and the task it learned, as a plain function of inputs.

    Args:
        predictor: The learned task.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.learner = predictor.module
        leaves, self._structure = pytree.tree_flatten(predictor.state)
        for number, leaf in enumerate(leaves):
            self.register_buffer(f"state_{number}", leaf.detach().clone())
        self._leaves = len(leaves)
        self._classifies = bool(predictor.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities `(M, N)`, or in regression predictions `(M, outputs)`, of real inputs `(M, *input_shape)`."""
        state = pytree.tree_unflatten([getattr(self, f"state_{n}") for n in range(self._leaves)], self._structure)
        outputs = self.learner.predict(state, x)
        return outputs.softmax(-1) if self._classifies else outputs


def export(predictor: Predictor, file: str | Path) -> Path:
    """Write a learned task to a file: `.pt2`, by `torch.export`, or `.onnx`.

    The function in it takes float32 inputs `(M, *input_shape)`, images in [0, 1], for any M, and returns
    probabilities `(M, N)`, or predictions in regression. The names of the N classes lie in the file beside it: in
    `.pt2` as the extra file `lightning_meta.json`, in `.onnx` as the metadata `lightning_meta.json`.

    Args:
        predictor: The learned task.
        file: Where to, with the suffix `.pt2` or `.onnx`.

    Returns:
        The file.

    Raises:
        UserError: Another suffix, a package that is missing, or an operator that cannot be exported.
    """
    path = Path(file)
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: a file ending in {' or '.join(FORMATS)} is needed to export to")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path.parent}: there is no such folder to export to")
    module = predictor.module
    model = AdaptedModel(predictor)
    x = torch.rand(3, *module.spec.input_shape, device=module.device)
    about = json.dumps({"classes": list(map(str, predictor.classes)), **_facts(predictor)})
    with _quiet(model):
        try:
            batch = {"x": {0: torch.export.Dim("inputs", min=1, max=1 << 20)}}
            program = torch.export.export(model, (x,), dynamic_shapes=batch, strict=False)
            if path.suffix == ".pt2":
                torch.export.save(program, path, extra_files={METADATA: about})
            else:
                _write_onnx(program, x, path, about)
        except UserError:
            raise
        except Exception as error:
            path.unlink(missing_ok=True)
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: {type(module).__name__} cannot be exported: {reason}") from error
    return path


def _facts(predictor: Predictor) -> dict[str, Any]:
    """What the reader of an exported file must know."""
    module = predictor.module
    return {
        "input_shape": list(module.spec.input_shape),
        "input": "float32; images in [0, 1]",
        "output": "probabilities" if predictor.classes else "predictions",
        "method": type(module).__name__,
        "depends_on_company": getattr(module, "batch_norm", None) == "transductive",
    }


def _write_onnx(program: Any, x: Tensor, path: Path, about: str) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("onnx and onnxscript are not installed; pip install 'lightning_meta[export]'") from error
    torch.onnx.export(program, (x,), str(path), dynamo=True, external_data=False, verbose=False)
    model = onnx.load(path)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, about
    onnx.save(model, path)


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Without the exporters' remarks on themselves, and with the learner's modes as they were afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    exporters = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in exporters]
    model.eval()
    for log in exporters:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(exporters, levels, strict=True):
            log.setLevel(level)
        for part, training in modes:
            part.training = training
