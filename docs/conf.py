"""Sphinx: `make docs` builds the site into build/docs and treats warnings as errors.

Sphinx, because its generator and its themes are well kept; pages are Markdown (myst-parser), and
the API reference is read from the docstrings.
"""

import re
from pathlib import Path
from typing import Any

project = "torch_trn_emu"
author = "the torch_trn_emu authors"
copyright = "the torch_trn_emu authors, Apache License 2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["*.py"]
html_theme = "furo"
html_title = "torch_trn_emu"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"top_of_page_buttons": []}  # furo's link to the source lies outside landmarks
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
default_role = "code"  # one backtick, as in Markdown
toc_object_entries = False


def as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: aligned columns and examples stay as they are written."""
    text = re.sub(r":\w+:`([^`<]+?)\s*(<[^`]*>)?`", r"`\1`", "\n".join(lines)).strip()
    paragraphs = re.split(r"\n\s*\n", text)
    lines[:] = "\n\n".join(map(_paragraph, paragraphs)).split("\n")


def _paragraph(text: str) -> str:
    aligned = re.search(r"^(\S.*\S|\S)\s{2,}\S", text, re.MULTILINE) or text.startswith("    ")
    if not aligned:
        return re.sub(r"([*_|\\])", r"\\\1", text)
    return "::\n\n" + "\n".join(f"    {line}" for line in text.split("\n"))


# What furo 2025.12.19 leaves out of its pages; docs/accessibility.py finds nothing else.
LABELS = {
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    'class="caption" role="heading">': 'class="caption" role="heading" aria-level="2">',
    "<pre>": '<pre tabindex="0">',  # what scrolls in a narrow window is reached by keys
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
}


def label_landmarks(app: Any, error: Exception | None) -> None:
    for page in [] if error or app.builder.format != "html" else Path(app.outdir).rglob("*.html"):
        text = page.read_text()
        for found, labelled in LABELS.items():
            text = text.replace(found, labelled)
        page.write_text(text)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", as_written)
    app.connect("build-finished", label_landmarks)
