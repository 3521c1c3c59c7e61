"""The same values in two places: copies of nested arguments, comparison of what came back."""

import enum
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

SEED = 1


class Verdict(enum.IntEnum):
    """How a case came out; the worst of its samples counts."""

    EXACT = 0
    BOUND = 1  # not bit-equal, within the bound of close()
    NO_SAMPLE = 2  # nothing to compare
    UNCOMPILED = 3  # as it should be, but run operator by operator
    DIFFERS = 4
    ERROR_DIFFERS = 5  # another exception, or one where the other place has none
    CRASH = 6  # the process died or hung


class NotCompiled(Exception):
    """A compiled call ran without a compiled graph, or one without an engine program."""


def copied(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A copy on `device` with the same strides, offset, overlap, conj and neg bits."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        made = tensor.detach().clone().to(device)
    elif tensor.is_conj():
        return copied(tensor.conj(), device).conj()
    elif tensor.is_neg():
        return copied(torch._neg_view(tensor), device)._neg_view()
    else:
        plain = tensor.detach()
        extent = plain.as_strided((plain.untyped_storage().nbytes() // plain.itemsize,), (1,), 0)
        made = extent.clone().to(device)
        made = made.as_strided(plain.shape, plain.stride(), plain.storage_offset())
    made = made.detach()
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)


def placed(tree: Any, device: str) -> Any:
    """A deep copy of nested arguments on `device`. One tensor met twice stays one tensor."""
    seen: dict[int, torch.Tensor] = {}

    def place(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in seen:
                seen[id(leaf)] = copied(leaf, device)
            return seen[id(leaf)]
        if isinstance(leaf, torch.Generator):
            made = torch.Generator(device)
            made.set_state(leaf.get_state())
            return made
        if isinstance(leaf, torch.device) or leaf == "cpu":
            return torch.device(device)
        return leaf

    return pytree.tree_map(place, tree)


def outcome(run: Callable[[str], Any], device: str) -> tuple[Any, Exception | None]:
    """What `run` gives on `device`, from the same seed each time."""
    torch.manual_seed(SEED)
    try:
        return run(device), None
    except Exception as error:
        return None, error


BOUNDS = {
    #  dtype            relative, absolute: torch.testing's own for one rounding in that format
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.complex64: (1.3e-6, 1e-5),
}


# relative, absolute, and absolute as a share of the tensor's largest magnitude
Bound = tuple[float, float, float] | None


def close(expected: torch.Tensor, actual: torch.Tensor, bound: Bound) -> bool:
    rtol, atol, share = bound or (*BOUNDS.get(expected.dtype, (1e-7, 1e-7)), 0.0)
    if share and expected.numel() > 0:
        atol += share * expected.abs().max().item()
    return torch.allclose(expected, actual, rtol=rtol, atol=atol, equal_nan=True)


def twice_the_hosts(expected: Any, reference: Any, dtype: torch.dtype) -> Bound:
    """One rounding of `dtype`, and twice the largest share that any tensor is off its reference."""
    shares = [0.0]
    pairs = zip(pytree.tree_leaves(expected), pytree.tree_leaves(reference), strict=True)
    for tensor, exact in pairs:
        if isinstance(tensor, torch.Tensor) and tensor.numel() > 0:
            off = (tensor.detach() - exact.detach()).abs().max() / exact.detach().abs().max()
            shares.append(off.nan_to_num(0).item())
    return (*BOUNDS[dtype], 2 * max(shares))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The values as integers. NaNs are made one."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point():
        return tensor
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    return tensor.masked_fill(tensor.isnan(), float("nan")).view(integer)


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The strided tensors that a tensor of any layout consists of, on the host."""
    tensor = tensor.detach().to("cpu")
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor]


def form(tensor: torch.Tensor, strides: bool) -> dict[str, Any]:
    """What must agree beside the values."""
    described = {
        "dtype": tensor.dtype,
        "layout": tensor.layout,
        "requires_grad": tensor.requires_grad,
        "conj": tensor.is_conj(),
        "neg": tensor.is_neg(),
    }
    if not tensor.is_nested:
        described["shape"] = tuple(tensor.shape)
    if tensor.layout == torch.sparse_coo:
        described["coalesced"] = tensor.is_coalesced()
    if strides and tensor.layout == torch.strided and not tensor.is_nested and tensor.numel() > 1:
        # The stride of an axis of size 1 has no meaning.
        described["strides"] = [
            s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1
        ]
    return described


def compare_tensors(
    host: torch.Tensor, trn: torch.Tensor, *, values: bool, bound: Bound, device: str
) -> tuple[Verdict, str]:
    if trn.device.type != device and host.dim() > 0:
        return Verdict.DIFFERS, f"the result is on {trn.device}"
    expected, actual = form(host, True), form(trn, True)
    for name, value in expected.items():
        if actual[name] != value:
            return Verdict.DIFFERS, f"{name}: {value} on the host, {actual[name]} on {device}"
    worst, why = Verdict.EXACT, ""
    for ours, theirs in zip(parts(trn), parts(host), strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return Verdict.DIFFERS, f"a part: {theirs.shape} on the host, {ours.shape} on {device}"
        if not values or torch.equal(bits(ours), bits(theirs)):
            continue
        wide = torch.complex128 if ours.is_complex() else torch.float64
        error = (ours.to(wide) - theirs.to(wide)).abs().nan_to_num(0).max().item()
        worst = max(worst, Verdict.BOUND if close(theirs, ours, bound) else Verdict.DIFFERS)
        why = f"values differ by up to {error:.3g}"
    return worst, why


def compare(
    host: Any, trn: Any, *, values: bool = True, bound: Bound = None, device: str = "trn"
) -> tuple[Verdict, str]:
    """Nested results of the two places. `values` is off for uninitialised memory."""
    expected, actual = pytree.tree_leaves(host), pytree.tree_leaves(trn)
    if len(expected) != len(actual):
        return Verdict.DIFFERS, f"{len(expected)} results on the host, {len(actual)} on {device}"
    worst, why = Verdict.EXACT, ""
    for theirs, ours in zip(expected, actual, strict=True):
        if isinstance(theirs, torch.Tensor) != isinstance(ours, torch.Tensor):
            verdict, text = Verdict.DIFFERS, f"{type(theirs)} on the host, {type(ours)} on {device}"
        elif isinstance(theirs, torch.Tensor):
            verdict, text = compare_tensors(theirs, ours, values=values, bound=bound, device=device)
        elif isinstance(theirs, torch.device):
            verdict, text = Verdict.EXACT, ""
        else:
            same = theirs == ours or (theirs != theirs and ours != ours)
            verdict = Verdict.EXACT if same or not values else Verdict.DIFFERS
            text = "" if same else f"{theirs!r} on the host, {ours!r} on {device}"
        if verdict > worst:
            worst, why = verdict, text
    return worst, why
