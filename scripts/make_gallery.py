"""Write `docs/gallery.md`, with a section of configurations and results for each method.

    python scripts/make_gallery.py

The sentence and the reference come from the docstring, and the figures from the CSV files of `docs/reproduction/`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from make_tables import META, MULTI_TASK, ROOT, first_sentence, link
from reproducing.rows import TABLES, read_rows

from lightning_meta.import_paths import public_path
from lightning_meta.reading import read_yaml

PAGE = ROOT / "docs" / "gallery.md"
INTRODUCTION = """# Gallery

Each method with its configurations and what they reached, as on the page [Reproducing published
figures](reproduction.md), which says how it was measured.
"""
HEADER = ("what", "measured", "published", "conditions")


class Figure(NamedTuple):
    """A row of a table of results.

    Attributes:
        what: The configuration and the metric.
        measured: The measured figure.
        published: The published figure; "" if there is none.
        conditions: The conditions of the measurement.
    """

    what: str
    measured: str
    published: str
    conditions: str


def configurations() -> dict[str, list[str]]:
    """Names of the configurations that train a class, by the path of the class."""
    by_class: dict[str, list[str]] = {}
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        content = read_yaml(file)
        rungs = content.get("rungs", {}).values()
        models = [content.get("model", {}), *rungs]
        for path in dict.fromkeys(str(model["class_path"]) for model in models if "class_path" in model):
            by_class.setdefault(path, []).append(file.stem)
    return by_class


def figures() -> dict[str, list[Figure]]:
    """The figures by name of a configuration or class."""
    by_name: dict[str, list[Figure]] = {}
    for name, figure in _of_reproductions():
        by_name.setdefault(name, []).append(figure)
    return by_name


def _of_reproductions() -> Iterable[tuple[str, Figure]]:
    """Figures of the reproductions, each with its configuration, or with the class of its option `--model`."""
    for table in TABLES:
        trained = {row.name: row.config for row in read_rows(table)}
        for row in read_rows(table):
            for option in row.options:
                if option.startswith("--model="):
                    trained[row.name] = option.rpartition(".")[2]
        with (ROOT / "docs" / "reproduction" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                if line["seeds"]:
                    yield trained[line["row"]], _reproduced(line)


def _reproduced(line: dict[str, str]) -> Figure:
    unit = f" {line['unit']}" if line["unit"] else ""
    digits = 2 if unit else 3

    def shown(value: str, half_width: str) -> str:
        around = f" ± {float(half_width):.{digits}f}" if half_width else ""
        return f"{float(value):.{digits}f}{around}{unit}"

    seeds = len(line["seeds"].split())
    conditions = f"{seeds} seed{'' if seeds == 1 else 's'}; {line['protocol']}"
    if line["half_width"]:
        conditions += f"; interval over {line['interval_over']}"
    measured = shown(line["measured"], line["half_width"]) if line["measured"] else "not finite"
    if line["deviations"]:
        conditions += f"; not as published: {line['deviations']}"
    published = ""
    if line["published"]:
        around = f" ± {line['published_half_width']}" if line["published_half_width"] else ""
        published = f"{line['published']}{around}{unit} ({line['verdict']})"
    what = f"`{line['row']}`, {line['figure']}"
    return Figure(what, measured, published, conditions)


def section(cls: type, configs: Sequence[str], by_name: dict[str, list[Figure]]) -> str:
    """The section of a method.

    Args:
        cls: The method.
        configs: Names of its configurations.
        by_name: Figures by name of a configuration or class.
    """
    sentence = first_sentence(cls)
    parts = [f"## {cls.__name__}", f"{link(cls, '../')}: {sentence}"]
    reference = re.search(r"https?://[^\s)>;,]+", cls.__doc__ or "")
    if reference and reference[0].rstrip(".") not in sentence:
        parts.append(f"Reference: <{reference[0].rstrip('.')}>")
    if configs:
        parts.append(f"Configurations: {', '.join(f'`configs/{name}.yaml`' for name in configs)}")
    rows = [figure for name in dict.fromkeys([*configs, cls.__name__]) for figure in by_name.get(name, [])]
    if rows:
        lines: list[Sequence[str]] = [HEADER, ["---"] * len(HEADER), *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    else:
        parts.append(
            "No training of its configurations is reported here. [Results](results.md) has the speed of methods, "
            "[multi-task results](multi_task_results.md) and [evaluation](evaluation.md) have comparisons."
        )
    return "\n\n".join(parts)


def gallery() -> str:
    """The page."""
    configs, by_name = configurations(), figures()
    sections = [section(cls, configs.get(public_path(cls), []), by_name) for cls in (*META, *MULTI_TASK)]
    return "\n\n".join([INTRODUCTION.rstrip(), *sections]) + "\n"


def write_gallery() -> None:
    """Write the page."""
    PAGE.write_text(gallery(), encoding="utf-8")


if __name__ == "__main__":
    write_gallery()
