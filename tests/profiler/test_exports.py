"""Summary, JSON, Parquet and HTML."""

import base64
import builtins
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from itertools import accumulate
from pathlib import Path

import pytest

from torch_trn_emu.profiler.export import TABLES
from torch_trn_emu.profiler.timeline import canonical


def test_summary_has_its_parts(prof) -> None:
    text = prof.summary()
    for part in ("-bound: for ", "tensor engine", "peak HBM", "aten::addmm",
                 "Model.layers.0", "AdamW step", "SBUF", "conftest.py:"):  # fmt: skip
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
    # Of a group, and of compiled graphs alone.
    filled = set(TABLES) - {"collectives", "collective_calls", "graph_regions"}
    read = {name: parquet.read_table(tmp_path / "tables" / f"{name}.parquet") for name in filled}
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


_VOID = ("line", "rect", "circle", "polyline", "input")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in (*_VOID, "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag in _VOID:
            return
        assert self.open.pop() == tag


SECTIONS = {
    "about",
    "verdict",
    "timeline",
    "steps",
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
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe")]
    assert not [a for tag, a in page.tags if tag == "script" and "src" in a]
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:,").startswith("data:")
    assert set(re.findall(r"https?://[^/\s\"'<]+", text)) == {"https://ui.perfetto.dev"}
    assert {a["id"] for tag, a in page.tags if tag == "section"} == SECTIONS


def timeline_of(text: str) -> dict:
    packed = re.search(r'id="timeline-data">([^<]*)<', text)
    assert packed is not None
    return json.loads(zlib.decompress(base64.b64decode(packed[1])))


def test_the_timeline_holds_every_launch(prof, tmp_path) -> None:
    prof.export_html(tmp_path / "r.html")
    data = timeline_of((tmp_path / "r.html").read_text())
    launches = prof.recording.launches
    device = data["devices"]["0"]
    assert len(device["kind"]) == len(launches)
    begin = min(min(x.host_ns, x.start_ns) for x in launches)
    starts = list(accumulate(device["start"]))
    assert starts == [x.start_ns - begin for x in launches]
    kinds = [data["kinds"][k] for k in device["kind"]]
    assert [k[1] for k in kinds] == [x.duration_ns for x in launches]
    assert [data["words"][k[3]] for k in kinds] == [canonical(x.op) for x in launches]
    assert [data["words"][k[5]] for k in kinds] == [x.module for x in launches]
    assert len(data["steps"]) == 3
    assert {"tensor", "vector"} <= set(data["lanes"])
    assert all(len(spans) % 6 == 0 for spans in data["prices"].values())


def test_the_page_says_of_the_run_and_escapes_it(prof, tmp_path) -> None:
    evil = "<script>alert(1)</script>"
    about = {
        "title": evil,
        "facts": {"script": evil},
        "values": [{"where": evil, "value": v} for v in (2.0, 1.0)],
    }
    prof.export_html(tmp_path / "r.html", about=about)
    text = (tmp_path / "r.html").read_text()
    assert evil not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert 'class="curve"' in text
    assert "four of five measurements lie within" in text


def test_operators_have_shapes_and_canonical_names(prof, tmp_path) -> None:
    assert canonical("aten::_flash_for_cpu_backward") == "aten::_flash_backward"
    prof.export_html(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "Float[64, 32]" in text
    assert "_for_cpu" not in text


def test_a_notebook_gets_tables(prof) -> None:
    text = prof._repr_html_()
    assert "aten::addmm" in text
    assert "<script" not in text


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


def browse(path: Path) -> subprocess.CompletedProcess[str]:
    """The page in headless Chromium: its document on stdout, its complaints on stderr."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               f"--user-data-dir={path.parent / 'profile'}", "--enable-logging=stderr", "--v=0",
               "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


# Stands for ui.perfetto.dev: answers the second PING, keeps what it is sent.
PERFETTO = """
<script>
addEventListener("load", () => {
  const frame = document.body.appendChild(document.createElement("iframe")).contentWindow;
  const asked = [];
  window.open = address => { asked.push(address); return frame; };
  frame.postMessage = (data, to) => {
    asked.push([typeof data === "string" ? data : Object.keys(data), to]);
    const answer = (origin, source) =>
      dispatchEvent(new MessageEvent("message", { data: "PONG", origin, source }));
    if (data === "PING") { answer("https://github.com", frame); answer(to, window); }
    if (data === "PING" && asked.length === 3) answer(to, frame);
    if (data.perfetto) document.body.dataset.perfetto = JSON.stringify(
      { asked, title: data.perfetto.title, trace: new TextDecoder().decode(data.perfetto.buffer) });
  };
  const ready = setInterval(() => {
    if (!document.body.dataset.timeline) return;
    clearInterval(ready);
    document.getElementById("perfetto").click();
  }, 20);
});
</script>
"""


def test_the_button_hands_the_trace_to_perfetto(prof, tmp_path: Path) -> None:
    """PING until PONG comes from Perfetto's window and origin; then the trace, to that origin."""
    path = tmp_path / "r.html"
    prof.export_html(path)
    path.write_text(path.read_text() + PERFETTO)
    page = _Page()
    page.feed(browse(path).stdout)
    body = next(attributes for tag, attributes in page.tags if tag == "body")
    found = json.loads(body["data-perfetto"])
    home = "https://ui.perfetto.dev"
    assert found["asked"] == [home, ["PING", home], ["PING", home], [["perfetto"], home]]
    assert found["title"]
    spans = [e for e in json.loads(found["trace"])["traceEvents"] if e["ph"] == "X"]
    assert len(spans) > len(prof.recording.launches)
    assert all(e["dur"] >= 0 for e in spans)


def test_the_page_in_a_browser(prof, tmp_path: Path) -> None:
    """Chromium renders it without a complaint, and every chart has something in it."""
    prof.export_html(tmp_path / "r.html")
    done = browse(tmp_path / "r.html")
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints
    page = _Page()
    page.feed(done.stdout)
    drawn = {"rect": 0, "circle": 0, "svg": 0}
    for tag, _ in page.tags:
        if tag in drawn:
            drawn[tag] += 1
    body = next(attributes for tag, attributes in page.tags if tag == "body")
    assert body["data-timeline"] == f"{len(prof.recording.launches)} launches"
    assert drawn["svg"] >= 4  # verdict, utilization, roofline, memory of each device in use
    assert drawn["circle"] >= 2
    assert drawn["rect"] > 50
    assert {a["id"] for tag, a in page.tags if tag == "section"} == SECTIONS


def test_tables_of_a_notebook_scroll_in_a_narrow_cell(prof, tmp_path: Path) -> None:
    path = tmp_path / "cell.html"
    path.write_text(
        f'<!doctype html><body><div id="cell" style="width: 400px">{prof._repr_html_()}</div>'
        "<script>const c = document.getElementById('cell');"
        "document.body.dataset.wide = c.scrollWidth - c.clientWidth</script></body>"
    )
    page = _Page()
    page.feed(browse(path).stdout)
    body = next(attributes for tag, attributes in page.tags if tag == "body")
    assert body["data-wide"] == "0"
