"""Which class is in which split: the published lists, and the rule that splits share no class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import combinations

from lightning_meta.batches import SPLITS, Split
from lightning_meta.errors import UserError


def class_list(name: str) -> dict[Split, list[str]]:
    """The classes of each split, in the order of the file `splits/<name>.txt`: a split and a class a line."""
    folder = resources.files("lightning_meta.sources") / "splits"
    text = (folder / f"{name}.txt").read_text("utf-8")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    return {split: [label for of, label in lines if of == split] for split in SPLITS}


def refuse_shared(classes: Mapping[Split, Iterable[str]], where: str, mend: str, kind: str = "class") -> None:
    """Few-shot learning is tested on classes that were never trained on.

    Raises:
        UserError: A class is in two splits. The line begins with `where` and ends with `mend`; it calls the class by
            its `kind`.
    """
    for a, b in combinations(SPLITS, 2):
        if shared := sorted(set(classes[a]) & set(classes[b])):
            raise UserError(f"{where}: {kind} {shared[0]!r} is in both {a} and {b} ({len(shared)} such); {mend}")
