"""torch.export, torch.fx and ONNX: a model leaves the device as a graph, and comes back.

python examples/export.py --device trn
"""

import argparse
import copy
import io
import warnings

import onnx
import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)).softmax(-1)


def exported_and_loaded(model: nn.Module, x: Tensor) -> nn.Module:
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    return torch.export.load(stored).module()


def with_relu(model: nn.Module) -> torch.fx.GraphModule:
    """A pass over the traced graph: every GELU becomes a ReLU."""
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    for name, module in list(traced.named_modules()):
        if isinstance(module, nn.GELU):
            traced.set_submodule(name, nn.ReLU())
    traced.recompile()
    return traced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = Classifier().to(options.device).eval()
    x = torch.randn(8, 16, device=options.device)
    expected = model(x)

    loaded = exported_and_loaded(model, x)
    print(f"torch.export on {loaded(x).device}, equal: {torch.equal(loaded(x), expected)}")
    changed = with_relu(model)(x)
    print(f"torch.fx on {changed.device}, changed by {(changed - expected).abs().max():.3f}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    graph = onnx.load_from_string(program.model_proto.SerializeToString()).graph
    onnx.checker.check_model(program.model_proto)
    print(f"ONNX: {' '.join(node.op_type for node in graph.node)}")


if __name__ == "__main__":
    main()
