"""Private names of what compiles graphs. Importing this imports Inductor, which takes seconds."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch._functorch import config as functorch_config  # TrnCode in the AOTAutograd cache
from torch._functorch._aot_autograd.autograd_cache import BypassAOTAutogradCache  # the same
from torch._inductor import async_compile, config
from torch._inductor.async_compile import (
    AsyncCompile,  # one file of C++ for all kernels of a graph, here and in the next four
    get_compile_threads,
    kernel_code_log,
)
from torch._inductor.codecache import (
    CppPythonBindingsCodeCache,
    FxGraphCache,  # host code of a cached graph is found again
)
from torch._inductor.codegen.common import register_device_op_overrides
from torch._inductor.codegen.cpu_device_op_overrides import CpuDeviceOpOverrides
from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # the backend itself
from torch._inductor.custom_graph_pass import CustomGraphPass  # results that are written to later
from torch._inductor.decomposition import select_decomp_table  # what operators become
from torch._inductor.lowering import lowerings, make_fallback  # operators left to aten's kernels
from torch._inductor.output_code import OutputCode  # base of TrnCode
from torch._inductor.virtualized import V  # whether AOTInductor asks
from torch.fx._graph_pickler import (
    GraphPickler,  # graphs with symbolic sizes in the AOTAutograd cache, here and below
)
from torch.fx._graph_pickler import (
    Options as PicklerOptions,
)

__all__ = [
    "AsyncCompile",
    "BypassAOTAutogradCache",
    "CppPythonBindingsCodeCache",
    "CpuDeviceOpOverrides",
    "CustomGraphPass",
    "FxGraphCache",
    "GraphPickler",
    "OutputCode",
    "PicklerOptions",
    "V",
    "async_compile_replaced",
    "compile_fx",
    "compile_fx_inner",
    "config",
    "functorch_config",
    "get_compile_threads",
    "kernel_code_log",
    "lowerings",
    "make_fallback",
    "register_device_op_overrides",
    "select_decomp_table",
]


@contextmanager
def async_compile_replaced(other: type[AsyncCompile]) -> Iterator[None]:
    """Code that is generated or loaded meanwhile finds `other` as `AsyncCompile`."""
    previous = async_compile.AsyncCompile
    async_compile.AsyncCompile = other  # type: ignore[misc]
    try:
        yield
    finally:
        async_compile.AsyncCompile = previous  # type: ignore[misc]
