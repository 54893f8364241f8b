"""Write the tables of README.md and docs/ that list classes, from their docstrings: `python scripts/make_tables.py`.

A table is between two comments, `<!-- methods -->` and `<!-- /methods -->`, and replaces what is there. Its
cells are the section `At a glance:` of each docstring, or the first sentence. `docs/conf.py` has the pages made here.
`docs/gallery.md` is written as well, by `make_gallery.py`.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import lightning_meta as lm
from lightning_meta.data.source import Source, TaskGenerator, TaskSource
from lightning_meta.import_paths import public_path
from lightning_meta.integrations import learn2learn

ROOT = Path(__file__).parents[1]
TABLES = {
    "README.md": ("multi-task methods", "meta-learning methods"),
    "docs/data.md": ("few-shot sources", "multi-task sources"),
    "docs/methods.md": ("new multi-task tasks", "new meta-learning tasks"),
    "docs/multi_task.md": ("weightings",),
}
"""The names of the tables of each page."""


def public(base: type | tuple[type, ...], module: ModuleType = lm) -> list[type]:
    """The public subclasses of a base in a module."""
    values = (getattr(module, name) for name in dir(module))
    return [value for value in values if inspect.isclass(value) and issubclass(value, base)]


def shipped(base: type | tuple[type, ...], module: ModuleType = lm) -> list[type]:
    """The public methods in a module, without base classes."""
    return [cls for cls in public(base, module) if ABC not in cls.__bases__ and not inspect.isabstract(cls)]


META = [*shipped(lm.MetaModule), *shipped(lm.MetaModule, learn2learn)]
MULTI_TASK = shipped(lm.MultiTaskModule)
WEIGHTINGS = shipped(lm.weightings.Weighting, lm.weightings)
SOURCES = shipped((Source, TaskSource, TaskGenerator), lm.sources)


def at_a_glance(cls: type) -> dict[str, str]:
    """The entries of a section of a docstring by label."""
    section = re.search(r"^At a glance:\n((?:[ ]+.*\n)+)", f"{inspect.cleandoc(cls.__doc__ or '')}\n", re.MULTILINE)
    text = re.sub(r"\n(?![ ]+- )[ ]+", " ", section[1] if section else "")  # joins wrapped lines
    return dict(re.findall(r"^[ ]*- ([^:]+): (.+?)\.?$", text, re.MULTILINE))


def first_sentence(cls: type) -> str:
    """The first paragraph of a docstring, which is one sentence."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def table(first: str, columns: Mapping[str, str], classes: list[type]) -> str:
    """A Markdown table with a row for each class.

    Args:
        first: Heading of the column of names.
        columns: Labels in the section `At a glance` by heading.
        classes: The classes; those without the first label are left out.
    """
    rows = [[first, *columns], ["---"] * (1 + len(columns))]
    for cls in classes:
        cells = at_a_glance(cls)
        if next(iter(columns.values())) in cells:
            rows.append([link(cls), *(cells.get(label, "").replace("|", r"\|") for label in columns.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


FAMILIES = (
    "an embedding, trained on tasks",
    "an initialisation, adapted by gradient steps",
    "features of a classifier of all training classes",
    "features or an embedding; the query set is predicted as a whole (transductive)",
    "a network that takes the support set as input (black box)",
)


def family(cls: type[lm.MetaModule]) -> str:
    """The part that a meta-learner shares, for the map, and how it predicts if that is unusual."""
    if cls.uses_query_set:
        return FAMILIES[3]
    if issubclass(cls, lm.CNP | lm.InContextTransformer):
        return FAMILIES[4]
    if issubclass(cls, lm.GradientBasedLearner):
        return FAMILIES[1]
    if issubclass(cls, lm.MetricLearner):
        return FAMILIES[0]
    return FAMILIES[2]


def families() -> str:
    """The meta-learners by what they share, as a table."""
    found: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for cls in META:
        found[family(cls)].append(link(cls))
    rows = [f"| {name} | {', '.join(methods)} |" for name, methods in found.items()]
    return "\n".join(["| shared | methods |", "| --- | --- |", *rows])


def tables() -> dict[str, str]:
    """All tables by the name in their comments, with links relative to the top folder."""
    shares = {"shared": "Shared", "the task's own": "Own"}
    of_new = {**shares, "how a new task is learned": "New task"}
    few_shot = {"classes (train / val / test)": "Classes", "examples a class": "Examples", "comes from": "From"}
    several = {"tasks": "Tasks", "held out for validation and test": "Held out", "comes from": "From"}
    sentences = [f"- {link(cls)}: {first_sentence(cls)}" for cls in WEIGHTINGS]
    return {
        "multi-task methods": table("method", shares, MULTI_TASK),
        "meta-learning methods": families(),
        "new multi-task tasks": table("method", of_new, MULTI_TASK),
        "new meta-learning tasks": table("method", of_new, META),
        "few-shot sources": table("source", few_shot, SOURCES),
        "multi-task sources": table("source", several, SOURCES),
        "weightings": "\n".join(sentences),
    }


def with_tables(page: str) -> str:
    """The text of a page with its tables updated.

    Args:
        page: A key of `TABLES`.
    """
    text, made_of = (ROOT / page).read_text(), tables()
    up = "../" * page.count("/")
    for name in TABLES[page]:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{page}: expected one {begin} and one {end}")
        made = made_of[name].replace("](lightning_meta/", f"]({up}lightning_meta/")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{made}\n\n{end}{rest.partition(end)[2]}"
    return text


def with_classes(page: str) -> str:
    """A page of `docs/` in which directives for the classes of a group replace `<!-- all: <group> -->`."""
    return re.sub(r"<!-- all: (.+) -->", lambda found: _groups(page)[found[1]], page)


def _groups(page: str) -> dict[str, str]:
    methods = (lm.MetaModule, lm.MultiTaskModule)
    others = [name for name in dir(lm) if not inspect.ismodule(getattr(lm, name)) and f":: {name}\n" not in page]
    others = [name for name in others if getattr(lm, name) not in public(methods)]
    return {
        "meta-learning bases": _directives(set(public(lm.MetaModule)) - set(META)),
        "meta-learning methods": "\n\n".join(f"### {cls.__name__}\n\n{_directives({cls})}" for cls in META),
        "multi-task bases": _directives(set(public(lm.MultiTaskModule)) - set(MULTI_TASK)),
        "multi-task methods": "\n\n".join(f"### {cls.__name__}\n\n{_directives({cls})}" for cls in MULTI_TASK),
        "weightings": _directives(set(public(lm.weightings.Weighting, lm.weightings))),
        "others": f"```{{eval-rst}}\n.. automodule:: lightning_meta\n   :members: {', '.join(others)}\n```",
    }


def _directives(classes: set[type]) -> str:
    # Base classes come before their subclasses.
    ordered = sorted(classes, key=lambda cls: (ABC not in cls.__bases__, len(cls.__mro__), cls.__name__))
    return "```{eval-rst}\n" + "\n\n".join(f".. autoclass:: {public_path(cls)}" for cls in ordered) + "\n```"


def link(cls: type, up: str = "") -> str:
    """A link to the file of a class.

    Args:
        cls: The class.
        up: Relative path from the page to the top folder.
    """
    return f"[`{cls.__name__}`]({up}{cls.__module__.replace('.', '/')}.py)"


if __name__ == "__main__":
    from make_gallery import write_gallery  # imported here, as it imports this module

    write_gallery()
    for shown in TABLES:
        (ROOT / shown).write_text(with_tables(shown))
