"""Checkpoints that are small on the disk and large, endless or odd in memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_meta.describing import describe
from lightning_meta.meta import ProtoNet
from lightning_meta.nn import MLP
from lightning_meta.tasks import EpisodeSpec

NAME = "backbone.layers.0.0.weight"


def learner() -> ProtoNet:
    return ProtoNet(MLP(4, (8,)), episodes=EpisodeSpec("classification", (4,), 5))


def content() -> dict[str, Any]:
    """The content of a valid checkpoint."""
    module = learner()
    weights = dict(module.state_dict())
    assert NAME in weights
    return {"state_dict": weights, "lightning_meta": {**describe(module), "layout": 2}}


def halves(levels: int = 60, kind: type = list) -> Any:
    """A container of two references to a container of two, and so on: 2^60 values in a small file."""
    value: Any = 1
    for _ in range(levels):
        value = kind((value, value))
    return value


def ring() -> Any:
    value: dict[str, Any] = {}
    value["a"] = [value]
    return value


class Calls:
    """An object that is pickled as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def with_attribute(name: str, value: Any) -> Any:
    """A tensor with an attribute, as it is pickled."""
    tensor = torch.ones(8, 4)
    state = tensor.__reduce_ex__(2)
    return Calls(torch._tensor._rebuild_from_type_v2, state[0], torch.Tensor, state[1], {name: value})


# What is put in the place of a part: by name of the case, where it goes, what, and what is said.
Case = tuple[str, Callable[[], Any], str]
VALUES: dict[str, Case] = {
    "shared in a description": ("init_args", halves, "by references to the same ones"),
    "shared in the loops": ("loops", halves, "by references to the same ones"),
    "shared in an optimiser": ("optimizer_states", lambda: [{"state": halves()}], "by references to the same ones"),
    "shared in a state dict": ("weights", halves, "by references to the same ones"),
    "shared tuples": ("loops", lambda: halves(kind=tuple), "by references to the same ones"),
    "a key of tuples": ("loops", lambda: {tuple(range(101)): 4}, "a key is a tuple of more than 100 values"),
    "a set of tuples": ("loops", lambda: {tuple(range(101))}, "a key is a tuple of more than 100 values"),
    "holds itself": ("loops", ring, "hold themselves"),
    "expanded": ("weight", lambda: torch.zeros(1).expand(2**40), "claim 4,398.0 GB"),
    "overlapping": ("weight", lambda: torch.zeros(9).as_strided((2**20, 2**20), (0, 0)), "claim 4,398.0 GB"),
    "one storage as many weights": (
        "more weights",
        lambda: {str(i): part for i, part in enumerate(torch.zeros(2**18).expand(2000, -1))},
        "its weights are 2.1 GB, of which 0.001 are stored",
    ),
    "other data": ("weight", lambda: with_attribute("data", torch.ones(1)), "is refused: a tensor has 'data' set"),
    "a tensor as a key": ("loops", lambda: {torch.ones(1): 1}, "is refused: a key is neither plain nor a tuple"),
    "meta": ("weight", lambda: torch.empty(8, 4, device="meta"), "_rebuild_meta_tensor_no_storage makes no plain"),
    "sparse": ("weight", lambda: torch.eye(8, 4).to_sparse(), f"{NAME} is torch.sparse_coo in the checkpoint"),
    "compressed rows": ("weight", lambda: torch.eye(8, 4).to_sparse_csr(), f"{NAME} is torch.sparse_csr in the"),
    "quantised": (
        "weight",
        lambda: torch.quantize_per_tensor(torch.ones(8, 4), 0.1, 0, torch.qint8),
        "_rebuild_qtensor makes no plain tensor",
    ),
    "nested": ("weight", lambda: torch.nested.nested_tensor([torch.ones(2)]), "_rebuild_nested_tensor makes no plain"),
    "complex": ("weight", lambda: torch.ones(8, 4) * 1j, f"{NAME} is torch.complex64 in the checkpoint"),
    "float8": ("weight", lambda: torch.ones(8, 4).to(torch.float8_e4m3fn), f"{NAME} is torch.float8_e4m3fn"),
    "uint64": ("weight", lambda: torch.ones(8, 4).to(torch.uint64), f"{NAME} is torch.uint64 in the checkpoint"),
    "text": ("weight", lambda: "a", f"{NAME} is not a tensor in the checkpoint"),
    "empty": ("weight", lambda: torch.zeros(0, 2**50), f"{NAME} is (0, {2**50}) in the checkpoint"),
    "a key that is no text": ("weights", lambda: {1: torch.ones(2)}, "is not a checkpoint of lightning_meta"),
    "an odd key": ("weights", lambda: {"__class__": torch.ones(2)}, "it has no weights for"),
    "a long key": ("more weights", lambda: {"a" * 10_000_000: torch.ones(2)}, "the module has no aaaa"),
    "a long class": ("class_path", lambda: "a" * 10_000_000, "is not trusted"),
    "a list of weights": ("weights", lambda: [1], "is not a checkpoint of lightning_meta"),
    "a number as a description": ("spec", lambda: 3, "is not a checkpoint of lightning_meta"),
}


CALLS: dict[str, Case] = {
    "bytes by number": ("loops", lambda: Calls(bytearray, 2**40), "to unpickle it would run"),
    "a tensor by number": ("loops", lambda: Calls(torch.Tensor, 2**40), "to unpickle it would run"),
    "a counter of tuples": (
        "loops",
        lambda: Calls(__import__("collections").Counter, [((1, 2), 3)]),
        "to unpickle it would run",
    ),
    "a codec": ("loops", lambda: Calls(__import__("_codecs").encode, "a" * 99, "idna"), "to unpickle it would run"),
}

CALLS |= {
    "a size of a tensor": (
        "loops",
        lambda: Calls(torch.Size, torch.zeros(1).expand(2**28)),
        "to unpickle it would run",
    ),
    "a text as many bytes": ("loops", lambda: many_bytes("a" * 2**20), "claim 2.1 GB more than is stored"),
}


def many_bytes(text: str) -> Any:
    return [Calls(__import__("_codecs").encode, text, "latin1") for _ in range(2000)]


def saved(file: Path, case: Case) -> Path:
    """A checkpoint with one part replaced."""
    where, make, _ = case
    whole = content()
    if where == "weights":
        whole["state_dict"] = make()
    elif where == "more weights":
        whole["state_dict"] |= make()
    elif where == "weight":
        whole["state_dict"][NAME] = make()
    elif where == "spec":
        whole["lightning_meta"] = make()
    elif where in ("init_args", "class_path"):
        whole["lightning_meta"][where] = make()
    else:
        whole[where] = make()
    torch.save(whole, file)
    return file


def rewritten(file: Path, change: Callable[[dict[str, bytes]], None], compress: bool = False) -> Path:
    """A sound checkpoint whose records are changed."""
    torch.save(content(), file)
    with zipfile.ZipFile(file) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, part in parts.items():
            archive.writestr(f"a/{name}", part)
    return file


def inflating(file: Path, record: str = "data/0") -> Path:
    return rewritten(file, lambda parts: parts.update({record: bytes(2**25)}), compress=True)


def cut_record(parts: dict[str, bytes]) -> None:
    parts["data/0"] = parts["data/0"][:-4]


def twice(file: Path) -> Path:
    rewritten(file, lambda parts: None)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("a/DATA.pkl", b"\x80\x02}.")
    return file


def behind_another(file: Path) -> Path:
    """Put bytes before the archive, so that two readers may find its contents at different places."""
    rewritten(file, lambda parts: None)
    file.write_bytes(bytes(100) + file.read_bytes())
    return file


def deep(file: Path) -> Path:
    def nest(parts: dict[str, bytes]) -> None:
        parts["data.pkl"] = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."

    return rewritten(file, nest)


def _holding_itself(parts: dict[str, bytes]) -> None:
    """A list of many values and itself, which is measured once and not at every level."""
    parts["data.pkl"] = b"\x80\x02]q\x00(" + b"N" * 1_500_000 + b"h\x00e."


def torchscript(file: Path) -> Path:
    return rewritten(file, lambda parts: parts.update({"constants.pkl": b"\x80\x02}."}))


def _record(name: str, part: bytes) -> Callable[[Path], Path]:
    return lambda file: rewritten(file, lambda parts: parts.update({name: part}))


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a record that inflates": (inflating, "its records are compressed"),
    "a version that inflates": (lambda file: inflating(file, "version"), "its records are compressed"),
    "a record that is too short": (lambda file: rewritten(file, cut_record), "claims 128 bytes and has 124"),
    "the same name twice": (twice, "two of its records have the same name"),
    "bytes before it": (behind_another, "its table of contents is not where it says"),
    "deep lists": (deep, "levels deep, or hold themselves"),
    "a long list that holds itself": (lambda file: rewritten(file, _holding_itself), "or hold themselves"),
    "more than its result": (_record("data.pkl", b"\x80\x02]}."), "it makes objects that are not in its result"),
    "a pair of one": (_record("data.pkl", b"\x80\x02K\x01\x86."), "is not a checkpoint, or is damaged"),
    "torchscript": (torchscript, "is refused: it is a program of TorchScript"),
    "no end": (_record("data.pkl", b"\x80\x02}"), "is not a checkpoint, or is damaged"),
    "an empty pickle": (_record("data.pkl", b""), "is not a checkpoint, or is damaged"),
    "a protocol of today": (_record("data.pkl", b"\x80\x04}."), "is not a Lightning checkpoint"),
    "a bare number": (_record("data.pkl", b"\x80\x02K\x01."), "is not a Lightning checkpoint"),
}


def fifo(file: Path) -> Path:
    os.mkfifo(file)
    return file


def link(to: str) -> Callable[[Path], Path]:
    def make(file: Path) -> Path:
        file.symlink_to(to)
        return file

    return make


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pipe": (fifo, "is a pipe, a socket or a device"),
    "a device": (link("/dev/zero"), "is a pipe, a socket or a device"),
    "memory": (link("/proc/self/mem"), "is empty"),
    "messages of the kernel": (link("/proc/kmsg"), "is empty"),
    "a link to itself": (lambda file: link(str(file.absolute()))(file), "there is no such file"),
    "a long name": (lambda file: file.parent / ("a" * 300), "File name too long"),
    "a long path": (lambda file: Path("a/" * 3000), "File name too long"),
    "NUL": (lambda file: Path("a\0b"), "no such"),
}


def network(backbone: dict[str, Any], shape: tuple[int, ...] = (4,)) -> dict[str, Any]:
    """A checkpoint with sound weights that describes another network."""
    whole = content()
    whole["lightning_meta"]["init_args"] |= {"backbone": backbone}
    whole["lightning_meta"]["init_args"]["episodes"]["init_args"]["input_shape"] = list(shape)
    return whole


def layer(name: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"torch.nn.{name}", "init_args": init_args}


def encoder(activation: Any) -> dict[str, Any]:
    """A trusted network that calls what it is passed."""
    return network(layer("TransformerEncoderLayer", d_model=4, nhead=1, dim_feedforward=4, activation=activation))


NETWORKS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a command to call": (lambda: encoder({"import_path": "subprocess.Popen"}), "subprocess.Popen is not trusted"),
    "a command with arguments": (
        lambda: encoder({"import_path": "subprocess.Popen", "init_args": {"args": ["touch", "exploded"]}}),
        "subprocess.Popen is not trusted",
    ),
    "5 GB": (lambda: network(layer("Linear", in_features=4, out_features=312_500_000)), "5.0 GB"),
    "5 GB on the CPU": (
        lambda: network(layer("Linear", in_features=4, out_features=312_500_000, device="cpu")),
        "5.0 GB",
    ),
    "5 GB on a card": (
        lambda: network(layer("Linear", in_features=4, out_features=312_500_000, device="cuda")),
        "5.0 GB|CUDA|NVIDIA",
    ),
    "a petabyte": (lambda: network(layer("Linear", in_features=2**24, out_features=2**24)), "1,125,899.9 GB"),
    "layers without end": (
        lambda: network(layer("LSTM", input_size=1, hidden_size=1, num_layers=10**9)),
        "more layers than the checkpoint has weights for",
    ),
    "large inputs": (
        lambda: network(layer("AdaptiveAvgPool2d", output_size=1), (1, 40_000, 40_000)),
        "12.8 GB",
    ),
    "large outputs": (
        lambda: network(layer("Upsample", scale_factor=2**28), (1, 4)),
        "8.6 GB",
    ),
}
