"""Published lists of the classes of each split, and the check that splits share no class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import combinations

from lightning_meta.batches import SPLITS, Split
from lightning_meta.errors import UserError


def class_list(name: str) -> dict[Split, list[str]]:
    """Return the classes of each split, in the order of `splits/<name>.txt`, which has a split and a class per line."""
    folder = resources.files("lightning_meta.sources") / "splits"
    text = (folder / f"{name}.txt").read_text("utf-8")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    return {split: [label for part, label in lines if part == split] for split in SPLITS}


def refuse_shared(classes: Mapping[Split, Iterable[str]], where: str, fix: str, kind: str = "class") -> None:
    """Check that no class is in two splits: few-shot learning is tested on classes that were not trained on.

    Args:
        classes: Names of the classes of each split.
        where: File or argument that holds the classes, at the beginning of the message.
        fix: Advice on how to fix the division, at the end of the message.
        kind: Word for a class in the message.

    Raises:
        UserError: A class is in two splits.
    """
    for a, b in combinations(SPLITS, 2):
        if shared := sorted(set(classes[a]) & set(classes[b])):
            raise UserError(f"{where}: {kind} {shared[0]!r} is in both {a} and {b} ({len(shared)} such); {fix}")
