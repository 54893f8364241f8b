"""Determine what a checkpoint's pickle would create, before creating any of it.

`torch.load(weights_only=True)` runs no code, but believes what it reads: a pickle of 10 kB can hold lists that hold
each other 2^60 times, a tensor can claim more numbers than its storage has, a record can inflate. So the pickle is
first read opcode by opcode, and only sizes are kept. All that is allowed is what training writes: plain data, tensors
with storage, sparse ones, and classes that the user has named with `torch.serialization.add_safe_globals`.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch

DEEPEST = 100  # levels of nesting; a Lightning checkpoint has about ten
REPEATED = 1_000_000  # maximum number of values that are repeated by reference
EXPANDED = 2**30  # bytes by which tensors may exceed their storages, as after `expand`
LARGEST_KEY = 100  # values in a tuple that is a key, each of which is hashed
MOST_DIMENSIONS = 64  # maximum of torch

_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True, "EMPTY_TUPLE": ()}
_LATIN = ("latin1", "latin-1")


class HostileError(ValueError):
    """The pickle contradicts itself or the file."""


class RefusedError(HostileError):
    """The pickle would take too much memory or time for its size, or contains what training never writes."""


class _Global(str):
    """The name of a class or function."""


class _Node:
    """A list, dictionary, set or object: its kind and contents."""

    def __init__(self, kind: str, children: list[Any]) -> None:
        self.kind, self.children = kind, children


def check_outline(content: bytes, size_of: Callable[[str], int]) -> None:
    """Refuse a pickle of tensors and plain data that is not what it seems.

    Args:
        content: The pickle.
        size_of: The bytes of a storage that are in the file, by its key.

    Raises:
        RefusedError: It would take more memory or time than its size warrants, or holds what no training writes.
        HostileError: It is damaged.
        pickle.UnpicklingError: It asks for anything else than tensors and plain data.
    """
    reader = _Reader(size_of)
    try:
        root = reader.read(content)
    except (HostileError, pickle.UnpicklingError):
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise HostileError("its pickle is damaged") from error
    if reader.expanded > EXPANDED:
        raise RefusedError(f"its tensors claim {reader.expanded / 1e9:,.1f} GB more than is stored")
    _check_tree(root, reader.count + REPEATED)


class _Reader:
    """The stack machine that runs a pickle, with sizes in place of objects."""

    def __init__(self, size_of: Callable[[str], int]) -> None:
        self.size_of = size_of
        self.stored: dict[str, int] = {}
        self.expanded = self.count = 0
        self.own = {_name(entry) for entry in torch.serialization.get_safe_globals()}

    def read(self, content: bytes) -> Any:
        """The outline of the object that the pickle creates."""
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[int, Any] = {}
        argument: Any
        for opcode, argument, _ in pickletools.genops(content):
            name, self.count = opcode.name, self.count + 1
            if name in _VALUES:
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            elif name == "MARK":
                marks.append(stack)
                stack = []
            elif name in ("TUPLE", "APPENDS", "SETITEMS"):
                items, stack = stack, marks.pop()
                if name == "TUPLE":
                    stack.append(tuple(items))
                else:
                    _fill(stack[-1], "list" if name == "APPENDS" else "dict", items)
            elif name == "APPEND":
                _fill(stack[-2], "list", [stack.pop()])
            elif name == "SETITEM":
                _fill(stack[-3], "dict", stack[-2:])
                del stack[-2:]
            elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
                stack.append(_Node(name[6:].lower(), []))
            elif name == "GLOBAL":
                stack.append(_Global(argument.replace(" ", ".").replace("__builtin__.", "builtins.")))  # as torch does
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments = stack.pop()
                stack.append(self._call(name, stack.pop(), arguments))
            elif name == "BUILD":
                state = stack.pop()
                self._build(stack[-1], state)
            elif name not in ("PROTO", "STOP"):
                raise pickle.UnpicklingError(f"the opcode {name}")
        return stack.pop()

    def _storage(self, identity: Any) -> _Node:
        word, kind, key, _, count = identity
        if (word, type(kind), type(key), type(count)) != ("storage", _Global, str, int) or count < 0:
            raise HostileError("a storage is not described as one")
        width = _width(kind)
        stored = self.stored.setdefault(key, self.size_of(key))
        if count * width != stored:  # torch trusts the pickle and would read beyond the record
            raise HostileError(f"storage {key[:50]!r} claims {count * width:,} bytes and has {stored:,}")
        return _Node("storage", [stored, width])

    def _call(self, opcode: str, function: Any, arguments: Any) -> _Node:
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of an object that is not a function")
        kind = function.removeprefix("torch._utils.")
        if function in self.own:
            return _Node("own", [arguments])
        if opcode == "REDUCE":
            if kind in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
                storage, offset, size, stride = arguments[:4]
                width = _width(arguments[6]) if kind == "_rebuild_tensor_v3" else storage.children[1]
                self.expanded += max(_bytes_of_view(storage, offset, size, stride, width) - storage.children[0], 0)
                return _Node("tensor", list(arguments[5:]))
            if kind in ("_rebuild_parameter", "_rebuild_sparse_tensor"):
                return _Node("tensor", [arguments])
            if kind == "_rebuild_parameter_with_state":
                _check_attributes(arguments[3])
                return _Node("tensor", [arguments])
            if kind == "torch._tensor._rebuild_from_type_v2":
                function, made, arguments, state = arguments
                if made not in self.own and made not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
                    raise pickle.UnpicklingError(f"a tensor of {made}")
                if made not in self.own:
                    _check_attributes(state)
                return _Node("tensor", [self._call(opcode, function, arguments), state])
            if kind in ("torch.device", "torch.serialization._get_layout", "builtins.complex", "torch.Size"):
                return _Node("value", [arguments])
            if kind in ("builtins.bytearray", "_codecs.encode"):
                encoded = len(arguments) == 1 and isinstance(arguments[0], _Node) and arguments[0].kind == "bytes"
                if not arguments or encoded or (isinstance(arguments[0], str) and arguments[1] in _LATIN):
                    return _Node("bytes", [arguments])
            elif kind in ("collections.OrderedDict", "collections.Counter"):
                if not arguments or (kind.endswith("Counter") and arguments[0].kind == "dict"):
                    return _Node("dict", list(arguments))
            elif kind == "builtins.set":
                for key in arguments[0].children if arguments else ():
                    _check_key(key)
                return _Node("set", list(arguments))
        if kind.startswith(("_rebuild_", "torch._tensor._rebuild_")):
            raise RefusedError(f"{kind.rpartition('.')[2]} makes no plain tensor")
        raise pickle.UnpicklingError(f"a call of {function}")

    def _build(self, target: Any, state: Any) -> None:
        """Attributes of an object: a state dict has `_metadata`."""
        if not isinstance(target, _Node) or target.kind not in ("dict", "own"):
            raise pickle.UnpicklingError("attributes of what has none")
        if target.kind == "dict" and (not isinstance(state, _Node) or state.children[::2] != ["_metadata"]):
            raise RefusedError("a dictionary has attributes")
        target.children.append(state)


def _fill(target: Any, kind: str, items: list[Any]) -> None:
    if not isinstance(target, _Node) or target.kind not in (kind, "own"):
        raise HostileError(f"it adds items to an object that is not a {kind}")
    if kind == "dict":
        for key in items[::2]:
            _check_key(key)
    target.children += items


def _check_key(key: Any) -> None:
    """Limit the size of keys: nested tuples are hashed as trees, tensors by identity."""
    waiting, size = [key], 1
    while waiting:
        part = waiting.pop()
        if isinstance(part, _Node) and part.kind not in ("value", "bytes"):
            raise RefusedError("a key is neither plain nor a tuple")
        parts = _children(part)
        size += len(parts)
        if size > LARGEST_KEY:
            raise RefusedError(f"a key is a tuple of more than {LARGEST_KEY} values")
        waiting += parts


def _check_attributes(state: Any) -> None:
    """Refuse attributes that replace those of every tensor, such as `data`."""
    if not isinstance(state, _Node) or state.kind != "dict":
        raise HostileError("the attributes of a tensor are not a dictionary")
    for name in state.children[::2]:
        if not isinstance(name, str) or hasattr(torch.nn.Parameter, name):
            raise RefusedError(f"a tensor has {str(name)[:50]!r} set")


def _bytes_of_view(storage: Any, offset: Any, size: Any, stride: Any, width: int) -> int:
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) > MOST_DIMENSIONS:
        raise HostileError("a tensor is not described as one")
    numbers = [offset, *size, *stride]
    if storage.kind != "storage" or len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise HostileError("a tensor is not described as one")
    elements = prod(size)
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if elements else 0
    if reach * width > storage.children[0] or max(numbers) >= 2**62:
        raise HostileError(f"a tensor of shape {str(size)[:100]} does not fit in its storage")
    return elements * width


def _width(name: str) -> int:
    """Bytes per element, by the name of a dtype or of a storage."""
    if name in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
        return 1
    dtype = getattr(torch, name.removeprefix("torch."), None) if name.startswith("torch.") else None
    if isinstance(dtype, torch.dtype):
        return dtype.itemsize
    return int(torch.serialization.StorageType(name.rpartition(".")[2]).dtype.itemsize)


def _name(entry: Any) -> str:
    """The entries of `add_safe_globals`: a class or function, or one with its name."""
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def _check_tree(root: Any, most: int) -> None:
    """Refuse objects that contain themselves, are nested deeply, or are large when traversed as a tree."""
    measured: dict[int, tuple[int, int]] = {}  # number of values and levels by identity; (0, 0) while in progress
    path: list[tuple[Any, Iterator[Any]]] = [(root, iter(_children(root)))]
    while path:
        value, rest = path[-1]
        child = next((c for c in rest if isinstance(c, _Node | tuple) and measured.get(id(c), (0, 0)) == (0, 0)), None)
        if child is not None:
            if id(child) in measured or len(path) > DEEPEST:
                raise RefusedError(f"its values lie more than {DEEPEST} levels deep, or hold themselves")
            measured[id(child)] = (0, 0)
            path.append((child, iter(_children(child))))
            continue
        path.pop()
        sizes = [measured.get(id(c), (1, 1)) if isinstance(c, _Node | tuple) else (1, 1) for c in _children(value)]
        total, levels = 1 + sum(s for s, _ in sizes), 1 + max((d for _, d in sizes), default=0)
        if total > most or levels > DEEPEST:
            bound = f"more than {most:,} values" if total > most else f"values more than {DEEPEST} levels deep"
            raise RefusedError(f"it holds {bound}, by references to the same ones")
        measured[id(value)] = (total, levels)


def _children(value: Any) -> Any:
    return value.children if isinstance(value, _Node) else value if isinstance(value, tuple) else ()
