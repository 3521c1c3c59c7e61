"""Summary, JSON, Parquet and HTML."""

import builtins
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from torch_trn_emu.profiler.export import TABLES


def test_summary_has_its_parts(prof) -> None:
    text = prof.summary()
    for part in ("Bound by", "tensor engine", "HBM at its peak", "aten::addmm", "Model.layers.0",
                 "AdamW step", "SBUF", "conftest.py:"):  # fmt: skip
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 100
    assert max(map(len, prof.summary(width=70).splitlines())) <= 70
    assert len(prof.summary(rows=2)) < len(text)


def test_json(prof, tmp_path) -> None:
    prof.export_json(tmp_path / "p.json")
    read = json.loads((tmp_path / "p.json").read_text())
    assert read["counters"] == prof.counters()
    assert read["launches"] == prof.counters()["launch_count"]
    assert [row["op"] for row in read["ops"]] == [row.op for row in prof.op_report()]
    assert [row["module"] for row in read["modules"]] == [r.module for r in prof.module_report()]
    assert read["verdict"]["bound"] == prof.verdict().bound
    assert read["memory_peak_bytes"]["0"] == prof.memory()[0]


def test_parquet(prof, tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    prof.export_parquet(tmp_path / "tables")
    read = {name: parquet.read_table(tmp_path / "tables" / f"{name}.parquet") for name in TABLES}
    launches = read["launches"].to_pylist()
    assert len(launches) == prof.counters()["launch_count"]
    assert sum(row["duration_ns"] for row in launches) * 1e-9 == pytest.approx(
        prof.counters()["core_busy_time"]
    )
    found = {row["name"]: row["value"] for row in read["counters"].to_pylist()}
    assert found == prof.counters()
    assert read["ops"].num_rows == len(prof.op_report())


def test_parquet_without_pyarrow_names_the_remedy(prof, tmp_path, monkeypatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest, **more):
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"torch_trn_emu\[parquet\]"):
        prof.export_parquet(tmp_path)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "line", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag in ("line", "rect", "circle"):
            return
        assert self.open.pop() == tag


SECTIONS = {
    "verdict",
    "engines",
    "roofline",
    "memory",
    "operators",
    "modules",
    "sources",
    "counters",
}


def test_html_is_self_contained(prof, tmp_path) -> None:
    prof.export_html(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    page = _Page()
    page.feed(text)
    assert not page.open
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe")]
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:,").startswith("data:")
    assert "http" not in text
    assert {a["id"] for tag, a in page.tags if tag == "section"} == SECTIONS


def test_html_of_nothing(tmp_path) -> None:
    import torch_trn_emu

    with torch_trn_emu.profile() as empty:
        pass
    empty.export_html(tmp_path / "r.html")
    assert "Nothing was launched" in (tmp_path / "r.html").read_text()


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no browser: install the Debian package chromium")


def test_the_page_in_a_browser(prof, tmp_path: Path) -> None:
    """Chromium renders it without a complaint, and every chart has something in it."""
    found = browser()
    prof.export_html(tmp_path / "r.html")
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
               "--virtual-time-budget=2000", "--dump-dom",
               (tmp_path / "r.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints
    page = _Page()
    page.feed(done.stdout)
    drawn = {"rect": 0, "circle": 0, "svg": 0}
    for tag, _ in page.tags:
        if tag in drawn:
            drawn[tag] += 1
    assert drawn["svg"] >= 4  # verdict, utilization, roofline, memory of each device in use
    assert drawn["circle"] >= 2
    assert drawn["rect"] > 50
    assert {a["id"] for tag, a in page.tags if tag == "section"} == SECTIONS
