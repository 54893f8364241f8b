"""Write `docs/gallery.md`, a section for each method with its configurations and what they reached.

    python scripts/make_gallery.py

The sentence and the paper are from the docstring. Figures are those of `docs/results.md` and of the CSV files of
`docs/reproduction/`; this script adds none.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from make_tables import META, MULTI_TASK, ROOT, first_sentence
from reproducing.rows import TABLES, read_rows

from lightning_meta.configuration import public_path
from lightning_meta.reading import read_yaml

PAGE = ROOT / "docs" / "gallery.md"
RESULTS = ROOT / "docs" / "results.md"
INTRODUCTION = """# Gallery

Each method with its paper, its configurations, and what they reached. The rows are those of [Results](results.md),
measured as the pages says there, and of [Reproducing published figures](reproduction.md), with the number of seeds.
Written by `python scripts/make_gallery.py`.
"""
HEADER = ("what", "measured", "published", "conditions")


class Figure(NamedTuple):
    """A row of a table, as it stands there.

    Attributes:
        what: The configuration and the metric.
        measured: What was measured.
        published: What was published; "" if nothing was.
        conditions: How it was measured.
        source: The page that it is from, as a link.
    """

    what: str
    measured: str
    published: str
    conditions: str
    source: str


def configurations() -> dict[str, list[str]]:
    """By the path of a class, the names of the configurations that train it."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        content = read_yaml(file)
        rungs = content.get("rungs", {}).values()
        models = [content.get("model", {}), *rungs]
        for path in dict.fromkeys(str(model["class_path"]) for model in models if "class_path" in model):
            found.setdefault(path, []).append(file.stem)
    return found


def figures() -> dict[str, list[Figure]]:
    """By the name of a configuration or of a class, the figures that belong to it."""
    found: dict[str, list[Figure]] = {}
    for names, figure in [*_of_results(), *_of_reproductions()]:
        for name in names:
            found.setdefault(name, []).append(figure)
    return found


def _of_results() -> Iterable[tuple[Sequence[str], Figure]]:
    """The rows of the tables of results that name a configuration or a class, and those that continue them."""
    names: Sequence[str] = ()
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != len(HEADER):
            names = ()
            continue
        named = re.findall(r"`(\w+)`", cells[0])
        if named or "the same" not in cells[0]:
            names = named[:1]
        if names and tuple(cells) != HEADER:
            yield names, Figure(*cells, "[results](results.md)")


def _of_reproductions() -> Iterable[tuple[Sequence[str], Figure]]:
    """The figures of the reproductions that were run."""
    for table in TABLES:
        configs = {row.name: row.config for row in read_rows(table)}
        with (ROOT / "docs" / "reproduction" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                if line["seeds"]:
                    yield [configs[line["row"]]], _reproduced(line)


def _reproduced(line: dict[str, str]) -> Figure:
    unit = f" {line['unit']}" if line["unit"] else ""

    def shown(value: str, half_width: str) -> str:
        if not value:
            return ""
        digits = 2 if unit else 3
        return f"{float(value):.{digits}f}{f' ± {float(half_width):.{digits}f}' if half_width else ''}{unit}"

    seeds = len(line["seeds"].split())
    over = f"{seeds} seed{'' if seeds == 1 else 's'}; interval over {line['interval_over']}"
    measured = shown(line["measured"], line["half_width"]) or "not finite"
    published = f"{line['published']}{unit}" if line["published"] else ""
    return Figure(
        f"`{line['row']}`, {line['figure']}",
        measured,
        published,
        f"{over}; {line['protocol']}",
        "[reproduction](reproduction.md)",
    )


def section(cls: type, configs: Sequence[str], of: dict[str, list[Figure]]) -> str:
    """The section of a method.

    Args:
        cls: The method.
        configs: The names of its configurations.
        of: Figures by the name of a configuration or of a class.
    """
    parts = [f"## {cls.__name__}", first_sentence(cls)]
    if link := re.search(r"https?://[^\s)>;,]+", cls.__doc__ or ""):
        parts.append(f"Paper: <{link[0].rstrip('.')}>")
    if configs:
        parts.append(f"Configurations: {', '.join(f'`configs/{name}.yaml`' for name in configs)}")
    rows = [figure for name in dict.fromkeys([*configs, cls.__name__]) for figure in of.get(name, [])]
    if rows:
        lines: list[Sequence[str]] = [[*HEADER, "from"], ["---"] * (len(HEADER) + 1), *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    else:
        parts.append("No figure of it is published here.")
    return "\n\n".join(parts)


def gallery() -> str:
    """The page."""
    configs, of = configurations(), figures()
    groups: list[tuple[str, list[Any]]] = [("meta-learning", META), ("several tasks", MULTI_TASK)]
    sections = [section(cls, configs.get(public_path(cls), []), of) for _, group in groups for cls in group]
    return "\n\n".join([INTRODUCTION.rstrip(), *sections, ""])


if __name__ == "__main__":
    PAGE.write_text(gallery(), encoding="utf-8")
