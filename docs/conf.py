"""Sphinx: MyST pages, furo, and the docstrings of the public API; built with warnings as errors."""

import importlib.metadata

project = "leadprotect"
version = release = importlib.metadata.version("leadprotect")
copyright = "2026, leadprotect contributors"  # noqa: A001 - Sphinx calls it so

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = [".md"]
exclude_patterns = ["_build", "package.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# names that docstrings and annotations use, and that live in other projects
nitpicky = False

html_theme = "furo"
html_title = f"leadprotect {release}"
