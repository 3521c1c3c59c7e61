"""Will my training survive MXFP8? Trains one GPT under four policies, then asks where values part.

python docs/tutorials/survive_mxfp8.py --steps 150 --figures docs/tutorials/figures

The page survive_mxfp8.md shows this code and what it wrote.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import torch_trn_emu
from torch_trn_emu.parity import Comparison, Sensitivity

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from char_gpt import (
    GPT,
    Config,
    Corpus,
    batches,
    build,
    loss_of,
    make_optimizer,
    standard_library_text,
)

POLICIES = ("fp32", "bf16", "mxfp8", "mxfp4")
CONFIG = Config(layers=2, width=64, heads=4, context=64, batch=8)


class WithLoss(nn.Module):
    """What `compare` needs: a module of its inputs that returns the loss."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return loss_of(self.model, x, y)


def loss_curve(policy: str, corpus: Corpus, steps: int) -> tuple[list[float], GPT]:
    """Train from the same start on the same batches; only the policy differs."""
    with torch_trn_emu.precision(policy):
        model = build("trn", corpus, CONFIG)
        optimizer = make_optimizer(model, CONFIG)
        source = batches(corpus.training, CONFIG, torch.Generator().manual_seed(0))
        losses = []
        for _ in range(steps):
            x, y = (t.to("trn") for t in next(source))
            loss = loss_of(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, model


def where_it_parts(model: GPT, corpus: Corpus) -> Comparison:
    """The trained model on one batch: on the CPU and in MXFP8."""
    batch = next(batches(corpus.validation, CONFIG, torch.Generator().manual_seed(1)))
    return torch_trn_emu.compare(WithLoss(model), batch, a="cpu", b="trn@mxfp8")


def who_can_have_less(model: GPT, corpus: Corpus) -> Sensitivity:
    """A policy for each module that keeps the logits within 40 dB."""
    x, _ = next(batches(corpus.validation, CONFIG, torch.Generator().manual_seed(1)))
    return torch_trn_emu.sensitivity(model, x, policies=["mxfp8", "mxfp4"], target_db=40)


def smoothed(losses: list[float], width: int = 10) -> list[float]:
    return [sum(losses[i : i + width]) / width for i in range(len(losses) - width + 1)]


def draw(
    folder: Path,
    curves: dict[str, list[float]],
    comparison: Comparison,
    found: Sensitivity,
) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for policy, losses in curves.items():
        axes.plot(smoothed(losses), label=policy)
    axes.set(xlabel="step", ylabel="training loss, mean of 10 steps")
    axes.legend()
    figure.savefig(folder / "loss_curves.svg", bbox_inches="tight", transparent=True)

    products = [op for op in comparison.ops if op.diverges and op.phase == "forward"]
    figure, axes = pyplot.subplots(figsize=(7, 0.35 * len(products) + 1))
    names = [f"{op.module} {op.op.split('.')[1]}" for op in products]
    axes.barh(names, [op.distance.sqnr_db for op in products])
    axes.invert_yaxis()
    axes.set(xlabel="SQNR in dB of the operator alone; more is better")
    figure.savefig(folder / "operators.svg", bbox_inches="tight", transparent=True)

    last = {policy: smoothed(losses)[-1] for policy, losses in curves.items()}
    rows = [f"| `{p}` | {v:.4f} | {v / last['fp32'] - 1:+.2%} |" for p, v in last.items()]
    head = "| policy | last loss, mean of 10 steps | against `fp32` |\n|---|---|---|"
    (folder / "losses.md").write_text("\n".join((head, *rows)) + "\n")
    (folder / "sensitivity.txt").write_text(found.text + "\n")
    first = comparison.first_divergent
    assert first is not None
    (folder / "first.md").write_text(f"The first operator to part: {first.where}, {first.cause}.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--figures", type=Path, help="write figures and tables there")
    options = parser.parse_args()

    corpus = Corpus(standard_library_text())
    curves = {}
    for policy in POLICIES:
        curves[policy], model = loss_curve(policy, corpus, options.steps)
        if policy == "fp32":
            trained = model
        print(f"{policy:6} loss {curves[policy][0]:.3f} to {curves[policy][-1]:.3f}")
    comparison = where_it_parts(trained, corpus)
    found = who_can_have_less(trained, corpus)
    print(comparison.text, found.text, sep="\n\n")
    if options.figures:
        draw(options.figures, curves, comparison, found)


if __name__ == "__main__":
    main()
