"""PyTorch's own samples as cases: one for each (suite, entry, format, aspect).

A trial is one sample of a case: a function of the device, run on the host and on trn. To add a
suite, write a class with `cases()` and `trials(case)` and put it into SUITES.
"""

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from places import copied, placed
from torch.testing._internal import common_methods_invocations as methods
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.common_optimizers import optim_db
from torch.utils import _pytree as pytree

HOST = "cpu"

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.bool,
    torch.complex64,
)
BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}

LAYOUTS = {
    "coo": torch.sparse_coo,
    "csr": torch.sparse_csr,
    "csc": torch.sparse_csc,
    "bsr": torch.sparse_bsr,
    "bsc": torch.sparse_bsc,
}

# Indices that split a tensor are asked for on the host, by every accelerator.
HOST_ARGUMENTS = {"tensor_split"}

# Results hold whatever memory held before.
UNINITIALISED = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty"} | {
    "new_empty_strided"
}

Trial = Callable[..., Any]


class Case(NamedTuple):
    suite: str
    name: str
    dtype: str
    aspect: str

    def __str__(self) -> str:
        return "/".join(self)


class Suite(Protocol):
    places: tuple[str, str]  # what is right, and what is tried

    def cases(self) -> Iterator[Case]: ...
    def trials(self, case: Case) -> Iterator[Trial]: ...


def differentiable(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


def cotangent(output: torch.Tensor, drawn: torch.dtype | None = None) -> torch.Tensor:
    """A gradient for `output`, the same values on every device; `drawn` in another format."""
    if output.is_nested or output.layout != torch.strided:
        return torch.ones_like(output)
    generator = torch.Generator().manual_seed(7)
    drawn = drawn or output.dtype
    made = torch.randn(output.shape, generator=generator, dtype=drawn, device=HOST)
    return made.to(output.device, output.dtype)


def widened(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A leaf of the same values in a wider format."""
    return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)


def names_a_place(tree: Any) -> bool:
    """Whether the arguments say where the result belongs."""
    return any(
        isinstance(leaf, torch.Tensor | torch.device) or leaf == HOST
        for leaf in pytree.tree_leaves(tree)
    )


def gradients(outputs: Any, inputs: Any, drawn: torch.dtype | None = None) -> Any:
    """The gradients of all outputs with respect to all inputs that want one."""
    of = [leaf for leaf in pytree.tree_leaves(outputs) if differentiable(leaf)]
    wanted = [leaf for leaf in pytree.tree_leaves(inputs) if differentiable(leaf) and leaf.is_leaf]
    if not of or not wanted:
        return None
    given = [cotangent(o, drawn) for o in of]
    return torch.autograd.grad(of, wanted, given, allow_unused=True)


class Ops:
    """Operators: what op_db and its relatives sample."""

    places = (HOST, "trn")

    def __init__(self, name: str, *databases: list[Any]) -> None:
        self.name = name
        self.entries = {
            op.name + (f".{op.variant_test_name}" if op.variant_test_name else ""): op
            for op in itertools.chain(*databases)
        }

    def aspects(self, op: Any, dtype: torch.dtype) -> Iterator[str]:
        yield "forward"
        if op.supports_autograd and dtype in op.supported_backward_dtypes(HOST):
            yield "backward"
        if op.supports_out and self.name == "op":
            yield "out"
        if op.inplace_variant is not None:
            yield "inplace"
        for layout, value in LAYOUTS.items():
            if op.supports_sparse_layout(value):
                yield layout

    def cases(self) -> Iterator[Case]:
        for name, op in self.entries.items():
            for dtype in DTYPES:
                if op.supports_dtype(dtype, HOST):
                    for aspect in self.aspects(op, dtype):
                        yield Case(self.name, name, str(dtype).removeprefix("torch."), aspect)
            if op.error_inputs_func is not None:
                yield Case(self.name, name, "any", "errors")

    def trials(self, case: Case) -> Iterator[Trial]:
        op = self.entries[case.name]
        if case.aspect == "errors":
            for error in op.error_inputs(HOST):
                yield functools.partial(self.forward, op, error.sample_input)
            return
        dtype = BY_NAME[case.dtype]
        if case.aspect in LAYOUTS:
            samples = op.sample_inputs_sparse(LAYOUTS[case.aspect], HOST, dtype)
        else:
            samples = op.sample_inputs(HOST, dtype, requires_grad=case.aspect == "backward")
        run = {"backward": self.backward, "out": self.out, "inplace": self.inplace}.get(
            case.aspect, self.forward
        )
        for sample in samples:
            if case.aspect == "inplace" and sample.broadcasts_input:
                continue
            yield functools.partial(run, op, sample)

    @staticmethod
    def arguments(op: Any, sample: Any, device: str) -> tuple[Any, Any, Any]:
        first, args, kwargs = placed((sample.input, sample.args, sample.kwargs), device)
        return first, sample.args if op.name in HOST_ARGUMENTS else args, kwargs

    @staticmethod
    def place(sample: Any, device: str) -> contextlib.AbstractContextManager[Any]:
        """The default device, for factories that are told none."""
        told = names_a_place((sample.input, sample.args, sample.kwargs))
        return contextlib.nullcontext() if told else torch.device(device)

    @classmethod
    def forward(cls, op: Any, sample: Any, device: str) -> Any:
        first, args, kwargs = cls.arguments(op, sample, device)
        with cls.place(sample, device):
            return op(first, *args, **kwargs)

    @classmethod
    def backward(cls, op: Any, sample: Any, device: str) -> Any:
        first, args, kwargs = inputs = cls.arguments(op, sample, device)
        outputs = sample.output_process_fn_grad(op(first, *args, **kwargs))
        return gradients(outputs, inputs)

    @classmethod
    def out(cls, op: Any, sample: Any, device: str) -> Any:
        """Into empty tensors, which grow, and into strided ones, which keep their strides."""
        with cls.place(sample, device):
            return cls.into_both(op, *cls.arguments(op, sample, device))

    @staticmethod
    def into_both(op: Any, first: Any, args: Any, kwargs: Any) -> Any:
        plain = op(first, *args, **kwargs)
        results = pytree.tree_leaves(plain)
        if not results or not all(
            isinstance(r, torch.Tensor) and r.layout == torch.strided for r in results
        ):
            return None

        def into(make: Callable[[torch.Tensor], torch.Tensor]) -> Any:
            made = pytree.tree_map(make, plain)
            made = tuple(made) if isinstance(plain, tuple | list) else made
            torch.manual_seed(2)
            returned = pytree.tree_leaves(op(first, *args, **kwargs, out=made))
            made = pytree.tree_leaves(made)
            return made, [a is b for a, b in zip(returned, made, strict=True)]

        def spaced(result: torch.Tensor) -> torch.Tensor:
            double = torch.zeros((*result.shape, 2), dtype=result.dtype, device=result.device)
            return double[..., 0]

        return into(lambda r: torch.empty(0, dtype=r.dtype, device=r.device)), into(spaced)

    @classmethod
    def inplace(cls, op: Any, sample: Any, device: str) -> Any:
        first, args, kwargs = cls.arguments(op, sample, device)
        returned = op.inplace_variant(first, *args, **kwargs)
        return first, returned


class Modules:
    """nn.Module classes: forward, and gradients of parameters and inputs."""

    places = (HOST, "trn")

    entries: ClassVar = {info.name: info for info in module_db}

    def cases(self) -> Iterator[Case]:
        for name, info in self.entries.items():
            for dtype in DTYPES:
                if dtype in info.dtypes or dtype in (torch.bfloat16, torch.float16):
                    for aspect in ("train", "eval"):
                        yield Case("module", name, str(dtype).removeprefix("torch."), aspect)

    def trials(self, case: Case) -> Iterator[Trial]:
        info = self.entries[case.name]
        dtype, training = BY_NAME[case.dtype], case.aspect == "train"
        samples = info.module_inputs_func(
            info, device=HOST, dtype=dtype, requires_grad=True, training=training
        )
        for sample in samples:
            if sample.forward_input is not None:
                yield functools.partial(self.step, info, sample, dtype, training)

    @staticmethod
    def step(
        info: Any,
        sample: Any,
        dtype: torch.dtype,
        training: bool,
        device: str,
        wide: torch.dtype | None = None,
    ) -> Any:
        """One pass each way in `dtype`, or in `wide` from the values that `dtype` has."""
        built = sample.constructor_input
        module = info.module_cls(*copy.deepcopy(built.args), **copy.deepcopy(built.kwargs))
        module = module.to(dtype).to(wide).to(device).train(training)
        given = sample.forward_input
        inputs = placed((given.args, given.kwargs), device)
        if wide is not None:
            inputs = pytree.tree_map_only(torch.Tensor, lambda t: widened(t, wide), inputs)
        outputs = module(*inputs[0], **inputs[1])
        grads = gradients(outputs, (inputs, list(module.parameters())), wide and dtype)
        return outputs, grads, dict(module.state_dict())


class Optimizers:
    """Optimizers: three steps from the same gradients, in each of the implementations."""

    places = (HOST, "trn")

    entries: ClassVar = {info.name: info for info in optim_db}

    def cases(self) -> Iterator[Case]:
        for name, info in self.entries.items():
            for dtype in (torch.float32, torch.bfloat16, torch.complex64):
                if dtype.is_complex and not info.supports_complex:
                    continue
                for aspect in ("plain", *info.supported_impls):
                    if aspect != "fused" or HOST in info.supports_fused_on:
                        yield Case("optim", name, str(dtype).removeprefix("torch."), aspect)

    def trials(self, case: Case) -> Iterator[Trial]:
        info = self.entries[case.name]
        for sample in info.optim_inputs_func(device=HOST):
            flags = {impl: impl == case.aspect for impl in info.supported_impls}
            kwargs = {**sample.kwargs, **flags}
            yield functools.partial(self.steps, info, kwargs, BY_NAME[case.dtype])

    @staticmethod
    def steps(
        info: Any,
        kwargs: dict[str, Any],
        dtype: torch.dtype,
        device: str,
        wrap: Callable[[Any], Any] = lambda step: step,
    ) -> Any:
        generator = torch.Generator().manual_seed(3)
        shapes = ((4, 3), (5, 2)) if info.name == "Muon" else ((4, 3), (5,), ())

        def made(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        params = [torch.nn.Parameter(copied(made(shape), device)) for shape in shapes]
        optimizer = info.optim_cls(params, **placed(kwargs, device))
        step = wrap(optimizer.step)
        for _ in range(3):
            for param in params:
                grad = made(tuple(param.shape))
                param.grad = copied(
                    grad.to_sparse() if info.only_supports_sparse_grads else grad, device
                )
            step(lambda: torch.zeros(()) if info.step_requires_closure else None)
        return params, list(optimizer.state_dict()["state"].values())


SUITES: dict[str, Suite] = {
    "op": Ops("op", methods.op_db),
    "foreach": Ops(
        "foreach",
        methods.foreach_unary_op_db,
        methods.foreach_binary_op_db,
        methods.foreach_pointwise_op_db,
        methods.foreach_reduce_op_db,
        methods.foreach_other_op_db,
    ),
    "module": Modules(),
    "optim": Optimizers(),
}
