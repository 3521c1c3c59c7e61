"""Rows of fused optimizers and of the gradient scaler: one pass over the lists of a call.

The formulas are those of torch's fused kernels. What all elements share is worked out once on the
core: the bias corrections from the step count, the learning rate where it is a tensor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log, sqrt
from types import MappingProxyType
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled
from ..isa import Role
from ..kernels.multi_tensor import Tiles, pass_over
from .op import Lowered

__all__ = ["OPTIMIZERS", "fused", "unscale"]

Named = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """Lists of state after parameters and gradients, scalars in the schema's order, formulas."""

    state: tuple[str, ...]
    scalars: tuple[str, ...]
    first: Callable[[Tiles, Named], None]
    each: Callable[[Tiles, Named], None]
    counts_steps: bool = True
    unused: Callable[[Named], tuple[str, ...]] = field(default=lambda _: ())


def _negated_rate(t: Tiles, a: Named) -> None:
    """The column "-lr"."""
    t.column("-lr")
    if isinstance(a["lr"], TensorArg):
        t.scalar("-lr", "lr", op0="multiply", imm0=-1.0)
    else:
        t.b.emit("memset", t("-lr"), value=-float(a["lr"]))


def _gradient(t: Tiles, a: Named) -> None:
    """Unscaled, and with its sign turned to maximize; weight decay is the optimizer's own."""
    if a["grad_scale"] is not None:
        t.scalar("g", "g", "1 / scale", op0="multiply")
    if a["maximize"]:
        t.scalar("g", "g", op0="multiply", imm0=-1.0)


def _decayed(t: Tiles, a: Named) -> None:
    if a["weight_decay"]:
        t.scaled("g", "p", t.constant(a["weight_decay"]), "add", "g")


def _adam_first(t: Tiles, a: Named) -> None:
    for name in ("step size", "1 / root", "keep"):
        t.column(name)
    # 1 - beta^step, whose logarithm the exponential scales
    t.act("step size", "step", "exp", log(a["beta1"]) if a["beta1"] else -1e30)
    t.scalar("step size", "step size", op0="multiply", imm0=-1.0, op1="add", imm1=1.0)
    t.act("step size", "step size", "reciprocal")
    t.scalar("step size", "step size", "-lr", op0="multiply")
    t.act("1 / root", "step", "exp", log(a["beta2"]) if a["beta2"] else -1e30)
    t.scalar("1 / root", "1 / root", op0="multiply", imm0=-1.0, op1="add", imm1=1.0)
    t.act("1 / root", "1 / root", "rsqrt")
    decay = a["weight_decay"] * a["decoupled"]
    t.scalar("keep", "-lr", op0="multiply", imm0=decay, op1="add", imm1=1.0)
    t.constant(a["beta1"]), t.constant(a["beta2"])
    if a["weight_decay"] and not decay:
        t.constant(a["weight_decay"])


def _adam(t: Tiles, a: Named) -> None:
    _gradient(t, a)
    if a["decoupled"]:
        if a["weight_decay"]:
            t.scalar("p", "p", "keep", op0="multiply")
    else:
        _decayed(t, a)
    t.act("u", "g", "copy", 1 - a["beta1"])
    t.scaled("m", "m", t.constant(a["beta1"]), "add", "u")
    t.act("u", "g", "square", sqrt(1 - a["beta2"]))
    t.scaled("v", "v", t.constant(a["beta2"]), "add", "u")
    if a["amsgrad"]:
        t.tensor("vmax", "vmax", "max", "v")
    t.act("u", "vmax" if a["amsgrad"] else "v", "sqrt")
    t.scalar("u", "u", "1 / root", op0="multiply", op1="add", imm1=a["eps"])
    t.act("u", "u", "reciprocal")
    t.scaled("u", "u", "step size", "multiply", "m")
    t.tensor("p", "p", "add", "u")


def _sgd_first(t: Tiles, a: Named) -> None:
    for value in (a["weight_decay"], a["momentum"]):
        if value:
            t.constant(value)


def _sgd(t: Tiles, a: Named) -> None:
    _gradient(t, a)
    _decayed(t, a)
    step = "g"
    if a["momentum"]:
        if a["is_first_step"]:
            t.act("m", "g", "copy")
        else:
            t.act("u", "g", "copy", 1 - a["dampening"])
            t.scaled("m", "m", t.constant(a["momentum"]), "add", "u")
        step = "m"
        if a["nesterov"]:
            t.scaled("g", "m", t.constant(a["momentum"]), "add", "g")
            step = "g"
    t.scaled("p", step, "-lr", "add", "p")


def _adagrad_first(t: Tiles, a: Named) -> None:
    t.column("step size")
    decay = a["lr_decay"]
    t.scalar("step size", "step", op0="multiply", imm0=decay, op1="add", imm1=1 - decay)
    t.act("step size", "step size", "reciprocal")
    t.scalar("step size", "step size", "-lr", op0="multiply")
    if a["weight_decay"]:
        t.constant(a["weight_decay"])


def _adagrad(t: Tiles, a: Named) -> None:
    _gradient(t, a)
    _decayed(t, a)
    t.act("u", "g", "square")
    t.tensor("sum", "sum", "add", "u")
    t.act("u", "sum", "sqrt")
    t.scalar("u", "u", op0="add", imm0=a["eps"])
    t.act("u", "u", "reciprocal")
    t.scaled("u", "u", "step size", "multiply", "g")
    t.tensor("p", "p", "add", "u")


_ADAM = Optimizer(
    state=("m", "v", "vmax"),
    scalars=("lr", "beta1", "beta2", "weight_decay", "eps", "amsgrad", "maximize"),
    first=_adam_first,
    each=_adam,
    unused=lambda a: () if a["amsgrad"] else ("vmax",),
)
_SGD = Optimizer(
    state=("m",),
    scalars=("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize",
             "is_first_step"),
    first=_sgd_first,
    each=_sgd,
    counts_steps=False,
    unused=lambda a: () if a["momentum"] else ("m",),
)  # fmt: skip
_ADAGRAD = Optimizer(
    state=("sum",),
    scalars=("lr", "lr_decay", "weight_decay", "eps", "maximize"),
    first=_adagrad_first,
    each=_adagrad,
)
OPTIMIZERS = MappingProxyType(
    {"_fused_adamw": _ADAM, "_fused_adam": _ADAM, "_fused_sgd": _SGD, "_fused_adagrad": _ADAGRAD}
)
# A call without its scalars is priced with torch's defaults.
_USUAL = MappingProxyType(
    {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8, "momentum": 0.9,
     "lr_decay": 0.0}
)  # fmt: skip


def fused(call: Call, target: Target) -> Lowered:
    """One pass that reads parameters, gradients and state and writes all but the gradients."""
    optimizer = OPTIMIZERS[call.name]
    lists: dict[str, Any] = dict(zip(("p", "g", *optimizer.state), call.arguments, strict=False))
    total = sum(t.numel for t in lists["p"])
    if not total:
        return ()
    at = 2 + len(optimizer.state) + optimizer.counts_steps
    a: dict[str, Any] = {n: call.argument(at + k, _USUAL.get(n, 0))
                         for k, n in enumerate(optimizer.scalars)}  # fmt: skip
    a["decoupled"] = call.name == "_fused_adamw"
    at += len(optimizer.scalars)
    a["grad_scale"], a["found_inf"] = call.argument(at), call.argument(at + 1)
    operands = {n: (lists.get(n) or lists["p"])[0].dtype for n in ("p", "g", *optimizer.state)
                if n not in optimizer.unused(a)}  # fmt: skip
    stored = [n for n in operands if n != "g"]
    shared = {n: a[n].dtype for n in ("lr", "grad_scale", "found_inf")
              if isinstance(a.get(n), TensorArg)}  # fmt: skip
    if optimizer.counts_steps:
        steps = call.argument(1 + len(optimizer.state) + 1, ())
        shared["step"] = steps[0].dtype if steps else "float32"
    skips = a["found_inf"] is not None
    kept = [f"old {n}" for n in stored] if skips else []

    def first(t: Tiles) -> None:
        _negated_rate(t, a)
        if a["grad_scale"] is not None:
            t.column("1 / scale")
            t.act("1 / scale", "grad_scale", "reciprocal")
        optimizer.first(t, a)

    def each(t: Tiles) -> None:
        for old in kept:
            t.act(old, old.removeprefix("old "), "copy")
        optimizer.each(t, a)
        for old in kept:
            new = t(old.removeprefix("old "))
            every = t.shared["found_inf"].box((1, t.rows), (0, t.count))
            t.b.emit("select", new, every, t(old), new)

    program = pass_over(
        call.name,
        total,
        operands,
        stored=stored,
        work=["u", *kept],
        shared=shared,
        first=first,
        each=each,
        chip=target.chip,
        cores=target.cores,
    )
    held: dict[str, Any] = {
        **lists,
        **{n: a[n] for n in ("lr", "grad_scale", "found_inf") if n in shared},
    }
    held |= {f"new {n}": lists[n] for n in stored if n in lists}
    if optimizer.counts_steps and steps:
        held["step"] = steps[0]
    return (labelled(program, held),)


def unscale(call: Call, target: Target) -> Lowered:
    """Gradients times `inv_scale`, and whether one of them was not finite."""
    lists = call.argument(0, ())
    total = sum(t.numel for t in lists)
    if not total:
        return ()
    shared = {"found_inf": call.argument(1).dtype, "inv_scale": call.argument(2).dtype}

    def first(t: Tiles) -> None:
        t.column("found")
        t.column("some")
        t.b.emit("memset", t("found"), value=0.0)

    def each(t: Tiles) -> None:
        t.tensor("u", "g", "subtract", "g")  # 0, or NaN where it is not finite
        t.scalar("u", "u", op0="not_equal", imm0=0.0)
        t.b.emit("tensor_reduce", t("some"), t("u"), op="max")
        t.tensor("found", "found", "max", "some")
        t.scalar("g", "g", "inv_scale", op0="multiply")

    def last(t: Tiles) -> None:
        t.tensor("found", "found", "max", "found_inf")
        all_of = t.b.sbuf("found on one", 1, "float32")
        one = all_of.box((1, 1), (1, 1))
        t.b.emit("tensor_partition_reduce", one, t("found"), op="max")
        out = t.b.hbm("new found_inf", (1,), shared["found_inf"], Role.OUTPUT)
        t.b.store(out.box((1, 1), (1, 1)), one)

    program = pass_over(
        call.name,
        total,
        {"g": lists[0].dtype},
        stored=["g"],
        work=["u"],
        shared=shared,
        first=first,
        each=each,
        last=last,
        chip=target.chip,
        cores=target.cores,
    )
    found = call.argument(1)
    held = {"g": lists, "new g": lists, "found_inf": found, "new found_inf": found}
    return (labelled(program, {**held, "inv_scale": call.argument(2)}),)
