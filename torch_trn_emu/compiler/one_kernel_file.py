"""A file of C++ for all kernels of a graph, where Inductor writes one for each.

What surrounds a kernel, its bindings and the start of g++, takes longer to compile than the kernel:
docs/performance.md. Checked on torch 2.13.0.
"""

import contextvars
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ..torch_private.inductor import (
    AsyncCompile,
    CppPythonBindingsCodeCache,
    async_compile_replaced,
    get_compile_threads,
    kernel_code_log,
)

__all__ = ["in_one_file"]

KERNELS_PER_FILE = 16  # chosen; files are compiled side by side
INCLUDE = re.compile(r"^\s*#include .*\n", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class _Kernel:
    """One `kernel` of Inductor's: stands for it in the module until the file is built."""

    types: tuple[str, ...]  # of its arguments, in C++
    source: str


class _Together(AsyncCompile):
    """What generated code finds as `AsyncCompile`."""

    def __init__(self) -> None:
        super().__init__()
        self._kernels: list[_Kernel] = []

    def cpp_pybinding(self, argtypes: list[str], source_code: str) -> _Kernel:
        kernel_code_log.info("CPP+Bindings Kernel:\n%s", source_code)
        self._kernels.append(_Kernel(tuple(argtypes), source_code))
        return self._kernels[-1]

    def wait(self, scope: dict[str, Any]) -> None:
        built = _build(self._kernels)
        for name, value in list(scope.items()):
            if isinstance(value, _Kernel):
                scope[name] = built[value]
        super().wait(scope)


def in_one_file() -> AbstractContextManager[None]:
    """Code of graphs that is compiled or loaded meanwhile has its kernels together."""
    return async_compile_replaced(_Together)


def _build(kernels: Sequence[_Kernel]) -> dict[_Kernel, Callable[..., None]]:
    files = [kernels[k : k + KERNELS_PER_FILE] for k in range(0, len(kernels), KERNELS_PER_FILE)]
    with ThreadPoolExecutor(get_compile_threads()) as pool:
        # Inductor's configuration is a matter of the context.
        loads = [pool.submit(contextvars.copy_context().run, _load, file) for file in files]
        functions = [function for load in loads for function in load.result()]
    return dict(zip(kernels, functions, strict=True))


def _load(kernels: Sequence[_Kernel]) -> tuple[Callable[..., None], ...]:
    """Compile a file, or find it in Inductor's cache, and give its functions."""
    members = {
        "entry_function": "kernels",
        "call_entry_function": "return functions();",
        "extra_parse_arg": _bindings(kernels).replace("{", "{{").replace("}", "}}"),
    }
    bound: Any = type("KernelFile", (CppPythonBindingsCodeCache,), members)
    functions: tuple[Callable[..., None], ...] = bound.load_pybinding([], _bodies(kernels))()
    return functions


def _bodies(kernels: Sequence[_Kernel]) -> str:
    """Each kernel under a name of its own, whatever else its source defines in a namespace."""
    includes = dict.fromkeys(line for k in kernels for line in INCLUDE.findall(k.source))
    bodies = (
        f"#define kernel kernel_{i}\nnamespace file_{i} {{\n{INCLUDE.sub('', k.source)}\n}}\n"
        "#undef kernel\n"
        for i, k in enumerate(kernels)
    )
    return "".join((*includes, *bodies))


BINDINGS = """
template <typename Call>
static PyObject* called(PyObject* args, Py_ssize_t count, const Call& call) {
    try {
        if (!PyTuple_CheckExact(args) || PyTuple_GET_SIZE(args) != count)
            throw std::runtime_error("requires " + std::to_string(count) + " args");
        call();
        Py_RETURN_NONE;
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    } catch (...) {
        PyErr_SetString(PyExc_RuntimeError, "unhandled error");
    }
    return nullptr;
}
static PyMethodDef definitions[] = {ROWS};
static PyObject* functions() {
    PyObject* made = PyTuple_New(COUNT);
    for (Py_ssize_t i = 0; made != nullptr && i < COUNT; ++i)
        PyTuple_SET_ITEM(made, i, PyCFunction_New(&definitions[i], nullptr));
    return made;
}
"""

ROW = """
    {"NAME", [](PyObject*, PyObject* args) -> PyObject* {
        return called(args, COUNT, [&] { FUNCTION(VALUES); });
    }, METH_VARARGS, nullptr},"""


def _bindings(kernels: Sequence[_Kernel]) -> str:
    """A Python function for each, in the terms of Inductor's own bindings: `parse_arg`."""
    rows = (
        ROW.replace("NAME", f"kernel_{i}")
        .replace("COUNT", str(len(kernel.types)))
        .replace("FUNCTION", f"file_{i}::kernel_{i}")
        .replace("VALUES", _values(kernel.types))
        for i, kernel in enumerate(kernels)
    )
    return BINDINGS.replace("ROWS", "".join(rows)).replace("COUNT", str(len(kernels)))


def _values(types: Sequence[str]) -> str:
    return ", ".join(
        f"parse_arg<{name.replace('const ', '')}>(args, {n})" for n, name in enumerate(types)
    )
