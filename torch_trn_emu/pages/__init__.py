"""HTML: one set of templates, in which every value is escaped."""

from .page import HtmlTable, is_numeric, render

__all__ = ["HtmlTable", "is_numeric", "render"]
