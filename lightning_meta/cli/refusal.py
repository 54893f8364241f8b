"""What jsonargparse refuses, read out of its message.

It explains why a value fits none of the alternatives of a type as a tree of indented lines: keys, classes and, as the
leaves, reasons. The reason that matters is the innermost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NOISE: tuple[str, ...] = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a path but",
    "Expected a <class 'None",
)
_NOISE += ("Not a valid subclass", "Subclass types expect", "a class path (str)", "a dict ", "Discriminator")
_WEAK = ("Expected a", "Import path", "Unable to")  # said of each alternative that was not meant

_STRONG = ("Expected a dot import path", "Expected an instantiatable")


@dataclass(frozen=True)
class Refusal:
    """The innermost reason.

    Attributes:
        key: The option, as `data.source.root`; "" where none is named.
        owner: The class path whose argument it is; "" where it is none's.
        reason: In jsonargparse's words.
        expected: The alternatives of the option's type, where there are several.
        value: What was given, where the message says so.
    """

    key: str
    owner: str
    reason: str
    expected: str = ""
    value: str = ""


def read_refusal(text: str) -> Refusal:
    """Read a message of jsonargparse.

    Args:
        text: The message, as long as it is.
    """
    stack: list[tuple[int, str, str]] = []
    leaves: list[tuple[int, Refusal]] = []
    expected: dict[tuple[str, ...], str] = {}
    values: dict[tuple[str, ...], str] = {}
    for line in text.splitlines():
        said = line.lstrip(" ")
        indent = len(line) - len(said)
        if not said:
            continue
        if said.startswith("- "):
            said, indent = said[2:].lstrip(), indent + 2
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if found := re.fullmatch(r'Parser key "([^"]+)":(.*)', said):
            stack.append((indent, "key", found[1]))
            said = found[2].strip()
        elif found := re.fullmatch(r"Problem with given class_path '([^']+)':(.*)", said):
            stack.append((indent, "class", found[1]))
            said = found[2].strip()
        keys = tuple(name for _, kind, name in stack if kind == "key")
        if found := re.match(r"Subtypes: \[(.*)\]", said):
            expected[keys] = found[1]
        elif found := re.match(r"Given value: (.*)", said):
            values.setdefault(keys, found[1])
        elif said and not said.startswith(_NOISE):
            owner = next((name for _, kind, name in reversed(stack) if kind == "class"), "")
            weak = said.startswith(_WEAK) and not said.startswith(_STRONG)
            depth = 2 * len(stack) + (not weak)
            leaves.append((depth, Refusal(".".join(keys), owner, said)))
    if not leaves:
        return Refusal("", "", " ".join(text.split()))
    _, inner = max(leaves, key=lambda leaf: leaf[0])  # the first of equals
    at = tuple(inner.key.split(".")) if inner.key else ()
    at = next((keys for keys in expected if ".".join(keys) == inner.key), at)
    return Refusal(inner.key, inner.owner, inner.reason, expected.get(at, ""), values.get(at, ""))
