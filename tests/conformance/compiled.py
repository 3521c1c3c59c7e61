"""The same samples compiled: each entry's results and gradients on trn, compiled against eager.

A case compiles anew, so it takes a few of its entry's samples: the one with most elements, which
fills vector registers, then the smallest, then the one between. What is compiled must compile:
`strict` makes a graph that would run eagerly an error.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cases import BY_NAME, DTYPES, HOST, Case, Ops, Optimizers, Trial, gradients, methods
from places import NotCompiled
from torch.utils import _pytree as pytree

from torch_trn_emu import compiler

EAGER, COMPILED = "trn", "trn compiled"
FORMATS = (torch.float32, torch.bfloat16)
# The generator's numbers are those of eager operators under fallback_random alone.
OPTIONS = {"strict": True, "fallback_random": True}
MOST_ELEMENTS = 20_000


def elements(sample: Any) -> int:
    leaves = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))


def few(samples: Iterator[Any]) -> list[Any]:
    """At most three samples: most elements, fewest, the middle."""
    known = sorted((s for s in samples if elements(s) <= MOST_ELEMENTS), key=elements)
    places = dict.fromkeys((len(known) - 1, 0, len(known) // 2))
    return [known[place] for place in places] if known else []


def formats(op: Any) -> list[torch.dtype]:
    """The two formats of models; another one where an entry takes neither."""
    known = [dtype for dtype in DTYPES if op.supports_dtype(dtype, HOST)]
    return [dtype for dtype in FORMATS if dtype in known] or known[:1]


def prepared(function: Callable[..., Any], place: str) -> Callable[..., Any]:
    """The function as the place calls it."""
    if place == EAGER:
        return function
    torch._dynamo.reset()
    compiler.reset()
    return torch.compile(function, backend="trn", dynamic=False, options=OPTIONS)


def check_graphs() -> None:
    """Raises where the last compiled call was not compiled in full."""
    rows = [row for row in compiler.report() if row.name != "all graphs"]
    unpriced = [row.reason for row in rows if row.status == "note"]
    if unpriced:
        raise NotCompiled(unpriced[0])
    if not any(row.status == "compiled" for row in rows):
        raise NotCompiled("Dynamo makes no graph of it")


class CompiledOps(Ops):
    """Results, and gradients where there are any, of an operator."""

    places = (EAGER, COMPILED)

    def cases(self) -> Iterator[Case]:
        for name, op in self.entries.items():
            for dtype in formats(op):
                tracked = op.supports_autograd and dtype in op.supported_backward_dtypes(HOST)
                aspect = "backward" if tracked else "forward"
                yield Case(self.name, name, str(dtype).removeprefix("torch."), aspect)

    def trials(self, case: Case) -> Iterator[Trial]:
        op, tracked = self.entries[case.name], case.aspect == "backward"
        for sample in few(op.sample_inputs(HOST, BY_NAME[case.dtype], requires_grad=tracked)):
            yield functools.partial(self.step, op, sample)

    @classmethod
    def step(cls, op: Any, sample: Any, place: str) -> Any:
        first, args, kwargs = inputs = cls.arguments(op, sample, "trn")
        with cls.place(sample, "trn"):
            outputs = prepared(op.op, place)(first, *args, **kwargs)
        grads = gradients(sample.output_process_fn_grad(outputs), inputs)
        if place == COMPILED:
            check_graphs()
        return outputs, grads


class CompiledOptimizers(Optimizers):
    """Three steps of a compiled `optimizer.step`."""

    places = (EAGER, COMPILED)

    def cases(self) -> Iterator[Case]:
        for case in super().cases():
            if BY_NAME[case.dtype] in FORMATS:
                yield case._replace(suite="compiled_optim")

    def trials(self, case: Case) -> Iterator[Trial]:
        info = self.entries[case.name]
        for sample in info.optim_inputs_func(device=HOST)[:3]:
            flags = {impl: impl == case.aspect for impl in info.supported_impls}
            kwargs = {**sample.kwargs, **flags}
            yield functools.partial(self.compiled_steps, info, kwargs, BY_NAME[case.dtype])

    @classmethod
    def compiled_steps(
        cls, info: Any, kwargs: dict[str, Any], dtype: torch.dtype, place: str
    ) -> Any:
        made = cls.steps(info, kwargs, dtype, "trn", functools.partial(prepared, place=place))
        if place == COMPILED:
            check_graphs()
        return made


COMPILED_SUITES = {
    "compiled_op": CompiledOps("compiled_op", methods.op_db),
    "compiled_foreach": CompiledOps(
        "compiled_foreach",
        methods.foreach_unary_op_db,
        methods.foreach_binary_op_db,
        methods.foreach_pointwise_op_db,
        methods.foreach_reduce_op_db,
        methods.foreach_other_op_db,
    ),
    "compiled_optim": CompiledOptimizers(),
}
