"""The picture of the README and the home page: the timeline of a compiled training step.

python docs/timeline.py docs/images/step.svg

Every rectangle comes from the trace of a profile. Text and colours are legible on white and on
black; the background is transparent.
"""

import argparse
import gzip
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTH, LEFT, LANE, TOP = 900, 118, 26, 34
INK = "#768390"
# Lane, how the trace names its threads, colour, and whether its spans carry their name.
LANES = (
    ("Host", "host dispatch", "#8250df", False),
    ("Launches", "launches", "#57606a", True),
    ("Tensor engine", "tensor", "#1f883d", False),
    ("Vector engine", "vector", "#0969da", False),
    ("Scalar engine", "scalar", "#bf8700", False),
    ("GpSimd engine", "gpsimd", "#cf222e", False),
    ("DMA queues", "dma", "#6e7781", False),
)


@dataclass
class Lane:
    """Spans in microseconds, each with its name."""

    spans: list[tuple[float, float, str]] = field(default_factory=list)


def profiled_step(trace: Path) -> str:
    """Write the trace of one step of two transformer MLP blocks; returns what was run."""
    import torch
    from torch import nn

    import torch_trn_emu

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

    torch.manual_seed(0)
    rows, width = 2048, 1024
    model = nn.Sequential(Block(width), Block(width)).to("trn")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    x = torch.randn(rows, width, device="trn")
    compiled = torch.compile(model, backend="trn")

    def step() -> None:
        loss = compiled(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()  # compiles, and makes the optimizer's state
    with torch_trn_emu.profile() as found:
        step()
    found.export_chrome_trace(str(trace))
    return f"two MLP blocks of width {width}, {rows:,} rows, AdamW, compiled, MXFP8"


def read(trace: Path) -> list[Lane]:
    """The lanes of LANES, from a trace for Perfetto."""
    with gzip.open(trace, "rt") as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    names = {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    lanes = [Lane() for _ in LANES]
    for event in events:
        if event["ph"] != "X":
            continue
        thread = names.get(event["tid"], "")
        for lane, (_, known, _, _) in zip(lanes, LANES, strict=True):
            if thread == known or (known == "dma" and thread.startswith("dma")):
                lane.spans.append((event["ts"], event["ts"] + event["dur"], event["name"]))
    return lanes


def busy(lane: Lane, begin: float, end: float, bins: int) -> list[float]:
    """How much of each bin the lane is busy, 0 to 1; queues of a lane that overlap count once."""
    size = (end - begin) / bins
    shares = [0.0] * bins
    for start, stop, _ in lane.spans:
        first = max(0, int((start - begin) / size))
        for index in range(first, min(bins, int((stop - begin) / size) + 1)):
            low = begin + index * size
            shares[index] += max(0.0, min(stop, low + size) - max(start, low)) / size
    return [min(1.0, share) for share in shares]


def label(name: str) -> str:
    """trn::graph_0_forward -> forward; aten::_fused_adamw_ -> AdamW."""
    short = name.partition("::")[2] or name
    return {"graph_0_forward": "forward", "graph_0_backward": "backward"}.get(
        short, "AdamW" if "adamw" in short else ""
    )


def drawn(lanes: list[Lane], caption: str) -> str:
    spans = [span for lane in lanes[1:] for span in lane.spans]
    begin, end = min(s[0] for s in spans), max(s[1] for s in spans)
    scale = (WIDTH - LEFT) / (end - begin)
    shown = [pair for pair in zip(lanes, LANES, strict=True) if pair[0].spans]
    height = TOP + LANE * len(shown) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f"<title>Timeline of a training step: {caption}</title>",
        f'<text x="0" y="14">One training step on trn3, simulated: {caption}</text>',
    ]
    for row, (lane, (title, _, colour, named)) in enumerate(shown):
        y = TOP + row * LANE
        parts.append(f'<text x="0" y="{y + 14}">{title}</text>')
        if named:
            for start, stop, name in lane.spans:
                x, width = LEFT + (start - begin) * scale, max(0.5, (stop - start) * scale - 0.5)
                parts.append(rectangle(x, y, width, colour, 0.9))
                if width > 50 and label(name):
                    middle = x + width / 2
                    parts.append(
                        f'<text x="{middle:.1f}" y="{y + 14}" fill="#fff" '
                        f'text-anchor="middle">{label(name)}</text>'
                    )
            continue
        bins = (WIDTH - LEFT) // 2
        for index, share in enumerate(busy(lane, begin, end, bins)):
            if share > 0.02:
                parts.append(rectangle(LEFT + 2 * index, y, 2, colour, 0.15 + 0.85 * share))
    ticks = int((end - begin) // 500)
    for tick in range(ticks + 1):
        x = LEFT + 500 * tick * scale
        parts.append(f'<path d="M{x:.1f} {TOP - 4}V{height - 32}" stroke="{INK}" opacity=".25"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 14}">{tick / 2:g} ms</text>')
    return "\n".join([*parts, "</svg>", ""])


def rectangle(x: float, y: float, width: float, colour: str, opacity: float) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{LANE - 6}" fill="{colour}" '
        f'opacity="{opacity:.2f}"/>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json.gz"
        caption = profiled_step(trace)
        lanes = read(trace)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(drawn(lanes, caption))


if __name__ == "__main__":
    main()
