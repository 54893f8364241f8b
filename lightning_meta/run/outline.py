"""Determine what a checkpoint's pickle would create, before creating any of it.

`torch.load(weights_only=True)` runs no code, but believes what it reads: a pickle of 10 kB can hold lists that hold
each other 2^60 times, a tensor can claim more numbers than its storage has, a record can inflate. So the pickle is
first read opcode by opcode, and only sizes are kept. All that is allowed is what training writes: plain data, tensors
with storage, sparse ones, and classes that the user has named with `torch.serialization.add_safe_globals`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
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
# What takes values from the stack, and how many; 0 stands for all since the last mark.
_COLLECTS = {"APPEND": ("list", 1), "APPENDS": ("list", 0), "SETITEM": ("dict", 2), "SETITEMS": ("dict", 0)}
_COLLECTS |= {"TUPLE": ("tuple", 0), "TUPLE1": ("tuple", 1), "TUPLE2": ("tuple", 2), "TUPLE3": ("tuple", 3)}
_PLAIN = ("torch.device", "torch.serialization._get_layout", "builtins.complex", "torch.Size")
_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter")


class HostileError(ValueError):
    """The pickle contradicts itself, would take too much memory, or holds what training never writes."""


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
        HostileError: The pickle is refused.
        Exception: It is damaged.
    """
    reader = _Reader(size_of)
    root = reader.read(content)
    if reader.expanded > EXPANDED:
        raise HostileError(f"its tensors and bytes claim {reader.expanded / 1e9:,.1f} GB more than is stored")
    _measure(root, reader.count + REPEATED, {})


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
            elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
                stack.append(_Node(name[6:].lower(), []))
            elif name == "MARK":
                marks.append(stack)
                stack = []
            elif name in _COLLECTS:
                kind, count = _COLLECTS[name]
                if count:
                    items = [stack.pop() for _ in range(count)][::-1]
                else:
                    items, stack = stack, marks.pop()
                if kind == "tuple":
                    stack.append(tuple(items))
                else:
                    _fill(stack[-1], kind, items)
            elif name == "GLOBAL":
                stack.append(_Global(argument.replace(" ", ".").replace("__builtin__.", "builtins.")))  # as torch does
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments = stack.pop()
                stack.append(self._call(name, stack.pop(), arguments))
            elif name == "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            elif name not in ("PROTO", "STOP"):
                raise HostileError(f"it has the opcode {name}, which torch.save does not write")
        root = stack.pop()
        if stack or marks:  # what is made and not in the result would not be measured
            raise HostileError("it makes objects that are not in its result")
        return root

    def _storage(self, identity: Any) -> _Node:
        word, kind, key, place, count = identity
        types = type(kind), type(key), type(place), type(count)
        if word != "storage" or types != (_Global, str, str, int) or count < 0:
            raise HostileError("a storage is not described as one")
        width = _width(kind)
        stored = self.stored.setdefault(key, self.size_of(key))
        if count * width != stored:  # torch trusts the pickle and would read beyond the record
            raise HostileError(f"storage {key[:50]!r} claims {count * width:,} bytes and has {stored:,}")
        return _Node("storage", [stored, width])

    def _call(self, opcode: str, function: Any, arguments: Any) -> _Node:
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise _code("what is not a function")
        if function in self.own:
            return _Node("own", [arguments])
        kind = function.removeprefix("torch._utils.")
        if opcode == "REDUCE" and (node := self._tensor(kind, arguments) or self._plain(kind, arguments)):
            return node
        if kind.startswith(("_rebuild_", "torch._tensor._rebuild_")):
            raise HostileError(f"{kind.rpartition('.')[2]} makes no plain tensor")
        raise _code(function)

    def _tensor(self, kind: str, arguments: tuple[Any, ...]) -> _Node | None:
        if kind in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            storage, offset, size, stride = arguments[:4]
            width = _width(arguments[6]) if kind == "_rebuild_tensor_v3" else storage.children[1]
            self.expanded += max(_bytes_of_view(storage, offset, size, stride, width) - storage.children[0], 0)
            return _Node("tensor", list(arguments[5:]))
        if kind == "torch._tensor._rebuild_from_type_v2":
            function, made, arguments, state = arguments
            if made not in self.own:
                if made not in _TENSORS:
                    raise _code(made)
                _check_attributes(state)
            return _Node("tensor", [self._call("REDUCE", function, arguments), state])
        if kind == "_rebuild_parameter_with_state":
            _check_attributes(arguments[3])
        elif kind not in ("_rebuild_parameter", "_rebuild_sparse_tensor"):
            return None
        return _Node("tensor", [arguments])

    def _plain(self, kind: str, arguments: tuple[Any, ...]) -> _Node | None:
        """An object that is no tensor; None if `torch.load` would make it from other arguments, or not at all."""
        first = arguments[0] if arguments else None
        if kind in _PLAIN and not any(isinstance(part, _Node) for part in arguments):  # a tensor is taken apart by Size
            return _Node("value", [arguments])
        if kind in ("builtins.bytearray", "_codecs.encode"):
            is_bytes = len(arguments) == 1 and isinstance(first, _Node) and first.kind == "bytes"
            is_text = isinstance(first, str) and arguments[1] in ("latin1", "latin-1")
            if arguments and not is_bytes and not is_text:
                return None
            size = first.children[0] if isinstance(first, _Node) else len(first or "")
            self.expanded += size  # each call makes a copy
            return _Node("bytes", [size])
        if kind == "collections.OrderedDict" and not arguments:
            return _Node("dict", [])
        if kind == "collections.Counter" and (first is None or first.kind == "dict"):
            return _Node("dict", list(arguments))
        if kind == "builtins.set":
            for key in first.children if first else ():
                _check_key(key)
            return _Node("set", list(arguments))
        return None


def _code(what: Any) -> HostileError:
    return HostileError(f"it is more than tensors and plain data: to unpickle it would run {str(what)[:100]!r}")


def _build(target: Any, state: Any) -> None:
    """Attributes of an object: a state dict has `_metadata`."""
    if not isinstance(target, _Node) or target.kind not in ("dict", "own"):
        raise HostileError("a value has attributes")
    if target.kind == "dict" and (not isinstance(state, _Node) or state.children[::2] != ["_metadata"]):
        raise HostileError("a dictionary has attributes")
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
    parts = [key]
    for part in parts:  # which grows
        if isinstance(part, _Node) and part.kind not in ("value", "bytes"):
            raise HostileError("a key is neither plain nor a tuple")
        parts += _children(part)
        if len(parts) > LARGEST_KEY:
            raise HostileError(f"a key is a tuple of more than {LARGEST_KEY} values")


def _check_attributes(state: Any) -> None:
    """Refuse attributes that replace those of every tensor, such as `data`."""
    for name in state.children[::2] if state.kind == "dict" else [state]:
        if not isinstance(name, str) or hasattr(torch.nn.Parameter, name):
            raise HostileError(f"a tensor has {str(name)[:50]!r} set")


def _bytes_of_view(storage: Any, offset: Any, size: Any, stride: Any, width: int) -> int:
    numbers = [offset, *size, *stride]
    whole = len(size) == len(stride) <= MOST_DIMENSIONS and all(type(n) is int and n >= 0 for n in numbers)
    if storage.kind != "storage" or type(size) is not tuple or type(stride) is not tuple or not whole:
        raise HostileError("a tensor is not described as one")
    elements = prod(size)
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if elements else 0
    if reach * width > storage.children[0] or max(numbers) >= 2**62:
        raise HostileError(f"a tensor of shape {str(size)[:100]} does not fit in its storage")
    return int(elements * width)


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


def _measure(value: Any, most: int, sizes: dict[int, tuple[int, int]], depth: int = 1) -> tuple[int, int]:
    """The number of values and of levels in a tree, in which shared values count each time."""
    if not isinstance(value, _Node | tuple):
        return 1, 1
    if depth + sizes.get(id(value), (0, 0))[1] > DEEPEST:
        raise HostileError(f"its values lie more than {DEEPEST} levels deep, or hold themselves")
    if id(value) not in sizes:
        sizes[id(value)] = 1, DEEPEST  # while it is measured, so that one that holds itself is refused at once
        parts = [_measure(child, most, sizes, depth + 1) for child in _children(value)]
        sizes[id(value)] = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
    count, levels = sizes[id(value)]
    if count > most:
        raise HostileError(f"it holds more than {most:,} values, by references to the same ones")
    return count, levels


def _children(value: Any) -> Any:
    return value.children if isinstance(value, _Node) else value if isinstance(value, tuple) else ()
