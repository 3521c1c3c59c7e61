"""Operators of other namespaces than aten: priced by what they call, or said not to be priced."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library, custom_op
from torch.nn import LinearCrossEntropyOptions
from torch.utils._pytree import tree_leaves

import torch_trn_emu
from torch_trn_emu.calls import is_of_library
from torch_trn_emu.compiler.records import UnpricedGraphWarning, reset
from torch_trn_emu.estimation import MODES

LIBRARY = Library("priced", "DEF")


def body(x: Tensor) -> Tensor:
    return (x * 2).sin() @ (x > 0).to(x.dtype)


@custom_op("priced::python", mutates_args=())
def python(x: Tensor) -> Tensor:
    return body(x)


@custom_op("priced::nested", mutates_args=())
def nested(x: Tensor) -> Tensor:
    return python(x) + 1


@custom_op("priced::in_place", mutates_args={"x"})
def in_place(x: Tensor) -> None:
    x.mul_(2).sin_()


@custom_op("priced::for_trn", mutates_args=(), device_types="cpu")
def for_trn(x: Tensor) -> Tensor:
    return x + 1


@custom_op("priced::of_host", mutates_args=(), device_types="cpu")
def of_host(x: Tensor) -> Tensor:
    return body(x)


@custom_op("priced::by_value", mutates_args=())
def by_value(x: Tensor) -> Tensor:
    return torch.from_numpy(x.cpu().numpy() + 1).to(x.device)


for_trn.register_kernel("trn")(body)
in_place.register_fake(lambda x: None)
for operator in (python, nested, for_trn, of_host, by_value):
    operator.register_fake(lambda x: torch.empty_like(x))
for name, keys in {"mm": ("CPU", "Meta"), "made": ("CompositeImplicitAutograd",)}.items():
    LIBRARY.define(f"{name}(Tensor x) -> Tensor")
    for key in keys:
        LIBRARY.impl(name, torch.empty_like if key == "Meta" else body, key)

CALLED = ("python", "nested", "in_place", "for_trn", "made")
UNKNOWN = ("of_host", "mm")


def launched(rows: Any) -> dict[str, tuple[int, str, float]]:
    return {row.op: (row.calls, row.status, pytest.approx(row.device_s)) for row in rows}


def on_trn(call: Callable[..., Any], *given: Tensor) -> dict[str, tuple[int, str, float]]:
    arguments = [x.to("trn") for x in given]
    torch.trn.reset_counters()
    call(*arguments)
    return launched(torch_trn_emu.op_report())


def on_meta(call: Callable[..., Any], *given: Tensor, mode: str = "eager") -> Any:
    arguments = [x.to("meta") for x in given]
    return launched(torch_trn_emu.estimate(call, *arguments, mode=mode).ops)


@pytest.mark.parametrize("name", CALLED)
def test_an_estimate_sees_what_an_operator_calls(name: str) -> None:
    call, x = getattr(torch.ops.priced, name), torch.ones(64, 64)
    found = on_meta(call, x)
    assert found == on_trn(call, x)
    assert all(op.startswith("aten::") for op in found)


@pytest.mark.parametrize("name", ["python", "for_trn"])
def test_in_a_graph_its_launches_are_its_own(name: str) -> None:
    call, x = getattr(torch.ops.priced, name), torch.ones(64, 64)
    estimated = on_meta(lambda x: call(x + 1) * 2, x, mode="compile")
    ran = on_trn(torch.compile(lambda x: call(x + 1) * 2, backend="trn"), x)
    (graph,) = [value for op, value in ran.items() if "graph" in op]
    (priced,) = [value for op, value in estimated.items() if "graph" in op]
    assert graph == priced
    assert {op: v for op, v in ran.items() if "graph" not in op} == on_trn(call, x)
    assert {op: v for op, v in estimated.items() if "graph" not in op} == on_trn(call, x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_a_kernel_of_the_host_alone_is_said(name: str, mode: str) -> None:
    call, x = getattr(torch.ops.priced, name), torch.ones(64, 64, device="meta")
    reset()
    with pytest.warns(UnpricedGraphWarning, match=f"priced::{name} has no kernel for trn"):
        (row,) = torch_trn_emu.estimate(call, x, mode=mode).ops
    assert f"priced::{name}" in row.op + row.note
    assert row.status == "not modelled" or f"priced::{name}" in row.note
    assert row.device_s > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        torch_trn_emu.estimate(call, x, mode=mode)
    (row,) = on_trn(call, torch.ones(64, 64)).values()
    assert row[1] == "not modelled"


def test_what_asks_for_values_is_said() -> None:
    reset()
    with pytest.warns(UnpricedGraphWarning, match="priced::by_value"):
        found = torch_trn_emu.estimate(by_value, torch.empty(64, 64, device="meta"))
    assert "not modelled" in [row.status for row in found.ops]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_chunks_of_cross_entropy_are_launched(reduction: str, mode: str) -> None:
    options = LinearCrossEntropyOptions(batch_chunk_size=64)

    def call(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return F.linear_cross_entropy(x, w, t, reduction=reduction, options=options)

    given = torch.ones(256, 64), torch.ones(500, 64), torch.ones(256, dtype=torch.int64)
    estimated, ran = on_meta(call, *given, mode=mode), on_trn(call, *given)
    for found in (estimated, ran):  # products with `out` are copied there on trn
        found.pop("aten::copy_", None)
        found.pop("graph 0 forward", None)
    assert {op: v for op, v in estimated.items() if "graph" not in op} == ran


# --- every operator that torch itself registers ---------------------------------------------------

GUESSES = {
    "number": 2, "int": 1, "float": 0.5, "bool": True, "str": "none", "List[int]": [0],
    "List[float]": [0.5], "List[bool]": [True],
}  # fmt: skip
# They make tensors of memory that there is, order what is done, or look at it.
FREE = (
    "inductor::_alloc_from_pool inductor::_reinterpret_tensor inductor::accumulate_grad_ "
    "inductor::resize_storage_bytes_ prims::_make_token prims::_sink_tokens prims::as_strided "
    "prims::resize"
).split()


def registered() -> Iterator[Any]:
    """Operators that are no row's, with a schema."""
    for name in sorted(getattr(torch, "_C")._dispatch_get_all_op_names()):  # noqa: B009
        space, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        others = space in ("prims", "inductor", "fsdp") or is_of_library(name)
        if others and space not in ("priced", "own", "trn_own", "aten"):
            found = getattr(getattr(torch.ops, space), packet, None)
            if found is not None:
                yield getattr(found, overload or "default")


def guessed(op: Any, device: str) -> list[Any] | None:
    made: list[Any] = []
    for argument in op._schema.arguments:
        kind = str(argument.type)
        if argument.has_default_value():
            break
        if kind == "Tensor":
            made.append(torch.ones(8, 8, device=device))
        elif kind == "List[Tensor]":
            made.append([torch.ones(8, 8, device=device)])
        elif kind.startswith("Optional") or kind in GUESSES:
            made.append(torch.float32 if argument.name == "dtype" else GUESSES.get(kind))
        else:
            return None
    return made


def runs(op: Any, device: str) -> bool:
    """Whether it takes the arguments that are guessed, and has to do with tensors."""
    arguments = guessed(op, device)
    try:
        made = op(*arguments) if arguments is not None else None
    except Exception:
        return False
    return any(isinstance(x, Tensor) for x in tree_leaves((arguments, made)))


@pytest.mark.filterwarnings("ignore")
def test_no_operator_of_torch_is_silently_free() -> None:
    seen, zero = set(), []
    for op in registered():
        if op.name() in FREE or op.is_view:
            continue
        if runs(op, "meta"):
            try:
                eager = torch_trn_emu.estimate(op, *guessed(op, "meta")).device_us
            except Exception as error:  # its body refuses what its shapes allow
                assert not isinstance(error, NotImplementedError), op  # noqa: PT017
                continue
            seen.add(op.name())
            zero += [(op.name(), "estimate")] * (eager == 0)
        if runs(op, "trn"):
            torch.trn.reset_counters()
            op(*guessed(op, "trn"))
            seen.add(op.name())
            zero += [(op.name(), "trn")] * (torch.trn.counters()["core_busy_time"] == 0)
    assert len(seen) > 50
    assert not zero


@pytest.mark.filterwarnings("ignore")
def test_nor_in_a_graph() -> None:
    for op in registered():
        traced = op.namespace not in ("prims", "fsdp")  # graphs have those that torch puts there
        if not traced or op.name() in FREE or op.is_view or not runs(op, "meta"):
            continue
        try:
            found = torch_trn_emu.estimate(op, *guessed(op, "meta"), mode="compile")
        except Exception:  # not traceable, in plain torch too
            continue
        made = [x for x in tree_leaves(op(*guessed(op, "meta"))) if isinstance(x, Tensor)]
        nothing = bool(made) and not any(x.numel() for x in made)  # graphs leave that out
        assert (found.device_us == 0) if nothing else (found.device_us > 0), op
