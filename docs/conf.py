"""Sphinx settings. Build with `sphinx-build -W docs docs/_build`."""

from __future__ import annotations

import importlib.metadata
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "chanstream"
author = "chanstream contributors"
copyright = f"2026, {author}"
release = version = importlib.metadata.version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
# A field called `object`, which is the wire's word, is not what an annotation means by it.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # pages link to each other's headings

default_role = "py:obj"  # `Name` in a docstring is a link where it is one of ours, and code where not
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an "Attributes:" list does not clash with the attributes that autodoc finds

html_theme = "furo"
html_title = f"chanstream {release}"


def fences_to_code_blocks(*event: Any) -> None:
    """Turns the Markdown fences of a docstring into the directives that autodoc expects, in place."""
    lines: list[str] = event[-1]
    inside = False
    for number, line in enumerate(lines):
        if fence := re.fullmatch(r"(\s*)```(\w*)", line):
            inside = not inside
            lines[number] = f"{fence[1]}.. code-block:: {fence[2]}\n" if inside else ""
        elif inside:
            lines[number] = f"    {line}"
    lines[:] = "\n".join(lines).split("\n")


def keep_colons(*event: Any) -> None:
    """Keeps napoleon from taking what stands before a colon in a property's first line for its type, in place."""
    _, what, *_, lines = event
    if what == "property":
        lines[:0] = ["..", ""]  # an empty comment is the first line now


def setup(app: Sphinx) -> None:
    """Registers the conversions, ahead of napoleon's."""
    app.connect("autodoc-process-docstring", fences_to_code_blocks, priority=400)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
