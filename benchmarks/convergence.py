"""Train the demo's model under each matmul precision from one seed and compare validation losses.

python benchmarks/convergence.py [--steps 300] [--precisions fp32 mxfp8 mxfp4]

The first precision is what the others are compared with. Writes convergence.json.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

from char_gpt import (  # noqa: E402  (an example, found by the line above)
    Config,
    Corpus,
    build,
    standard_library_text,
    train,
)

RESULTS = HERE / "convergence.json"


def validation_loss_under(precision: str, corpus: Corpus, config: Config) -> float:
    torch.backends.trn.matmul.precision = precision  # type: ignore[attr-defined]
    return train(build("trn", corpus, config), corpus, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=Config.steps)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "mxfp8", "mxfp4"])
    options = parser.parse_args()

    config = Config(steps=options.steps)
    corpus = Corpus(standard_library_text())
    losses = {p: validation_loss_under(p, corpus, config) for p in options.precisions}
    baseline = losses[options.precisions[0]]
    for precision, loss in losses.items():
        print(f"{precision:>10}  {loss:.4f}  {loss / baseline - 1:+.2%}")

    rows = [{"precision": p, "validation_loss": loss} for p, loss in losses.items()]
    content = {"config": asdict(config), "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
