"""How Sphinx makes the pages: README.md first, then the pages of this folder and the docstrings."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from make_tables import with_classes

project = "lightning_meta"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to headings, as on GitHub
html_theme = "furo"
html_title = "lightning_meta"
html_show_copyright = False
html_math_renderer = "mathml"  # browsers show it by themselves, without a script from another server

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 100  # a longer one has a line for each argument
napoleon_custom_sections = ["At a glance", "Run it", "Logged", "Deviations"]
napoleon_use_ivar = True
napoleon_use_rtype = False

# Pages link to files of the repository. A class has its own place on the built pages, and so has a page of this folder.
_TO_CLASS = re.compile(r"\[`(\w+)`([^\]]*)\]\((?:\.\./)?lightning_meta/((?:\w+/)+)\w+\.py\)")
_TO_PAGE = re.compile(r"(?<!!)\[([^\]]+)\]\(docs/(\w+\.md)\)")
_TO_FILE = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|docs/\w+\.md\))[^)]+\)")

# Docstrings are written as Markdown, which people read in the code. What Sphinx reads is reStructuredText.
_MARKUP = re.compile(
    r"(?<!`)`(?P<code>[^`]+)`(?!`)"
    r"|^(?P<indent>[ ]*)\$\$(?P<equation>.+?)\$\$"
    r"|\$(?P<math>[^$]+)\$"
    r"|(?P<literal>\||(?<=\w)_(?!\w)|(?<=: )\w(?=\.$))",
    re.DOTALL | re.MULTILINE,
)


def as_restructured_text(docstring: str) -> str:
    """Code spans, formulae and characters with a meaning, paragraph by paragraph; doctests stay as they are."""
    return "\n\n".join(
        block if block.lstrip().startswith(">>>") else _MARKUP.sub(_marked_up, block)
        for block in docstring.split("\n\n")
    )


def _marked_up(found: re.Match[str]) -> str:
    if code := found["code"]:
        if re.fullmatch(r"[A-Z]\w+(\.\w+)*", code):
            return f":py:obj:`.{code}`"  # a class, whatever module it is in
        return f":py:obj:`{code}`" if re.fullmatch(r"[a-z_][\w.]*", code) else f"``{code}``"
    if equation := found["equation"]:
        lines = "".join(f"{found['indent']}   {line.strip()}\n" for line in equation.splitlines())
        return f"{found['indent']}.. math::\n\n{lines}"
    if math := found["math"]:
        return f":math:`{math}`"
    return "\\" + found["literal"]


def _docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    for i, line in enumerate(lines[1:], 1):
        if lines[i - 1].strip() == "Returns:":  # what stands before a colon is no type
            lines[i] = re.sub(r"^ *", r"\g<0>: ", line)
    lines[:] = as_restructured_text("\n".join(lines)).split("\n")


def _skip(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of a NamedTuple, which its Attributes describe."""
    return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field number") else None


def _signature(app: Sphinx, what: str, name: str, thing: Any, *others: Any) -> tuple[str, str] | None:
    """That of the constructor; `Described` takes any arguments in order to remember them."""
    if what != "class" or not inspect.isfunction(thing.__init__):
        return None
    signature = inspect.signature(thing.__init__)
    arguments = list(signature.parameters.values())[1:]
    text = stringify_signature(
        signature.replace(parameters=arguments, return_annotation=signature.empty), unqualified_typehints=True
    )
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text), ""


def _readme(app: Sphinx, path: Any, parent: str, content: list[str]) -> None:
    text = _TO_FILE.sub(r"\1", _TO_CLASS.sub(_place_of_class, content[0]))
    content[0] = _TO_PAGE.sub(r"[\1](\2)", text)


def _classes(app: Sphinx, page: str, content: list[str]) -> None:
    content[0] = _TO_CLASS.sub(_place_of_class, with_classes(content[0]))


def _place_of_class(found: re.Match[str]) -> str:
    folder = "" if found[3] in ("meta/", "multitask/", "data/") else found[3].replace("/", ".")
    return f"[`{found[1]}`{found[2]}](#lightning_meta.{folder}{found[1]})"


def _one_entry_a_method(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    if app.env.docname == "methods" and isinstance(content.parent, nodes.Element):  # its sections are enough
        content.parent["no-contents-entry"] = True


def _formula(translator: Any, node: nodes.Element) -> None:
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Have docstrings turned before napoleon takes their sections apart, and README's links as it is included.

    Pages name groups of classes, which are filled in as the pages are read.
    """
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    app.connect("include-read", _readme)
    app.connect("source-read", _classes)
    app.connect("object-description-transform", _one_entry_a_method)
