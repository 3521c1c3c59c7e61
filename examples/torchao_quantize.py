"""torchao: weights in int8, activations and weights in float8 for training, MX tensors.

python examples/torchao_quantize.py --device trn

Left out: its optimizers with 8-bit state, which compile themselves with Inductor for the device.
"""

import argparse
import copy

import torch
from torch import nn
from torchao.float8 import convert_to_float8_training
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.quantization import Int8WeightOnlyConfig, quantize_


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    options = parser.parse_args()

    model = make_model().to(options.device).eval()
    x = torch.randn(32, 64, device=options.device)
    expected = model(x)

    int8 = copy.deepcopy(model)
    quantize_(int8, Int8WeightOnlyConfig())
    print(f"int8 weights: relative error {(int8(x) - expected).norm() / expected.norm():.4f}")

    float8 = convert_to_float8_training(copy.deepcopy(model))
    optimizer = torch.optim.SGD(float8.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = (float8(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"float8 training: loss {losses[0]:.4f} to {losses[-1]:.4f}")

    mx = MXTensor.to_mx(x, torch.float8_e4m3fn, 32)
    print(f"MX: relative error {(mx.dequantize(torch.float32) - x).norm() / x.norm():.4f}")


if __name__ == "__main__":
    main()
