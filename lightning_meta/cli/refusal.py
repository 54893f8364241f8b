"""Find the relevant reason in an error message of jsonargparse.

For a value that fits none of the alternatives of a type, the message is a tree of indented lines with keys, classes
and, as leaves, reasons. The relevant reason is the innermost one.
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
_WEAK = ("Expected a", "Import path", "Unable to")  # reported for each alternative that the user did not mean

_STRONG = ("Expected a dot import path", "Expected an instantiatable")


@dataclass(frozen=True)
class Refusal:
    """The innermost reason of an error.

    Attributes:
        key: The option, such as `data.source.root`; "" if the message names none.
        owner: Class path of the object that has the option; "" if there is none.
        reason: The text of jsonargparse.
        expected: Alternatives of the option's type; "" if there is only one.
        value: The received value; "" if the message does not contain it.
    """

    key: str
    owner: str
    reason: str
    expected: str = ""
    value: str = ""


def read_refusal(text: str) -> Refusal:
    """Read a message of jsonargparse."""
    stack: list[tuple[int, str, str]] = []
    leaves: list[tuple[int, Refusal]] = []
    expected: dict[tuple[str, ...], str] = {}
    values: dict[tuple[str, ...], str] = {}
    for line in text.splitlines():
        content = line.lstrip(" ")
        indent = len(line) - len(content)
        if not content:
            continue
        if content.startswith("- "):
            content, indent = content[2:].lstrip(), indent + 2
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if found := re.fullmatch(r'Parser key "([^"]+)":(.*)', content):
            stack.append((indent, "key", found[1]))
            content = found[2].strip()
        elif found := re.fullmatch(r"Problem with given class_path '([^']+)':(.*)", content):
            stack.append((indent, "class", found[1]))
            content = found[2].strip()
        keys = tuple(name for _, kind, name in stack if kind == "key")
        if found := re.match(r"Subtypes: \[(.*)\]", content):
            expected[keys] = found[1]
        elif found := re.match(r"Given value: (.*)", content):
            values.setdefault(keys, found[1])
        elif content and not content.startswith(_NOISE):
            owner = next((name for _, kind, name in reversed(stack) if kind == "class"), "")
            weak = content.startswith(_WEAK) and not content.startswith(_STRONG)
            depth = 2 * len(stack) + (not weak)
            leaves.append((depth, Refusal(".".join(keys), owner, content)))
    if not leaves:
        return Refusal("", "", " ".join(text.split()))
    _, inner = max(leaves, key=lambda leaf: leaf[0])  # the first of equals
    at = tuple(inner.key.split(".")) if inner.key else ()
    at = next((keys for keys in expected if ".".join(keys) == inner.key), at)
    return Refusal(inner.key, inner.owner, inner.reason, expected.get(at, ""), values.get(at, ""))
