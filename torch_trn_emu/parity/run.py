"""Runs a copy of a model in one place: what it returns, its loss, its gradients."""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..torch_private import tree_leaves, tree_map
from .measure import float_tensors
from .place import Place
from .trace import Around, Tracer

__all__ = ["Model", "RunResult", "execute", "loss_of", "moved_copy", "own_copy"]

Model = torch.nn.Module | Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Everything on the host.

    modules    (path, ordinal of the call) -> the floating tensors that the module returned
    gradients  by parameter name, and "input 0" for inputs that ask for one
    """

    output: Any
    loss: float | None
    modules: Mapping[tuple[str, int], list[torch.Tensor]]
    gradients: Mapping[str, torch.Tensor]


def own_copy(model: Model, where: Place) -> Model:
    """The module on the device, sharing nothing with the given one; a function as it is."""
    if not isinstance(model, torch.nn.Module):
        return model
    if any(p.device.type == "meta" for p in model.parameters()):
        raise ValueError("the model is on meta and has no values: give it some, then compare.")
    copied = copy.deepcopy(model).to(where.device)
    copied.zero_grad(set_to_none=True)
    return copied


def moved_copy(model: Model, where: Place) -> Model:
    """As `own_copy`, past the module's own `to` and `_apply`, which may do something else."""
    if not isinstance(model, torch.nn.Module):
        return model
    copied, known = copy.deepcopy(model), dict[int, torch.Tensor]()
    for module in copied.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = known.setdefault(id(tensor), _moved(tensor, where))  # type: ignore[assignment]
        if isinstance(module, torch.nn.RNNBase):
            module._init_flat_weights()  # its list of parameters
    return copied


def _moved(tensor: torch.Tensor, where: Place) -> torch.Tensor:
    there = tensor.detach().to(where.device, copy=True)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(there, requires_grad=tensor.requires_grad)
    return there


def call_with(model: Model, inputs: Any) -> Any:
    """A mapping gives keyword arguments, a tuple or list positional ones, a tensor is the one."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def loss_of(output: Any) -> torch.Tensor | None:
    """`output.loss`, a single number as it is, else the mean square distance to a wave.

    None where no output asks for a gradient. The wave, cos(0), cos(1), ..., is bounded below, and
    no normalisation makes its gradient vanish.
    """
    loss = getattr(output, "loss", None)
    if isinstance(loss, torch.Tensor):
        return loss
    found = [t for t in float_tensors(output) if t.requires_grad]
    if len(found) == 1 and found[0].numel() == 1:
        return found[0].sum()
    return sum(map(_to_wave, found), torch.zeros(())) if found else None


def _to_wave(output: torch.Tensor) -> torch.Tensor:
    real = torch.view_as_real(output) if output.is_complex() else output
    wave = torch.arange(real.numel(), dtype=torch.float32).cos().view(real.shape)
    return (real.float() - wave.to(real.device)).square().mean()


def execute(
    model: Model,
    inputs: Any,
    where: Place,
    *,
    grads: bool,
    seed: int,
    around: Around | None = None,
    inside: AbstractContextManager[Any] | None = None,
    made_copy: Callable[[Model, Place], Model] = own_copy,
) -> RunResult:
    """Run a copy of the model there, from the same seed; `inside` a context, if given."""
    copied = made_copy(model, where)
    asking = _asking(inputs)
    given = where.move(inputs)
    leaves = _asking_alike(given, asking)
    seen: dict[tuple[str, int], list[torch.Tensor]] = {}

    def keep(path: str, ordinal: int, output: Any) -> None:
        seen[path, ordinal] = [t.detach().cpu().clone() for t in float_tensors(output)]

    torch.manual_seed(seed)
    module = copied if isinstance(copied, torch.nn.Module) else None
    tracer = Tracer(module, around or (lambda call, run: run()), keep)
    with where.under_policy(), tracer, inside or nullcontext():
        output = call_with(copied, given)
        loss = loss_of(output) if grads else None
        if loss is not None and loss.requires_grad:
            torch.autograd.backward(loss)  # a method would leave the modes that are active
    named = {f"input {i}": leaf for i, leaf in leaves.items()}
    named |= dict(module.named_parameters()) if module is not None else {}
    return RunResult(
        output=_on_host(output),
        loss=float(loss.detach()) if loss is not None else None,
        modules=seen,
        gradients={n: p.grad.detach().cpu() for n, p in named.items() if p.grad is not None},
    )


def _asking(inputs: Any) -> list[int]:
    leaves = tree_leaves(inputs)
    return [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.requires_grad]


def _asking_alike(given: Any, positions: list[int]) -> dict[int, torch.Tensor]:
    leaves = tree_leaves(given)
    return {i: leaves[i].requires_grad_() for i in positions}


def _on_host(output: Any) -> Any:
    def host(value: Any) -> Any:
        return value.detach().cpu() if isinstance(value, torch.Tensor) else value

    return tree_map(host, output)
