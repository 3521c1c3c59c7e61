"""Each aten operator that makes a tensor of sizes and numbers alone makes the CPU's on trn."""

from typing import Any

import pytest
import torch
from torch import Tensor

GIVEN = {
    "int": 5,
    "SymInt": 5,
    "number": 2.0,
    "float": 2.0,
    "List[int]": [2, 3],
    "List[SymInt]": [2, 3],
    "bool": True,
}
OPTIONS = ("device", "dtype", "layout", "pin_memory", "memory_format", "generator", "names")
DRAWN = ("rand", "normal", "empty", "_empty", "new_empty")  # by a generator, or not written
ELSEWHERE = {
    "_cudnn_init_dropout_state": "a kernel of cuDNN",
    "_sparse_compressed_tensor_with_dims": "of a layout",
    "_sparse_coo_tensor_with_dims": "of sizes that these numbers do not fit",
    "_make_dep_token": "an unwritten value",
    "Generator": "no tensor",
    "from_file": "of a file",
    "tensor": "of TorchScript's values",
    "as_tensor": "of TorchScript's values",
}


def factories() -> list[torch.FunctionSchema]:
    found = [schema for schema in torch._C._jit_get_all_schemas() if takes_a_device_alone(schema)]
    assert len(found) > 30
    return found


def takes_a_device_alone(schema: torch.FunctionSchema) -> bool:
    name = schema.name.removeprefix("aten::")
    if name == schema.name or name in ELSEWHERE or name.startswith(DRAWN):
        return False
    arguments = schema.arguments
    return any(each.name == "device" for each in arguments) and not any(
        "Tensor" in str(each.type) for each in arguments
    )


def made(schema: torch.FunctionSchema, device: str) -> Tensor:
    given: list[Any] = []
    options: dict[str, Any] = {"device": device}
    for each in schema.arguments:
        left_out = each.has_default_value() and (each.kwarg_only or str(each.type) != "number")
        if each.name in OPTIONS or left_out:
            continue
        value = GIVEN[str(each.type)]
        if each.kwarg_only:
            options[each.name] = value
        else:
            given.append(value)
    packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::"))
    result = getattr(packet, schema.overload_name or "default")(*given, **options)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize(
    "schema", factories(), ids=lambda each: f"{each.name}.{each.overload_name}"
)
def test_makes_the_tensor_of_the_cpu(schema: torch.FunctionSchema) -> None:
    expected, found = made(schema, "cpu"), made(schema, "trn")
    assert found.device.type == "trn"
    assert found.dtype == expected.dtype
    assert found.layout == expected.layout
    if expected.layout == torch.strided:
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_kaiser_window_has_all_forms(dtype: torch.dtype) -> None:
    for given in ((0,), (1,), (7,), (7, False), (8, True, 3.5)):
        found = torch.kaiser_window(*given, dtype=dtype, device="trn")
        assert torch.equal(found.cpu(), torch.kaiser_window(*given, dtype=dtype))


def test_set_gives_an_empty_storage_of_the_device() -> None:
    for index in range(2):
        x = torch.randn(3, 4, device=torch.device("trn", index))
        assert x.set_() is x
        host = torch.randn(3, 4).set_()
        assert (x.shape, x.stride(), x.dtype) == (host.shape, host.stride(), host.dtype)
        assert x.untyped_storage().nbytes() == 0
        assert x.untyped_storage().device == torch.device("trn", index)
        assert x.resize_(2, 2).fill_(1).sum() == 4
