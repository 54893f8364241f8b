"""Regenerate the list of characters of Glyphs, with its splits: `python scripts/make_glyph_lists.py`.

Run this only to change the data set: results on another list are not comparable with earlier ones.
From the letters, digits, currency signs and a few more signs that all twelve DejaVu faces draw:

1. Twins, which look the same in every face, are one class. Within a script the later one is dropped; in
   another script it is kept as "twin" and left out of few-shot splits (Greek Alpha beside Latin A).
2. A base gathers what must share a split: the cases of a letter, with and without diacritics, strokes and
   hooks, raised and small capital forms, twins, and characters that look nearly the same.
3. Whole bases are dealt to 60 % train, 15 % val and 25 % test, evenly over scripts, in characters and in
   bases.
"""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_meta.batches import SPLITS, Split
from lightning_meta.sources.glyph_outlines import charmap
from lightning_meta.sources.glyphs import FACES, LIST, Character, Glyphs

SHARES = (0.60, 0.15, 0.25)
SCRIPTS = ("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Digit", "Symbol")
SIGNS = set("!?&@#%§¶†‡")  # most other signs are drawn once and copied into every face: too easy
# squared distance of two pictures over the ink of the lighter one; measured, and the pairs looked at
TWIN = 0.01  # averaged over faces: o and Armenian oh, micro and mu; the nearest true pairs are at 0.02
# what is this near shares a split: averaged over faces (Koppa and o with dot below) or in the nearest face
# (sha and turned m)
ALIKE, ALIKE_ONCE = 0.07, 0.03


def script_of(char: str) -> str | None:
    """The group of a character; None if it is left out."""
    kind, name = unicodedata.category(char), unicodedata.name(char, "")
    if kind == "Nd":
        return "Digit"
    if kind == "Sc" or char in SIGNS:
        return "Symbol"
    if kind[0] != "L":
        return None
    if unicodedata.normalize("NFKD", char)[0] == " ":
        return None  # a diacritic without a letter
    for text in (name, unicodedata.name(letter_of(char))):
        for script in SCRIPTS[:5]:
            if script.upper() in text.split()[:3]:
                return script
    return None  # modifier marks such as the prime: dots and strokes that look alike


def letter_of(char: str) -> str:
    """The first full letter of a character's decomposition, n for ŉ and a for ᵃ, or the character."""
    parts = unicodedata.normalize("NFKD", char)
    return next((part for part in parts if unicodedata.category(part) in ("Lu", "Ll", "Lo")), char)


def base_of(char: str) -> str:
    """The letter without case, diacritics and raised or small capital form."""
    seen: set[str] = set()
    while char not in seen:
        seen.add(char)
        char = letter_of(char).casefold()[0]
        name = unicodedata.name(char).split(" WITH ")[0].replace("DOTLESS ", "")
        name = name.replace("LETTER SMALL CAPITAL", "SMALL LETTER").replace("CAPITAL LETTER", "SMALL LETTER")
        name = name.replace("MODIFIER LETTER SMALL", "LATIN SMALL LETTER")
        try:
            char = unicodedata.lookup(name)
        except KeyError:
            continue
    return char


def distances(pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances of all pairs of characters, `(C, C)`: the mean over faces, and the minimum over faces."""
    count = len(pictures)
    mean, least = np.zeros((count, count), np.float32), np.full((count, count), np.inf, np.float32)
    for face in range(pictures.shape[1]):
        flat = pictures[:, face].reshape(count, -1).astype(np.float32) / 255
        ink = (flat**2).sum(axis=1)
        apart = np.maximum(ink[:, None] + ink - 2 * flat @ flat.T, 0) / np.minimum(ink[:, None], ink)
        mean += apart / pictures.shape[1]
        least = np.minimum(least, apart)
    return mean, least


def pairs(related: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The pairs i < j of a symmetric relation `(C, C)`."""
    i, j = np.nonzero(np.triu(related, 1))
    return list(zip(i.tolist(), j.tolist(), strict=True))


def join(links: list[tuple[int, int]], count: int) -> list[int]:
    """The smallest node of the connected component of each of `count` nodes."""
    parent = list(range(count))

    def find(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for a, b in links:
        a, b = sorted((find(a), find(b)))
        parent[b] = a
    return [find(node) for node in range(count)]


def deal(members: dict[str, Counter[str]]) -> dict[str, Split]:
    """Assign a split to each base from its number of characters in each script, largest bases first."""
    total: Counter[str] = Counter()
    for scripts in members.values():
        total.update(scripts)
    bases = Counter(script for scripts in members.values() for script in scripts)
    held = {split: (Counter[str](), Counter[str]()) for split in SPLITS}
    splits: dict[str, Split] = {}
    for base, scripts in sorted(members.items(), key=lambda item: (-item[1].total(), item[0])):

        def need(split: Split, scripts: Counter[str] = scripts) -> float:
            """The distance of the split from its share in these scripts, in characters and in bases."""
            share, (characters, letters) = SHARES[SPLITS.index(split)], held[split]
            return sum(
                (n / scripts.total()) * (2 - characters[s] / total[s] / share - letters[s] / bases[s] / share)
                for s, n in scripts.items()
            )

        splits[base] = max(SPLITS, key=need)
        held[splits[base]][0].update(scripts)
        held[splits[base]][1].update(scripts.keys())
    return splits


def make() -> list[Character]:
    """The list, sorted by script and code point."""
    shared = set.intersection(*(charmap(face) for face in FACES))
    found = [(SCRIPTS.index(s), code) for code in shared if (s := script_of(chr(code)))]
    codes = [code for _, code in sorted(found)]
    scripts = [SCRIPTS[s] for s, _ in sorted(found)]
    plain = [Character(code, script, "", "train", "") for code, script in zip(codes, scripts, strict=True)]
    mean, least = distances(Glyphs(jitter=0.0).render(plain).numpy()[:, :, 0])

    twins = join(pairs(mean < TWIN), len(codes))
    named = {base_of(chr(code)): i for i, code in reversed(list(enumerate(codes)))}
    links = [(i, named[base_of(chr(code))]) for i, code in enumerate(codes)]
    alike = pairs((mean < ALIKE) | (least < ALIKE_ONCE))
    links += list(enumerate(twins)) + alike
    bases = [base_of(chr(codes[first])) for first in join(links, len(codes))]

    first = [twins[i] == i for i in range(len(codes))]
    members: dict[str, Counter[str]] = {}
    for base, script, kept in zip(bases, scripts, first, strict=True):
        if kept:
            members.setdefault(base, Counter())[script] += 1
    splits = deal(members)
    rows = []
    seen: set[tuple[int, str]] = set()
    for i, code in enumerate(codes):
        if (twins[i], scripts[i]) in seen:
            continue
        seen.add((twins[i], scripts[i]))
        split = splits[bases[i]] if first[i] else "twin"
        rows.append(Character(code, scripts[i], bases[i], split, unicodedata.name(chr(code))))
    return rows


def main(args: list[str] | None = None) -> int:
    """Write the list, or compare it with the shipped one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":", 1)[0])
    parser.add_argument("--check", action="store_true", help="only say whether the shipped list would change")
    rows = make()
    lines = ["# code point, character, script, base, split, name; made by scripts/make_glyph_lists.py"]
    lines += ["\t".join([f"U+{r.code:04X}", chr(r.code), r.script, r.base, r.split, r.name]) for r in rows]
    text = "\n".join(lines) + "\n"
    if parser.parse_args(args).check:
        same = Path(str(LIST)).read_text(encoding="utf-8") == text
        print("unchanged" if same else "the list would change")
        return 0 if same else 1
    Path(str(LIST)).write_text(text, encoding="utf-8")
    print(f"{LIST}: {Counter(r.split for r in rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
