"""Where does my step time go? Profiles a step, changes one thing at a time, prices batches.

python docs/tutorials/step_time.py --figures docs/tutorials/figures

The page step_time.md shows this code and what it wrote.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import torch_trn_emu
from torch_trn_emu.estimation import Estimate

WIDTH = 512


def make_model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(4)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH))


def profiled(
    batch: int, *, fused: bool | None = None, compiled: bool = False
) -> torch_trn_emu.profile:
    """One step after a first one, which compiles and makes the optimizer's state."""
    model = make_model().to("trn")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    x = torch.randn(batch, WIDTH, device="trn")

    def step() -> None:
        loss = (run(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    run = torch.compile(model, backend="trn") if compiled else model
    step()
    with torch_trn_emu.profile() as found:
        step()
    return found


def milliseconds(found: torch_trn_emu.profile) -> float:
    return found.recording.elapsed_ns / 1e6


def variants(batch: int) -> dict[str, float]:
    """The step's simulated time in ms as it is, and with one change after another."""
    cases: dict[str, Callable[[], torch_trn_emu.profile]] = {
        "as it is": lambda: profiled(batch),
        "`AdamW(fused=True)`": lambda: profiled(batch, fused=True),
        "and `torch.compile(model)`": lambda: profiled(batch, fused=True, compiled=True),
    }
    return {name: milliseconds(run()) for name, run in cases.items()}


def estimated(batch: int) -> Estimate:
    """Forward and backward from shapes alone: no memory, no computing."""
    model = make_model().to("meta")
    x = torch.empty(batch, WIDTH, device="meta")

    def step() -> None:
        (model(x) - x).square().mean().backward()

    return torch_trn_emu.estimate(step)


def table(times: dict[str, float]) -> str:
    first = next(iter(times.values()))
    rows = [f"| {name} | {ms:.2f} | {first / ms:.2f} x |" for name, ms in times.items()]
    return "\n".join(["| the step | simulated ms | faster by |", "|---|---|---|", *rows])


def draw(folder: Path, found: torch_trn_emu.profile, batches: list[int]) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    bounds = {name: share for name, share in found.verdict().bounds.items() if share > 0.002}
    figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(bounds) + 1))
    axes.barh(list(bounds), [100 * share for share in bounds.values()])
    axes.invert_yaxis()
    axes.set(xlabel="% of the step's time")
    figure.savefig(folder / "bounds.svg", bbox_inches="tight", transparent=True)

    estimates = [estimated(batch) for batch in batches]
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    rows = [batch / e.time_us * 1e6 for batch, e in zip(batches, estimates, strict=True)]
    axes.loglog(batches, rows, marker="o")
    axes.set(xlabel="batch", ylabel="rows per simulated second")
    figure.savefig(folder / "batches.svg", bbox_inches="tight", transparent=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, help="write figures and tables there")
    options = parser.parse_args()

    found, times = profiled(64), variants(64)
    print(found.summary(rows=6))
    verdict = [found.verdict().sentence, *(f"- {c.text}" for c in found.verdict().changes)]
    print("\n".join([*verdict, "", table(times)]))
    if options.figures:
        draw(options.figures, found, [2**n for n in range(5, 15)])
        (options.figures / "verdict.md").write_text("\n".join(verdict) + "\n")
        (options.figures / "variants.md").write_text(table(times) + "\n")
        (options.figures / "summary.txt").write_text(found.summary(rows=8, width=92) + "\n")


if __name__ == "__main__":
    main()
