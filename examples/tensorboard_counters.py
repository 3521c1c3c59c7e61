"""TensorBoard: the loss and, beside it, what the emulated chip did in each step.

python examples/tensorboard_counters.py --device trn --steps 50 --folder runs
"""

import argparse

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import torch_trn_emu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--folder", default="runs")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.randn(256, 64, device=options.device)
    with SummaryWriter(options.folder) as writer:
        log_counters = torch_trn_emu.tensorboard_callback(writer)
        for step in range(options.steps):
            loss = nn.functional.mse_loss(model(x), x.flip(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            writer.add_scalar("loss", loss.item(), step)
            log_counters(step)
    print(f"loss {loss.item():.4f}; tensorboard --logdir {options.folder}")


if __name__ == "__main__":
    main()
