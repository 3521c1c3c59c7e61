"""Charts of a recording as inline SVG, drawn here so that the page needs no script."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import ceil, floor, log10

from .hooks import CATEGORIES
from .recording import Recording
from .summary import gib, seconds
from .verdict import BOUNDS, Verdict

__all__ = ["COLORS", "bounds", "legend", "memory", "roofline", "utilization"]

# One colour for each thing that is named in several charts; the page has them as CSS classes.
COLORS = {
    "tensor": "#4269d0",
    "vector": "#efb118",
    "scalar": "#ff725c",
    "gpsimd": "#6cc5b0",
    "sync": "#9c6b4e",
    "dma": "#3ca951",
    "host": "#ff8ab7",
    "dispatch": "#9498a0",
    "collectives": "#a463f2",
    "parameters": "#4269d0",
    "gradients": "#ff725c",
    "optimizer state": "#efb118",
    "activations": "#3ca951",
    "other": "#9498a0",
}
_WIDTH, _LEFT, _BINS = 900, 110, 150


def _svg(height: float, parts: Iterable[str], label: str) -> str:
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{body}</svg>"
    )


def _rect(
    x: float, y: float, width: float, height: float, color: str, title: str, opacity: float = 1.0
) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{max(height, 0):.2f}" '
        f'fill="{color}" fill-opacity="{opacity:.3f}"><title>{escape(title)}</title></rect>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "axis") -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def bounds(verdict: Verdict) -> str:
    """One bar: what the elapsed time was bound by."""
    x, parts = 0.0, []
    for name, share in verdict.bounds.items():
        width = share * _WIDTH
        parts.append(_rect(x, 0, width, 28, COLORS[name], f"{BOUNDS[name]}: {share:.1%}"))
        if width > 70:
            parts.append(_text(x + 6, 19, f"{name} {share:.0%}"))
        x += width
    return _svg(30, parts, "time by limiting resource")


# --- roofline ------------------------------------------------------------------------------------


def roofline(recording: Recording) -> str:
    """Achieved flops/s over flops/byte of each operator that multiplies, under the chip's roofs."""
    points = _points(recording)
    chip, cores = recording.chip, recording.lnc
    rates = chip.tensor_engine.macs_per_pe_cycle
    formats = [name for name in ("float32", "bfloat16", "mxfp8") if name in rates]
    peaks = {name: cores * chip.peak_flops(name) for name in formats}
    bandwidth = peaks["bfloat16"] / recording.counters["peak_flops_bandwidth_ratio"]
    xs = [p[0] for p in points] + [peaks["bfloat16"] / bandwidth]
    ys = [p[1] for p in points] + list(peaks.values())
    plot = _LogPlot(xs, ys)
    parts = plot.axes("flop / byte of HBM", "flop/s")
    for name, peak in peaks.items():
        ridge = peak / bandwidth
        parts.append(plot.line(plot.x_low, plot.x_low * bandwidth, ridge, peak))
        parts.append(plot.line(ridge, peak, plot.x_high, peak))
        parts.append(
            _text(_WIDTH - 4, plot.y(peak) - 4, f"{name} {peak / 1e12:.0f} Tflop/s", "end")
        )
    longest = max((p[2] for p in points), default=1.0)
    for intensity, rate, time_s, op, engine in points:
        radius = 3 + 12 * (time_s / longest) ** 0.5
        title = f"{op}: {rate / 1e12:.3f} Tflop/s, {intensity:.1f} flop/byte, {seconds(time_s)}"
        parts.append(
            f'<circle cx="{plot.x(intensity):.1f}" cy="{plot.y(rate):.1f}" r="{radius:.1f}" '
            f'fill="{COLORS.get(engine, COLORS["other"])}" fill-opacity="0.6">'
            f"<title>{escape(title)}</title></circle>"
        )
    return _svg(plot.height, parts, "roofline")


def _points(recording: Recording) -> list[tuple[float, float, float, str, str]]:
    """(flops per byte, flops per second, seconds of all launches, operator, engine)."""
    out = []
    for op, calls, price in recording.groups:
        flops = price.totals["model_flops"]
        nbytes = price.totals["hbm_read_bytes"] + price.totals["hbm_write_bytes"]
        if flops and nbytes and price.seconds:
            out.append((flops / nbytes, flops / price.seconds, calls * price.seconds, op,
                        price.engine))  # fmt: skip
    return out


class _LogPlot:
    height = 320

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.x_low, self.x_high = 10 ** floor(log10(min(xs))), 10.0 ** (ceil(log10(max(xs))) + 1)
        self.y_low, self.y_high = 10 ** floor(log10(min(ys))), 10.0 ** ceil(log10(max(ys)))

    def x(self, value: float) -> float:
        share = log10(value / self.x_low) / log10(self.x_high / self.x_low)
        return _LEFT + share * (_WIDTH - _LEFT - 25)

    def y(self, value: float) -> float:
        share = log10(value / self.y_low) / log10(self.y_high / self.y_low)
        return 280 - share * 265

    def line(self, x1: float, y1: float, x2: float, y2: float) -> str:
        if y1 < self.y_low:  # where the slope enters the plot
            x1, y1 = x1 * self.y_low / y1, self.y_low
        return _line(self.x(x1), self.y(y1), self.x(x2), self.y(y2), "roof")

    def axes(self, x_name: str, y_name: str) -> list[str]:
        parts = []
        for power in range(round(log10(self.x_low)), round(log10(self.x_high)) + 1):
            at = self.x(10.0**power)
            parts += [_line(at, 15, at, 280), _text(at, 296, f"{10.0**power:g}", "middle")]
        for power in range(round(log10(self.y_low)), round(log10(self.y_high)) + 1):
            at = self.y(10.0**power)
            parts += [_line(_LEFT, at, _WIDTH, at), _text(_LEFT - 6, at + 4, f"1e{power}", "end")]
        parts += [_text(_WIDTH, 314, x_name, "end"), _text(0, 12, y_name)]
        return parts


# --- over time -----------------------------------------------------------------------------------


class _Time:
    """The regions of one device behind each other, cut into bins of equal length."""

    def __init__(self, recording: Recording, device: int) -> None:
        self.regions = [r[1:] for r in recording.regions if r[0] == device]
        self.total_ns = max(1, sum(end - begin for begin, end in self.regions))
        self.bin_ns = self.total_ns / _BINS

    def at(self, ns: int) -> float:
        """Nanoseconds of recorded time before `ns` on the core's clock."""
        return float(sum(min(max(ns - begin, 0), end - begin) for begin, end in self.regions))

    def spread(self, start: float, end: float) -> Iterable[tuple[int, float]]:
        """The bins that an interval touches, and its nanoseconds in each."""
        for k in range(int(start / self.bin_ns), min(_BINS, int(end / self.bin_ns) + 1)):
            inside = min(end, (k + 1) * self.bin_ns) - max(start, k * self.bin_ns)
            if inside > 0:
                yield k, inside


def utilization(recording: Recording, device: int) -> str:
    """Share of each bin of time that each engine was active, a row for each engine.

    The active time of an engine in a launch is spread evenly over the launch.
    """
    time = _Time(recording, device)
    busy: dict[str, list[float]] = {
        name: [0.0] * _BINS for name in BOUNDS if name not in ("host", "dispatch", "collectives")
    }
    for launch in recording.launches:
        if launch.device != device or not launch.duration_ns:
            continue
        totals = launch.price.totals
        start = time.at(launch.start_ns)
        for name, bins in busy.items():
            key = "dma_active_time" if name == "dma" else f"{name}_engine_active_time"
            share = totals[key] * 1e9 / launch.duration_ns
            if share:
                for k, inside in time.spread(start, start + launch.duration_ns):
                    bins[k] += share * inside / time.bin_ns
    parts, y = [], 0.0
    width = (_WIDTH - _LEFT) / _BINS
    for name, bins in busy.items():
        mean = sum(bins) / _BINS
        parts += [_text(0, y + 20, name), _text(_LEFT - 8, y + 20, f"{mean:.1%}", "end")]
        for k, share in enumerate(bins):
            if share > 0:
                height, title = 28 * min(1.0, share), f"{name}: {share:.1%}"
                x = _LEFT + k * width
                parts.append(_rect(x, y + 28 - height, width, height, COLORS[name], title))
        parts.append(_line(_LEFT, y + 28, _WIDTH, y + 28))
        y += 36
    parts += _time_axis(time, y)
    return _svg(y + 18, parts, f"engine utilization over time of trn:{device}")


def _time_axis(time: _Time, y: float) -> list[str]:
    return [
        _text(_LEFT, y + 12, "0"),
        _text(_WIDTH, y + 12, f"{seconds(time.total_ns * 1e-9)} simulated", "end"),
    ]


def memory(recording: Recording, device: int) -> str:
    """HBM over time by category, stacked; the highest use in each bin of time."""
    time, use = _Time(recording, device), recording.memory[device]
    launches = recording.launches
    bins: list[tuple[int, ...] | None] = [None] * _BINS
    for before, nbytes in use.samples:
        if launches:
            at = time.at(launches[min(before, len(launches) - 1)].host_ns)
            k = min(_BINS - 1, int(at / time.bin_ns))
            held = bins[k]
            bins[k] = nbytes if held is None or sum(nbytes) > sum(held) else held
    top = max(1, use.peak_bytes)
    parts, width = [], (_WIDTH - _LEFT) / _BINS
    last: tuple[int, ...] = use.samples[0][1] if use.samples else (0,) * len(CATEGORIES)
    for k, found in enumerate(bins):
        last = found or last
        y = 180.0
        for name, size in zip(CATEGORIES, last, strict=True):
            height = 170 * size / top
            if height > 0.05:
                y -= height
                title = f"{name}: {gib(size)}"
                parts.append(_rect(_LEFT + k * width, y, width + 0.2, height, COLORS[name], title))
    parts += [_line(_LEFT, 180, _WIDTH, 180), _line(_LEFT, 10, _WIDTH, 10)]
    parts += [_text(_LEFT - 8, 16, gib(top), "end"), _text(_LEFT - 8, 184, "0", "end")]
    parts += _time_axis(time, 184)
    return _svg(202, parts, f"HBM by category of trn:{device}")


def legend(names: Mapping[str, str]) -> str:
    """Colours and what they stand for."""
    return "".join(
        f'<span class="key"><i style="background:{color}"></i>{escape(name)}</span>'
        for name, color in names.items()
    )
