"""Predict the next word of the Zen of Python with an LSTM: the loop of the classic examples.

python examples/word_language_lstm.py --device trn --epochs 20
"""

import argparse
import codecs
import math
import re

import torch
from torch import Tensor, nn

Hidden = tuple[Tensor, Tensor]


def zen() -> str:
    """The text of `import this`, without printing it."""
    import importlib.util

    spec = importlib.util.find_spec("this")
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        found = re.search('"""(.*?)"""', file.read(), re.DOTALL)
    assert found is not None
    return codecs.decode(found[1], "rot13")


class Model(nn.Module):
    def __init__(self, words: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=0.1)
        self.decoder = nn.Linear(width, words)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        output, hidden = self.lstm(self.embedding(tokens), hidden)
        return self.decoder(output).flatten(0, 1), hidden

    def first_hidden(self, batch: int) -> Hidden:
        weight = next(self.parameters())
        shape = (2, batch, self.lstm.hidden_size)
        return weight.new_zeros(shape), weight.new_zeros(shape)


def detached(hidden: Hidden) -> Hidden:
    return hidden[0].detach(), hidden[1].detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--bptt", type=int, default=12)
    options = parser.parse_args()

    torch.manual_seed(0)
    words = re.findall(r"\w+|[^\w\s]", zen())
    names = sorted(set(words))
    numbers = torch.tensor([names.index(word) for word in words])
    batch = 4
    data = numbers[: len(numbers) // batch * batch].view(batch, -1).t().to(options.device)

    model = Model(len(names)).to(options.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(1, options.epochs + 1):
        hidden, total, steps = model.first_hidden(batch), 0.0, 0
        for start in range(0, len(data) - 1, options.bptt):
            source = data[start : start + options.bptt]
            target = data[start + 1 : start + 1 + options.bptt]
            source = source[: len(target)]
            output, hidden = model(source, detached(hidden))
            loss = nn.functional.cross_entropy(output, target.flatten())
            model.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            total, steps = total + loss.item(), steps + 1
        print(f"epoch {epoch}: perplexity {math.exp(total / steps):.1f}")


if __name__ == "__main__":
    main()
