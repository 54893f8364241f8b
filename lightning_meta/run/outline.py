"""What a checkpoint would become, found out before anything of it is made.

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

DEEPEST = 100  # levels; a checkpoint of Lightning has about ten
REPEATED = 1_000_000  # values that may be repeated by reference, besides those that are written out
VIEWED, SLACK = 16, 2**26  # tensors that share storage may hold so many times what is stored, and 64 MiB more
MOST_DIMENSIONS = 64  # of a tensor of torch's

_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True, "EMPTY_TUPLE": ()}
_LATIN = ("latin1", "latin-1")


class HostileError(ValueError):
    """A pickle that would take more memory or time than its size warrants."""


class _Global(str):
    """The name of a class or function."""


class _Node:
    """A list, dictionary, set or object: what it holds, and of what kind it is."""

    def __init__(self, kind: str, children: list[Any]) -> None:
        self.kind, self.children = kind, children


def check_outline(content: bytes, size_of: Callable[[str], int]) -> None:
    """Refuse a pickle of tensors and plain data that is not what it seems.

    Args:
        content: The pickle.
        size_of: The bytes of a storage that are in the file, by its key.

    Raises:
        HostileError: It would take more memory or time than its size warrants.
        pickle.UnpicklingError: It asks for anything else than tensors and plain data, or is damaged.
    """
    reader = _Reader(size_of)
    try:
        root = reader.read(content)
    except (HostileError, pickle.UnpicklingError):
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise HostileError("its pickle is damaged") from error
    if reader.claimed > VIEWED * sum(reader.stored.values()) + SLACK:
        raise HostileError(
            f"its tensors claim {reader.claimed / 1e9:,.1f} GB, and {sum(reader.stored.values()) / 1e9:,.3f} are stored"
        )
    _check_tree(root, reader.count + REPEATED)


class _Reader:
    """The machine that a pickle is a program for, with sizes in place of objects."""

    def __init__(self, size_of: Callable[[str], int]) -> None:
        self.size_of = size_of
        self.stored: dict[str, int] = {}
        self.claimed = self.count = 0
        self.own = {_name(entry) for entry in torch.serialization.get_safe_globals()}

    def read(self, content: bytes) -> Any:
        """The outline of what the pickle makes."""
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
            elif name == "STOP":
                return stack.pop()
            elif name != "PROTO":
                raise pickle.UnpicklingError(f"the opcode {name}")
        raise HostileError("its pickle has no end")

    def _storage(self, identity: Any) -> _Node:
        word, kind, key, _, count = identity
        if (word, type(kind), type(key), type(count)) != ("storage", _Global, str, int) or count < 0:
            raise HostileError("a storage is not described as one")
        width = _width(kind)
        stored = self.stored.setdefault(key, self.size_of(key))
        if count * width != stored:  # torch believes the pickle, and would read beyond the record
            raise HostileError(f"storage {key[:50]!r} claims {count * width:,} bytes and has {stored:,}")
        return _Node("storage", [stored, width])

    def _call(self, opcode: str, function: Any, arguments: Any) -> _Node:
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of what is no function")
        kind = function.removeprefix("torch._utils.")
        if function in self.own:
            return _Node("own", [arguments])
        if opcode == "REDUCE":
            if kind in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
                storage, offset, size, stride = arguments[:4]
                width = _width(arguments[6]) if kind == "_rebuild_tensor_v3" else storage.children[1]
                self.claimed += _bytes_of_view(storage, offset, size, stride, width)
                return _Node("tensor", list(arguments[5:]))
            if kind in ("_rebuild_parameter", "_rebuild_sparse_tensor", "torch.Size"):
                return _Node("tensor", [arguments])
            if kind in ("torch.device", "torch.serialization._get_layout", "builtins.complex"):
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
            raise HostileError(f"{kind.rpartition('.')[2]} makes no plain tensor")
        raise pickle.UnpicklingError(f"a call of {function}")

    def _build(self, target: Any, state: Any) -> None:
        """Attributes of an object: a state dict has `_metadata`."""
        if not isinstance(target, _Node) or target.kind not in ("dict", "own"):
            raise pickle.UnpicklingError("attributes of what has none")
        if target.kind == "dict" and (not isinstance(state, _Node) or state.children[::2] != ["_metadata"]):
            raise HostileError("a dictionary has attributes")
        target.children.append(state)


def _fill(target: Any, kind: str, items: list[Any]) -> None:
    if not isinstance(target, _Node) or target.kind not in (kind, "own"):
        raise HostileError(f"it fills what is no {kind}")
    if kind == "dict":
        for key in items[::2]:
            _check_key(key)
    target.children += items


def _check_key(key: Any) -> None:
    """Nested tuples are hashed as trees, without a limit on depth; a tensor by its place in memory."""
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, _Node | tuple):
            raise HostileError("a key is neither a number nor text")


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
    """Bytes of a number, by the name of a dtype or of a storage."""
    if name in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
        return 1
    dtype = getattr(torch, name.removeprefix("torch."), None) if name.startswith("torch.") else None
    if isinstance(dtype, torch.dtype):
        return dtype.itemsize
    return int(torch.serialization.StorageType(name.rpartition(".")[2]).dtype.itemsize)


def _name(entry: Any) -> str:
    """What `add_safe_globals` was given: a class or function, or one with its name."""
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def _check_tree(root: Any, most: int) -> None:
    """Refuse what holds itself, lies deeply or is large when walked as a tree."""
    measured: dict[int, tuple[int, int]] = {}  # by identity: values and levels; (0, 0) while it is being measured
    path: list[tuple[Any, Iterator[Any]]] = [(root, iter(_children(root)))]
    while path:
        value, rest = path[-1]
        child = next((c for c in rest if isinstance(c, _Node | tuple) and measured.get(id(c), (0, 0)) == (0, 0)), None)
        if child is not None:
            if id(child) in measured or len(path) > DEEPEST:
                raise HostileError(f"its values lie more than {DEEPEST} levels deep, or hold themselves")
            measured[id(child)] = (0, 0)
            path.append((child, iter(_children(child))))
            continue
        path.pop()
        sizes = [measured.get(id(c), (1, 1)) if isinstance(c, _Node | tuple) else (1, 1) for c in _children(value)]
        total, levels = 1 + sum(s for s, _ in sizes), 1 + max((d for _, d in sizes), default=0)
        if total > most or levels > DEEPEST:
            bound = f"more than {most:,} values" if total > most else f"values more than {DEEPEST} levels deep"
            raise HostileError(f"it holds {bound}, by references to the same ones")
        measured[id(value)] = (total, levels)


def _children(value: Any) -> Any:
    return value.children if isinstance(value, _Node) else value if isinstance(value, tuple) else ()
