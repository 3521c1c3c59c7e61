"""Where does my step time go? Profiles a training step three ways and prices larger batches.

python docs/tutorials/step_time.py --figures docs/tutorials/figures

The page step_time.md shows this code and what it wrote.
"""

import argparse
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


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
    loss = (model(x) - x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def profiled(batch: int, *, fused: bool) -> torch_trn_emu.profile:
    """One step after a first one that makes the optimizer's state."""
    model = make_model().to("trn")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    x = torch.randn(batch, WIDTH, device="trn")
    train_step(model, optimizer, x)
    with torch_trn_emu.profile() as found:
        train_step(model, optimizer, x)
    return found


def estimated(batch: int) -> Estimate:
    """Forward and backward from shapes alone: no memory, no computing."""
    model = make_model().to("meta")
    x = torch.empty(batch, WIDTH, device="meta")

    def step() -> None:
        (model(x) - x).square().mean().backward()

    return torch_trn_emu.estimate(step)


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
    figure.savefig(folder / "bounds.svg", bbox_inches="tight")

    estimates = [estimated(batch) for batch in batches]
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    rows = [batch / e.time_us * 1e6 for batch, e in zip(batches, estimates, strict=True)]
    axes.loglog(batches, rows, marker="o")
    axes.set(xlabel="batch", ylabel="rows per simulated second")
    figure.savefig(folder / "batches.svg", bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, help="write figures and tables there")
    options = parser.parse_args()

    several, one = profiled(64, fused=False), profiled(64, fused=True)
    print(several.summary(rows=6))
    lines = [several.verdict().sentence, *(f"- {c.text}" for c in several.verdict().changes)]
    elapsed = [1e-6 * sum(r.elapsed_ns for r in (p.recording,)) for p in (several, one)]
    lines.append(
        f"\nWith `fused=True` the step takes {elapsed[1]:.2f} ms instead of {elapsed[0]:.2f}."
    )
    print("\n".join(lines))
    if options.figures:
        draw(options.figures, several, [2**n for n in range(5, 15)])
        (options.figures / "verdict.md").write_text("\n".join(lines) + "\n")
        (options.figures / "summary.txt").write_text(several.summary(rows=8, width=92) + "\n")


if __name__ == "__main__":
    main()
