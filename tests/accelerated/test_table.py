"""The table against torch's own list of operators with a kernel for CUDA and none for the CPU."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torchgen
import yaml

from torch_trn_emu.accelerated.table import ELSEWHERE, KERNELS, REFUSED
from torch_trn_emu.errors import Unsupported

HOST = {
    "CUDA": "CPU",
    "SparseCUDA": "SparseCPU",
    "SparseCsrCUDA": "SparseCsrCPU",
    "QuantizedCUDA": "QuantizedCPU",
    "NestedTensorCUDA": "NestedTensorCPU",
}
COMPOSITE = (
    "CompositeExplicitAutograd",
    "CompositeImplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
)


def only_on_cuda():
    """Names of operators that CUDA has a kernel for where the CPU has none."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for entry in yaml.load(path.read_text(), Loader=loader):
        name = entry["func"].partition("(")[0]
        keys = {k.strip() for group in entry.get("dispatch", {}) for k in group.split(",")}
        if not keys & HOST.keys() or any(has(f"aten::{name}", key) for key in COMPOSITE):
            continue
        if any(not has(f"aten::{name}", HOST[key]) for key in keys & HOST.keys()):
            yield name


def test_every_such_operator_has_a_row():
    missing = set(only_on_cuda()) - KERNELS.keys() - REFUSED.keys() - ELSEWHERE
    assert not missing, f"a kernel or a reason for {sorted(missing)}"


def test_no_operator_is_both():
    assert not KERNELS.keys() & REFUSED.keys()


def test_every_kernel_is_there():
    for path in KERNELS.values():
        module, _, name = path.partition(".")
        assert callable(getattr(import_module(f"torch_trn_emu.accelerated.{module}"), name))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_says_why(name):
    """By name and reason, from any trn tensor: arguments are the smallest the schema takes."""
    op, _, overload = name.partition(".")
    call = getattr(getattr(torch.ops.aten, op), overload or "default")
    sizes = dict(re.findall(r"bool\[(\d)\] (\w+)", str(call._schema)))
    sized = {argument: int(size) for size, argument in sizes.items()}
    x = torch.ones(2, 2, device="trn")
    needed = [a for a in call._schema.arguments if not a.has_default_value()]
    named = {a.name: _smallest(a, x, sized.get(a.name, 2)) for a in needed}
    if "device" in {a.name for a in call._schema.arguments}:
        named["device"] = "trn"
    with pytest.raises(Unsupported, match=f"aten::{op}"):
        call(**named)


def _smallest(argument, x, size):
    kind = str(argument.type)
    if kind == "List[Tensor]":
        return [x]
    if kind == "Tensor":
        return x
    if kind.startswith("Optional"):
        return None
    if kind.startswith("List"):
        return [1] * size
    return {"str": "", "bool": False, "float": 0.0}.get(kind, 1)
