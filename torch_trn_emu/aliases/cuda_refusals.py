"""What `--as-cuda` refuses of torch.cuda: always with a reason, and only where it is used.

A script that names a class, creates a kernel or asks for the runtime, as modules do when they are
imported, runs on; instantiating the class, launching the kernel or calling the runtime raises.
"""

from collections.abc import Callable
from functools import wraps
from types import MappingProxyType
from typing import Any

from .. import trn
from ..errors import Unsupported

__all__ = ["CUDART", "compiling", "refusing", "refusing_class"]


def refusing(name: str, why: str) -> Callable[..., Any]:
    """A function that raises Unsupported with the reason.

    It wraps another, as those do that it replaces: torch.compile of 2.14 looks behind use_mem_pool.
    """

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise Unsupported(
            f"torch.cuda.{name} has no counterpart on trn, so --as-cuda cannot map it: {why}. "
            "Skip it if torch.cuda.get_device_name() is not a GPU's."
        )

    refuse.__name__ = name

    @wraps(refuse)
    def called(*args: Any, **kwargs: Any) -> Any:
        return refuse(*args, **kwargs)

    return called


def refusing_class(name: str, why: str) -> type:
    """A class that can be named, as in annotations and isinstance, and not be instantiated."""
    return type(name, (), {"__new__": refusing(name, why)})


def compiling(make: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch.cuda.jiterator: it checks the source; the kernel raises when called."""

    @wraps(make)
    def create(code_string: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        make(code_string, *args, **kwargs)
        return refusing("jiterator", "kernels written in CUDA do not run on trn")

    return create


class _Cudart:
    """The CUDA runtime as `torch.cuda.cudart()` gives it; its functions return 0 for success."""

    _served: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
        {
            "cudaProfilerStart": trn.profiler.start,
            "cudaProfilerStop": trn.profiler.stop,
            "cudaMemGetInfo": trn.mem_get_info,
            # trn copies from any host memory, which is_pinned() goes on to tell apart.
            "cudaHostRegister": lambda pointer, size, flags: None,
            "cudaHostUnregister": lambda pointer: None,
        }
    )

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        if name not in self._served:
            return refusing(f"cudart().{name}", "it accesses a CUDA library")

        def call(*args: Any) -> Any:
            return 0 if (result := self._served[name](*args)) is None else result

        return call


CUDART = _Cudart()
