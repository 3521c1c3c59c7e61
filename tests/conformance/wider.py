"""Formats that CUDA's kernels take and the host's do not: computed wider on the host, cast once.

A case is an operator of op_db with a format in dtypesIfCUDA - dtypes, forward, into `out=`, in
place, or backward.
"""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from cases import HOST, Case, Ops, Trial, cotangent, differentiable
from places import SEED
from torch.testing._internal import common_methods_invocations as methods
from torch.utils import _pytree as pytree

WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}


def nan_to_zero(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.isnan(), torch.zeros((), dtype=x.dtype), x)


def nansum(x: torch.Tensor, dim: Any = None, keepdim: bool = False, **kw: Any) -> torch.Tensor:
    return torch.sum(nan_to_zero(x), dim, keepdim, **kw)


def nanmean(x: torch.Tensor, dim: Any = None, keepdim: bool = False, **kw: Any) -> torch.Tensor:
    return nansum(x, dim, keepdim, **kw) / (~x.isnan()).sum(dim, keepdim)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kw: Any) -> Any:
    """[batch, rows, heads, width], by definition; packed sequences see their own keys alone."""
    rows, columns = query.shape[1], key.shape[1]
    ahead = torch.arange(columns) - torch.arange(rows)[:, None]
    kind = 2 if kw.get("is_causal") else kw.get("custom_mask_type", 0)
    seen = ahead <= {0: columns, 1: 0, 2: columns - rows}[kind]
    if kw.get("cu_seqlens_q") is not None:
        sizes = zip(kw["cu_seqlens_q"].diff(), kw["cu_seqlens_k"].diff(), strict=True)
        packed = torch.block_diag(*(torch.ones(int(q), int(k)) for q, k in sizes)).bool()
        seen = torch.zeros(rows, columns, dtype=torch.bool)
        seen[: packed.shape[0], : packed.shape[1]] = packed
    scale = kw.get("scale") or query.shape[-1] ** -0.5
    scores = torch.einsum("bqhw,bkhw->bhqk", query, key) * scale
    if kw.get("bias") is not None:
        scores = scores + kw["bias"]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (torch.einsum("bhqk,bkhw->bqhw", weights, value),)


ATTENTION = (
    "torch.ops.aten._flash_attention_forward",
    "torch.ops.aten._efficient_attention_forward",
)
REFERENCES = {"nansum": nansum, "nanmean": nanmean, **dict.fromkeys(ATTENTION, attention)}


def results(op: Any, made: Any) -> Any:
    """What has a definition: not the state of a random generator."""
    return dense(made[0]) if op.name in ATTENTION else made


def combinations(op: Any) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Formats that CUDA alone takes: forward, and for gradients."""
    forward = set(op.dtypesIfCUDA) - set(op.dtypes)
    if not op.supports_autograd:
        return forward, set()
    backward = set(op.backward_dtypesIfCUDA or ()) - set(op.backward_dtypes or ())
    return forward, {d for d in backward if d.is_floating_point or d.is_complex}


HOST_HAS = {"nn.functional.batch_norm"}  # whatever op_db says


def wide_of(op: str, dtype: torch.dtype) -> torch.dtype:
    if op == "histc":
        return torch.float64
    if op in HOST_HAS:
        return dtype
    return torch.uint8 if dtype == torch.bool else WIDER.get(dtype, dtype)


def narrow_of(made: torch.dtype, op: str, dtype: torch.dtype) -> torch.dtype:
    """The format of a result that came out as `made` where the operands had `dtype`."""
    wide = wide_of(op, dtype)
    if made == wide:
        return dtype
    if dtype == torch.complex32 and made == torch.float32:
        return torch.float16
    return torch.complex32 if dtype == torch.float16 and made == torch.complex64 else made


def dense(tree: Any) -> Any:
    """Contiguous: the layout of what was cast is not compared."""

    def contiguous(t: torch.Tensor) -> torch.Tensor:
        return t.resolve_conj().contiguous() if t.layout == torch.strided else t

    return pytree.tree_map_only(torch.Tensor, contiguous, tree)


def grown(result: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=result.dtype, device=result.device)


def spaced(result: torch.Tensor) -> torch.Tensor:
    double = torch.zeros((*result.shape, 2), dtype=result.dtype, device=result.device)
    return double[..., 0]


class Wider(Ops):
    def aspects_of(self, op: Any, forward: bool, backward: bool) -> Iterator[str]:
        if forward:
            yield "forward"
            if op.supports_out:
                yield "out"
            if op.inplace_variant is not None:
                yield "inplace"
        if backward:
            yield "backward"

    def cases(self) -> Iterator[Case]:
        for name, op in self.entries.items():
            forward, backward = combinations(op)
            for dtype in sorted(forward | backward, key=str):
                for aspect in self.aspects_of(op, dtype in forward, dtype in backward):
                    yield Case(self.name, name, str(dtype).removeprefix("torch."), aspect)

    def trials(self, case: Case) -> Iterator[Trial]:
        op, dtype = self.entries[case.name], getattr(torch, case.dtype)
        run = getattr(self, case.aspect)
        for sample in op.sample_inputs(HOST, dtype, requires_grad=case.aspect == "backward"):
            if case.aspect == "inplace" and sample.broadcasts_input:
                continue
            if sample.kwargs.get("dropout_p"):
                continue  # drawn by another operator
            yield functools.partial(self.either, run, op, sample, dtype)

    @classmethod
    def either(cls, run: Trial, op: Any, sample: Any, dtype: torch.dtype, device: str) -> Any:
        """As given on trn; on the host in the wider format, cast back."""
        if device != HOST:
            return run(op, sample, device)

        def widened(leaf: torch.Tensor) -> torch.Tensor:
            if leaf.dtype != dtype:
                return leaf
            wide = leaf.detach().to(wide_of(op.name, dtype))
            return wide.requires_grad_(leaf.requires_grad)

        def narrowed(leaf: torch.Tensor) -> torch.Tensor:
            return leaf.detach().to(narrow_of(leaf.dtype, op.name, dtype))

        given = (sample.input, sample.args, sample.kwargs)
        first, args, kwargs = pytree.tree_map_only(torch.Tensor, widened, given)
        if kwargs.get("dtype") == dtype:
            kwargs = {**kwargs, "dtype": wide_of(op.name, dtype)}
        wide_sample = type(sample)(first, args=args, kwargs=kwargs)
        wide_sample.output_process_fn_grad = sample.output_process_fn_grad
        wide_op = copy.copy(op)
        wide_op.op = REFERENCES.get(op.name, op.op)
        made = run(wide_op, wide_sample, device, narrow_of=narrowed)
        return pytree.tree_map_only(torch.Tensor, narrowed, made)

    @classmethod
    def forward(cls, op: Any, sample: Any, device: str, narrow_of: Any = None) -> Any:
        made = results(op, super().forward(op, sample, device))
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.resolve_conj, made)

    @classmethod
    def out(cls, op: Any, sample: Any, device: str, narrow_of: Any = None) -> Any:
        """Into empty tensors and into strided ones; the values are those without `out`."""
        first, args, kwargs = cls.arguments(op, sample, device)
        made = op(first, *args, **kwargs)
        if narrow_of is not None:
            return [dense(made), dense(made)]
        given = [pytree.tree_map_only(torch.Tensor, like, made) for like in (grown, spaced)]
        for out in given:
            torch.manual_seed(SEED)
            op(first, *args, **kwargs, out=out)
        return [dense(out) for out in given]

    @classmethod
    def inplace(cls, op: Any, sample: Any, device: str, narrow_of: Any = None) -> Any:
        return super().inplace(op, sample, device)

    @classmethod
    def backward(cls, op: Any, sample: Any, device: str, narrow_of: Any = None) -> Any:
        """The incoming gradients have values of the narrow format."""
        first, args, kwargs = inputs = cls.arguments(op, sample, device)
        outputs = results(op, sample.output_process_fn_grad(op(first, *args, **kwargs)))
        of = [leaf for leaf in pytree.tree_leaves(outputs) if differentiable(leaf)]
        wanted = [leaf for leaf in pytree.tree_leaves(inputs) if differentiable(leaf)]
        given = [cotangent(o, (narrow_of(o) if narrow_of else o).dtype) for o in of]
        return dense(torch.autograd.grad(of, wanted, given, allow_unused=True))


WIDER_SUITES = {"wider": Wider("wider", methods.op_db)}
