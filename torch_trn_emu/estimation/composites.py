"""The kernels that run as others: what torch makes of operators, and those of other libraries."""

from functools import cache

from ..calls import is_of_library
from ..torch_private import DispatchKey, OpOverload, has_kernel, is_of_python

__all__ = ["composite_of", "composite_on_meta", "kernel_of_device"]

DEVICE_KEY = "PrivateUse1"
_COMPOSITES = (
    DispatchKey.CompositeExplicitAutograd,
    DispatchKey.CompositeExplicitAutogradNonFunctional,
    DispatchKey.CompositeImplicitAutograd,
)
# Called by this key, its kernel gets a number where it takes a tensor. Checked on torch 2.13.0.
_NOT_BY_KEY = frozenset(("remainder",))
# The device's own kernel launches products: csrc/aten/folding.cpp and recurrent_layers.cpp.
_MADE_OF_PRODUCTS = frozenset(("matmul", "linear", "lstm", "gru", "rnn_tanh", "rnn_relu"))
# Made of what has no kernel on `meta`, or of something else there. Checked on torch 2.13.0.
_OTHERWISE_ON_META = frozenset(
    "cummax cummin linspace logcumsumexp logspace masked_scatter masked_scatter_backward remainder "
    "repeat".split()
)
_NAMESPACES = ("aten", "trn", "prims", "_c10d_functional")  # priced by the operator
# Functional collectives that launch nothing, made of what has no kernel on `meta`.
_SENDING = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single")


def composite_on_meta(func: OpOverload) -> DispatchKey | None:
    sends = func.namespace == "_c10d_functional" and func._opname.startswith(_SENDING)
    if sends or (func.namespace == "aten" and func._opname in _OTHERWISE_ON_META):
        return None
    return composite_of(func) or (DispatchKey.PrivateUse1 if _runs_on_meta(func) else None)


@cache
def _runs_on_meta(func: OpOverload) -> bool:
    """Whether an operator of a library has a kernel for trn that asks for no memory."""
    of_trn = is_of_library(func.name()) and has_kernel(func.name(), DEVICE_KEY) and not func.is_view
    return of_trn and (func.namespace == "torch_nn" or is_of_python(func, DEVICE_KEY))


@cache
def composite_of(func: OpOverload) -> DispatchKey | None:
    """The kernel of an operator for which the device has none: it runs what torch makes it of."""
    own = has_kernel(func.name(), DEVICE_KEY) and func._opname not in _MADE_OF_PRODUCTS
    # Inside of another operator's kernel `to` and `reshape` come as they are, and may copy.
    view = func.is_view and not has_kernel(func.name(), "CompositeImplicitAutograd")
    if view or func._opname in _NOT_BY_KEY or own:
        return None
    return next((key for key in _COMPOSITES if has_kernel(func.name(), key.name)), None)


@cache
def kernel_of_device(func: OpOverload) -> DispatchKey | None:
    """`composite_of`, and kernels of other libraries: what they call is launched, as on trn."""
    composite = composite_of(func)
    ours = func.is_view or func.namespace in _NAMESPACES or not has_kernel(func.name(), DEVICE_KEY)
    return composite if composite is not None or ours else DispatchKey.PrivateUse1
