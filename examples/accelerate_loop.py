"""accelerate: the classic training loop, with the device, AMP and the data left to the library.

trn-emu run examples/accelerate_loop.py --epochs 5
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    x = torch.randn(1024, 16)
    y = (x[:, :4] * x[:, 4:8]).sum(dim=1, keepdim=True).tanh()
    model = nn.Sequential(nn.Linear(16, 128), nn.SiLU(), nn.Linear(128, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.print(f"training on {accelerator.device}")
    for epoch in range(options.epochs):
        for inputs, wanted in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(inputs), wanted)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {accelerator.gather(loss).mean().item():.4f}")


if __name__ == "__main__":
    main()
