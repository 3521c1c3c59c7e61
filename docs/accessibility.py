"""Checks pages with axe-core, light, dark and narrow: labels, contrast, names, headings.

    npm pack axe-core@4.14.1 && tar xzf axe-core-4.14.1.tgz package/axe.min.js
    python docs/accessibility.py package/axe.min.js README.md out/demo/report.html build/docs

Of a directory, all pages are checked; Markdown as a repository shows it, approximately. Prints
each violation with the elements concerned, and pages that are wider than a window of 500 px; the
exit status is 1 if there are any.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path
from typing import Any

from screenshots import VIEWS, browser, markdown_page

RUN = """
<script>
addEventListener("load", () => setTimeout(async () => {
  const found = await axe.run(document, {resultTypes: ["violations"]});
  const out = document.createElement("script");
  out.type = "application/json"; out.id = "axe-found";
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) found.violations.push({impact: "serious", id: "reflow", nodes: [],
    help: `the page is ${wide} px wider than the window`});
  out.textContent = JSON.stringify(found.violations).replaceAll("<", "\\\\u003c");
  document.body.append(out);
}, 500));
</script>
"""


def violations(page: Path, axe: Path, width: int, scheme: int) -> list[dict[str, Any]]:
    """What axe-core finds on the page, which is copied beside the original with axe-core in it."""
    html = page.read_text()
    checked = f"{html}<script>{axe.read_text()}</script>{RUN}"
    with tempfile.NamedTemporaryFile("w", dir=page.parent, suffix=".html") as copy:
        copy.write(checked)
        copy.flush()
        command = [
            browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--virtual-time-budget=20000",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={width},1600",
            "--dump-dom",
            Path(copy.name).as_uri(),
        ]
        dom = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r'<script type="application/json" id="axe-found">(.*?)</script>', dom, re.S)
    if found is None:
        raise SystemExit(f"{page}: axe-core did not finish")
    return json.loads(unescape(found[1]))


def every(folder: Path) -> list[Path]:
    """The pages of a site, without those that Sphinx makes for its search."""
    return [p for p in sorted(folder.rglob("*.html")) if p.stem not in ("genindex", "search")]


def report(page: Path, view: str, found: list[dict[str, Any]]) -> int:
    """Print the violations of a page; how many there are."""
    print(f"{page} ({view}): {len(found)} violations")
    for one in found:
        print(f"  {one['impact']}: {one['id']}: {one['help']} ({len(one['nodes'])})")
        for node in one["nodes"][:5]:
            print(f"    {' '.join(node['target'])}: {node['html'][:100]}")
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("axe", type=Path, help="axe.min.js of the npm package axe-core")
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS))
    options = parser.parse_args()
    named = [p for given in options.pages for p in (every(given) if given.is_dir() else [given])]
    with tempfile.TemporaryDirectory() as folder:
        pages = {p: markdown_page(p, Path(folder)) if p.suffix == ".md" else p for p in named}
        found = [
            report(name, view, violations(page.resolve(), options.axe, *VIEWS[view]))
            for name, page in pages.items()
            for view in options.views
        ]
    print(f"{sum(found)} violations in {len(pages)} pages")
    sys.exit(any(found))


if __name__ == "__main__":
    main()
