"""MXFP8 trains: the demo's model ends within 1 % of float32's validation loss, same seed."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from char_gpt import Config, Corpus, build, standard_library_text, train

SMALL = Config(layers=2, width=96, heads=3, steps=200)


@pytest.mark.conformance  # 50 s of training
@pytest.mark.slow
def test_mxfp8_ends_within_one_percent_of_fp32(monkeypatch):
    corpus = Corpus(standard_library_text())
    losses = {}
    for precision in ("fp32", "mxfp8"):
        monkeypatch.setattr(torch.backends.trn.matmul, "precision", precision)
        losses[precision] = train(build("trn", corpus, SMALL), corpus, SMALL)
    untrained = torch.tensor(len(corpus.characters)).log().item()
    assert losses["fp32"] < 0.7 * untrained
    assert losses["mxfp8"] == pytest.approx(losses["fp32"], rel=0.01)
