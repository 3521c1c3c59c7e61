"""Compiles the kernels that given calls would launch, for a GPU that need not be there.

`python compile_kernels.py 90 quantize ...` prints a JSON row for each: registers and spills as
cuobjdump finds them, matrix instructions and stores of single bytes in its PTX. Run in a process of
its own, without TRITON_INTERPRET.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int16: "*i16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.bool: "*i1",
}


def signature_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def compiled(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], sm: int) -> Any:
    """The kernel for compute capability `sm`; arguments of 1 are constants, as at run time."""
    options = {n: constants.pop(n) for n in ("num_warps", "num_stages") if n in constants}
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    ones = {n: v for n, v in given.items() if isinstance(v, int) and v == 1}
    signature = {n: signature_of(v) for n, v in given.items()}
    signature |= dict.fromkeys([*constants, *ones], "constexpr")
    divisible = [["tt.divisibility", 16]]
    attributes = {
        (i,): divisible
        for i, n in enumerate(kernel.arg_names)
        if n in given and (isinstance(given[n], torch.Tensor) or given[n] % 16 == 0)
        if n not in ones and not isinstance(given[n], float)
    }
    source = ASTSource(kernel, signature, constants | ones, attributes)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and its bytes on the stack, where registers spill."""
    tool = Path(triton.backends.__file__).parent / "nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {
        "registers": int(found["REG"]),
        "stack_bytes": int(found["STACK"]) + int(found["LOCAL"]),
    }


def rows(sm: int, names: list[str]) -> list[dict[str, Any]]:
    import compile_calls  # beside this file

    made: list[dict[str, Any]] = []

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        result = compiled(kernel, arguments, dict(constants), sm)
        ptx = result.asm["ptx"]
        made.append(
            {
                "kernel": kernel.__name__,
                "axes": len(grid),
                "shared_bytes": result.metadata.shared,
                **resources(result.asm["cubin"]),
                "byte_stores": len(re.findall(r"st\.global\.b8", ptx)),
                "flushes": ".ftz" in ptx,
                "matrix": sorted(set(re.findall(r"(?:wgmma|mma)\S*\.m\d+n\d+k\d+\S*", ptx))),
                "double": len(re.findall(r"\.f64", ptx)),
            }
        )

    for name in names:
        module = importlib.import_module(f"torch_trn_emu.triton.{name}")
        module.launch = record  # type: ignore[attr-defined]
    for name in names:
        for call in compile_calls.CALLS[name]:
            call()
    return made


if __name__ == "__main__":
    print(json.dumps(rows(int(sys.argv[1]), sys.argv[2:])))
