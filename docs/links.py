"""Checks that links lead somewhere: files and anchors of the site, and of Markdown at the root.

    make docs
    python docs/links.py build/docs

Addresses of other sites are not fetched. Prints each broken link; the exit status is 1 if there are
any.
"""

import argparse
import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            if (name == "id" or (tag == "a" and name == "name")) and value is not None:
                self.anchors.add(value)


@cache
def page(path: Path) -> Page:
    """A page of HTML, or of Markdown with the anchors that repositories give to headings."""
    text = path.read_text()
    if path.suffix != ".md":
        return Page(text)
    found = Page(MarkdownIt("commonmark").enable("table").render(text))
    for other in re.findall(r"^```\{include\} (\S+\.md)$", text, re.MULTILINE):
        text += (path.parent / other).read_text() if (path.parent / other).exists() else ""
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        found.anchors.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


def broken(path: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for link in page(path).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.exists():
            wrong.append(link)
        elif target.suffix in (".html", ".md") and parts.fragment:
            missing = unquote(parts.fragment) not in page(target).anchors
            wrong += [link] * missing
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, nargs="?", help="the site that `make docs` built")
    options = parser.parse_args()
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
    ]
    if options.site:
        pages += options.site.rglob("*.html")
    count = 0
    for path in sorted(pages):
        for link in broken(path.resolve()):
            print(f"{path}: {link}")
            count += 1
    print(f"{len(pages)} pages, {count} broken links")
    sys.exit(count > 0)


if __name__ == "__main__":
    main()
