"""Export a module to a file that runs without this package."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError, reason_of
from lightning_meta.nn.features import IMAGE_DIMS, are_ids
from lightning_meta.run.files import replacing
from lightning_meta.silence import silence

FORMATS = (".pt2", ".onnx")
EXPORTERS = ("torch.fx", "torch.fx.experimental.symbolic_shapes", "torch.onnx", "onnxscript", "onnx_ir")  # loggers
METADATA = "lightning_meta.json"
MOST = 1 << 20  # maximum number of inputs per call
INPUTS = {
    torch.float32: "float32; images in [0, 1]",
    torch.uint8: "uint8; images in [0, 255]",
    torch.int64: "int64; ids",
}


def write_program(
    path: Path,
    makers: Sequence[Callable[[], nn.Module]],
    example: Mapping[str, Tensor],
    about: Mapping[str, Any],
    name: str,
    fewest: int = 1,
    outputs: Sequence[str] | None = None,
) -> None:
    """Export a module; the file is written when the export has succeeded.

    Args:
        path: Output file, `.pt2` or `.onnx`.
        makers: Functions that create the module in evaluation mode on the CPU. If there are several, their modules
            compute the same, and the first one that can be exported is written.
        example: Example arguments by name, `(M, ...)` each.
        about: Metadata for the user of the file, as plain data.
        name: Name of the module in errors.
        fewest: Smallest M that the exported function accepts.
        outputs: Names of the outputs in `.onnx`.

    Raises:
        UserError: A package is missing, or an operator cannot be exported.
    """
    shapes = {name: {0: torch.export.Dim("inputs", min=fewest, max=MOST)} for name in example}
    inputs, metadata = tuple(example.values()), json.dumps(about)
    content, reasons = b"", list[Exception]()
    # Exporters print the whole graph when they fail.
    with silence(*EXPORTERS), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        for make in makers:
            try:
                program = torch.export.export(make(), inputs, dynamic_shapes=shapes, strict=False)
                is_pt2 = path.suffix == ".pt2"
                content = _pt2(program, metadata) if is_pt2 else _onnx(program, inputs, metadata, outputs)
                break
            except UserError:
                raise
            except Exception as error:  # exporters raise many types for unsupported operators
                reasons.append(error)
    if not content:
        first: BaseException = reasons[0]
        while first.__cause__ is not None:  # the exporter to ONNX names the operator in the first of several errors
            first = first.__cause__
        other = "; give a file that ends in .pt2" if path.suffix == ".onnx" else ""
        raise UserError(f"{path}: {name} cannot be exported: {reason_of(first, 200)}{other}") from reasons[0]
    with replacing(path, "wb") as out:
        out.write(content)


def exported_dtype(dtype: torch.dtype | None, input_shape: Sequence[int], input_dtype: str) -> torch.dtype:
    """The requested dtype, or by default the most useful one for inputs of this shape and stored dtype ("": unknown).

    Raises:
        UserError: The requested dtype cannot be exported.
    """
    dtypes = [torch.float32, torch.uint8] if len(input_shape) == IMAGE_DIMS else [torch.float32]
    dtypes = [torch.int64] if are_ids(input_shape, input_dtype) else dtypes
    if dtype is not None and dtype not in dtypes:
        raise UserError(f"dtype: {' or '.join(map(str, dtypes))} inputs can be exported, got {dtype}")
    return dtypes[0] if dtype is None else dtype


def input_facts(input_shape: Sequence[int], dtype: torch.dtype, invert: bool = False) -> dict[str, Any]:
    """Metadata of the inputs: image processing before the function, as in `read_images`, and within it."""
    before: list[str] = []
    within: list[str] = []
    if len(input_shape) == IMAGE_DIMS and dtype != torch.int64:
        channels, height, width = input_shape
        if channels in (1, 3) and height == width:
            before = [
                "decode the file and turn it upright by its EXIF orientation",
                "show transparent pixels on white",
                "convert it to grey: 0.299 R + 0.587 G + 0.114 B" if channels == 1 else "convert it to RGB",
                f"resize it to {width} x {height} pixels by Pillow's LANCZOS, whatever its proportions, in 8 bits",
                "lay it out channels first",
            ]
        (within if dtype == torch.uint8 else before).append("divide by 255")
        within += ["turn dark into light: 1 - x"] if invert else []
    return {"input_shape": list(input_shape), "input": INPUTS[dtype], "before": before, "within": within}


def _pt2(program: Any, about: str) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: about})
    return file.getvalue()


def _onnx(program: Any, example: tuple[Tensor, ...], about: str, outputs: Sequence[str] | None) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("onnx and onnxscript are not installed; pip install 'lightning_meta[export]'") from error
    exported = torch.onnx.export(program, example, dynamo=True, verbose=False, output_names=outputs)
    assert exported is not None
    model = exported.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, about
    return bytes(model.SerializeToString())
