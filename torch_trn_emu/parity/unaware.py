"""What a model would compute on trn if it did not know where it is: whether it is one program.

The model runs on trn a second time, and its tensors say that they are on the CPU. The two runs are
compared operator by operator: the first one that differs belongs to a module that asks for the
device and then does something else, which no number format explains.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from ..settings import DEVICE_TYPE
from ..torch_private import tree_leaves, tree_map
from .measure import Distance, distance, float_tensors
from .noise import SAFETY, unit_roundoff
from .place import Place
from .run import Model, RunResult, execute, moved_copy
from .trace import Call

__all__ = ["OtherComputation", "Stream", "find_other_computation"]

_CPU = torch.device("cpu")
_SAYS: dict[Any, Any] = {
    torch.Tensor.device.__get__: _CPU,
    torch.Tensor.is_cpu.__get__: True,  # type: ignore[attr-defined]
    torch.Tensor.get_device: -1,
}
_UNWRITTEN = frozenset(
    "empty empty_like empty_strided new_empty new_empty_strided empty_permuted resize_".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherComputation:
    """A module that computes something else on trn than on the host.

    op        the first operator that differs, as the model ran on trn; host_op: in its place
              where the tensors say that they are on the CPU; "" where nothing follows
    distance  between what the module returned in these two runs, of gradients in backward
    """

    module: str
    kind: str
    phase: str
    op: str
    host_op: str
    distance: Distance

    @property
    def name(self) -> str:
        """0.1 (Gate)"""
        return f"{self.module or 'the model'} ({self.kind})" if self.kind else "the model"

    @property
    def text(self) -> str:
        """What happened, in a line."""
        if self.op == self.host_op:
            what = f"{self.op} gets other arguments there"
        else:
            what = (
                f"it runs {self.op or 'nothing more'} where the CPU runs {self.host_op or 'none'}"
            )
        return f"{what}, {self.phase}; relative error {self.distance.relative:.3g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "module": self.module,
            "kind": self.kind,
            "phase": self.phase,
            "op": self.op,
            "host_op": self.host_op,
            **self.distance.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    op: str
    module: str
    phase: str
    returned: int  # calls of the module before this one
    values: bytes


class Stream:
    """`around` of a Tracer: notes each operator and a fingerprint of its results."""

    def __init__(self, around: Callable[[Call, Callable[[], Any]], Any] | None = None) -> None:
        self._around = around
        self.entries: list[_Entry] = []

    def around(self, call: Call, run: Callable[[], Any]) -> Any:
        result = run() if self._around is None else self._around(call, run)
        unwritten = call.func._schema.name.split("::")[-1] in _UNWRITTEN
        self.entries.append(
            _Entry(
                op=call.name,
                module=call.module,
                phase=call.phase,
                returned=call.returned,
                values=b"" if unwritten else _fingerprint(result),
            )
        )
        return result


def _fingerprint(result: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tree_leaves(result):
        if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
            plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(plain.view(torch.uint8).numpy().data)
        elif isinstance(tensor, (bool, int, float)):
            digest.update(repr(tensor).encode())
    return digest.digest()


class _SayingCpu(TorchFunctionMode):
    """Tensors on trn say that they are on the CPU; what is made for the CPU is made on trn.

    Autograd leaves such modes: where it calls a user's `backward`, the mode is entered again.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._backward = patch.object(BackwardCFunction, "apply", self._inside())

    def _inside(self) -> Any:
        apply: Any = BackwardCFunction.apply

        def inside(node: Any, *gradients: Any) -> Any:
            with self:
                return apply(node, *gradients)

        return inside

    @contextmanager
    def with_backward(self) -> Iterator[None]:
        """The mode for a block, backward passes of users' functions included."""
        with self._backward, self:
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        said = _SAYS.get(func)
        if said is not None:
            return said if args[0].device.type == DEVICE_TYPE else func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace(f".{DEVICE_TYPE}.", ".")
        args, kwargs = tree_map(self._here, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _here(self, value: Any) -> Any:
        return self._device if isinstance(value, torch.device) and value.type == "cpu" else value


def find_other_computation(
    model: Model, inputs: Any, where: Place, *, grads: bool, seed: int, ran: RunResult, seen: Stream
) -> OtherComputation | None:
    """Compare `ran` and `seen`, a run on trn, with one whose tensors say that they are on the CPU.

    None where both compute the same, or where the model cannot run so.
    """
    stream = Stream()
    inside = _SayingCpu(where.device).with_backward()
    try:
        unaware = execute(
            model,
            inputs,
            where,
            grads=grads,
            seed=seed,
            around=stream.around,
            inside=inside,
            made_copy=moved_copy,
        )
    except Exception:  # the model needs to know its device: nothing can be said
        return None
    found = _first_difference(seen.entries, stream.entries)
    if found is None:
        return None
    here, there, at = found
    apart = _apart(ran, unaware, at)
    if apart.relative <= _explained(ran, len(seen.entries)):
        return None
    kinds = {p: type(m).__name__ for p, m in getattr(model, "named_modules", dict)() or ()}
    module = _at_fault(at, ran, unaware)
    return OtherComputation(
        module=module,
        kind=kinds.get(module, ""),
        phase=at.phase,
        op=here.op if here else "",
        host_op=there.op if there else "",
        distance=apart,
    )


def _first_difference(
    ours: list[_Entry], theirs: list[_Entry]
) -> tuple[_Entry | None, _Entry | None, _Entry] | None:
    """The first operators that differ, and the one of them whose module is at fault."""
    for i, (here, there) in enumerate(zip(ours, theirs, strict=False)):
        if (here.op, here.values) != (there.op, there.values):
            skipped = _steps_to(here, theirs[i:]) < _steps_to(there, ours[i:])
            return here, there, there if skipped else here
    shorter = min(len(ours), len(theirs))
    if len(ours) > shorter:
        return ours[shorter], None, ours[shorter]
    return (None, theirs[shorter], theirs[shorter]) if len(theirs) > shorter else None


def _steps_to(entry: _Entry, entries: list[_Entry]) -> float:
    """How many entries precede this operator of this call of its module."""
    for steps, other in enumerate(entries):
        if (other.op, other.module, other.returned) == (entry.op, entry.module, entry.returned):
            return steps
    return float("inf")


def _at_fault(at: _Entry, ran: RunResult, unaware: RunResult) -> str:
    """The module of this operator; where only one of the runs calls it, the one that calls it."""
    call = (at.module, at.returned)
    if at.phase != "forward" or (call in ran.modules) == (call in unaware.modules):
        return at.module
    called = {path for path, _ in ran.modules} & {path for path, _ in unaware.modules}
    module = at.module
    while module:
        module = module.rpartition(".")[0]
        if module in called:
            break
    return module


def _apart(ran: RunResult, unaware: RunResult, at: _Entry) -> Distance:
    """Of what the module returned; where that agrees or is unknown, of outputs and gradients."""
    endless = Distance(elements=1, max_abs=float("inf"), squared_error=float("inf"))
    key = (at.module, at.returned)
    pairs: list[tuple[Any, Any]] = []
    if at.phase == "forward" and key in ran.modules and key in unaware.modules:
        pairs.append((unaware.modules[key], ran.modules[key]))
    pairs.append((unaware.output, ran.output))
    if ran.gradients.keys() != unaware.gradients.keys():
        return endless
    pairs += [(unaware.gradients[name], g) for name, g in ran.gradients.items()]
    largest = Distance()
    for expected, actual in pairs:
        try:
            found = distance(expected, actual)
        except ValueError:
            return endless
        if at.phase == "forward" and found.relative:
            return found
        largest = max(largest, found, key=lambda d: d.relative)
    return largest


def _explained(ran: RunResult, operators: int) -> float:
    """Relative error of another order of the same float arithmetic."""
    dtypes = {str(t.dtype).removeprefix("torch.") for t in float_tensors(ran.output)}
    roundoff = max(map(unit_roundoff, dtypes), default=2.0**-24)
    return float(SAFETY * roundoff * min(operators, 16) ** 0.5)
