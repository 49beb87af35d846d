"""Sphinx settings. Build with `sphinx-build -W docs docs/_build`."""

from __future__ import annotations

import importlib.metadata

project = "chanstream"
author = "chanstream contributors"
copyright = f"2026, {author}"
release = version = importlib.metadata.version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # pages link to each other's headings

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"chanstream {release}"
