"""What a package index shows: addresses, and the README with links that work outside of the tree.

The repository's address is REPOSITORY_URL, or what a GitHub workflow says of itself. Without one,
links into the tree become plain text.
"""

import os
import re
from pathlib import Path

BACKGROUND = {
    "Neuron documentation": "https://awsdocs-neuron.readthedocs-hosted.com/",
    "PyTorch documentation": "https://docs.pytorch.org/",
}


def repository() -> str | None:
    given = os.environ.get("REPOSITORY_URL")
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    return given or (f"{server}/{name}" if server and name else None)


def project_urls() -> dict[str, str]:
    base = repository()
    if base is None:
        return BACKGROUND
    own = {
        "Source": base,
        "Documentation": f"{base}/tree/main/docs",
        "Changelog": f"{base}/blob/main/CHANGELOG.md",
        "Issues": f"{base}/issues",
    }
    return own | BACKGROUND


def long_description(readme: Path) -> str:
    """The README with absolute links, or without those that lead into the tree."""
    base = repository()

    def link(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        if re.match(r"https?:|#", target):
            return found[0]
        if base is None:
            return "" if mark else text
        kind = "raw" if mark else "blob"
        return f"{mark}[{text}]({base}/{kind}/main/{target})"

    text = re.sub(r"<!-- [^>]*-->\n?", "", readme.read_text())
    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, text)
