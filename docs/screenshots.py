"""Screenshots of the README, the home page and a report, made in headless Chromium.

    make docs demo
    python docs/screenshots.py build/screenshots --report out/demo/report.html

Writes light, dark and narrow (500 px) versions of each page that is there.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
# Chromium's numbers for prefers-color-scheme.
VIEWS = {"light": (1200, 1), "dark": (1200, 0), "narrow": (500, 1)}
STYLE = """
:root { color-scheme: light dark; background: Canvas; color: CanvasText; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; }
pre { background: #8881; padding: 1rem; overflow-x: auto; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border: 1px solid #8886; padding: .3rem .8rem; }
img { max-width: 100%; }
"""


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise SystemExit("no Chromium: apt-get install chromium")


def markdown_page(source: Path, folder: Path) -> Path:
    """README.md as HTML, approximately as a repository shows it."""
    body = MarkdownIt("commonmark").enable("table").render(source.read_text())
    body = body.replace("<pre>", '<pre tabindex="0">').replace("<table>", '<table tabindex="0">')
    page = folder / f"{source.stem.lower()}.html"
    page.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{source.name}</title>'
        f'<base href="{source.resolve().parent.as_uri()}/"><style>{STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>"
    )
    return page


def photograph(page: Path, target: Path, width: int, scheme: int) -> None:
    command = [
        browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--window-size={width},1600",
        f"--screenshot={target}",
        page.as_uri(),
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    print(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--site", type=Path, default=ROOT / "build/docs")
    parser.add_argument("--report", type=Path, default=ROOT / "out/demo/report.html")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pages = {
            "readme": markdown_page(ROOT / "README.md", Path(folder)),
            "home": options.site.resolve() / "index.html",
            "report": options.report.resolve(),
        }
        for name, page in pages.items():
            if not page.exists():
                print(f"{name}: no {page}")
                continue
            for view, (width, scheme) in VIEWS.items():
                target = options.folder.resolve() / f"{name}-{view}.png"
                photograph(page, target, width, scheme)


if __name__ == "__main__":
    main()
