"""Which operators a model runs, and for which module: in forward and in backward.

Checked on torch 2.13.0: an operator of the backward pass belongs to the module whose forward made
its autograd node, found by the node's sequence number.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from ..torch_private import TorchDispatchMode, autograd_node, sequence_number

__all__ = ["Call", "Tracer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One operator as it was dispatched.

    module    path in the model, "" for the model itself
    ordinal   counts this operator's calls there
    returned  how often the module has returned before
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: str
    phase: str  # forward or backward
    ordinal: int
    returned: int = 0

    @property
    def name(self) -> str:
        """aten.addmm.default"""
        return str(self.func)


Around = Callable[[Call, Callable[[], Any]], Any]
Seen = Callable[[str, int, Any], None]


class Tracer(TorchDispatchMode):
    """While active, `around(call, run)` stands for every operator, and must return what run() does.

    on_output(path, ordinal, output)  is told what each module returns; its own operators are not
                                      the model's
    """

    sees_launches = True  # csrc/aten/observers.h

    def __init__(
        self, model: torch.nn.Module | None, around: Around, on_output: Seen | None = None
    ) -> None:
        super().__init__()
        self._model, self._around, self._on_output = model, around, on_output
        self._open: list[str] = []
        self._telling = False
        self._module_of_node: dict[int, str] = {}
        self._ordinals: Counter[tuple[str, str, str]] = Counter()
        self._hooks: list[Any] = []

    def __enter__(self) -> "Tracer":
        for path, module in self._model.named_modules() if self._model is not None else ():
            self._hooks += (
                module.register_forward_pre_hook(self._enter_module(path), prepend=True),
                module.register_forward_hook(self._leave_module(path), always_call=True),
            )
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _enter_module(self, path: str) -> Callable[..., None]:
        return lambda module, inputs: self._open.append(path)

    def _leave_module(self, path: str) -> Callable[..., None]:
        def leave(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if self._open:
                self._open.pop()
            self._ordinals[path, "", ""] += 1
            if self._on_output is not None:
                self._telling = True
                try:
                    self._on_output(path, self._ordinals[path, "", ""] - 1, output)
                finally:
                    self._telling = False

        return leave

    def _position(self) -> tuple[str, str]:
        node: Any = autograd_node()  # None in forward
        if node is not None:
            return self._module_of_node.get(node._sequence_nr(), ""), "backward"
        module = self._open[-1] if self._open else ""
        # The node was made just before; later operators that make none must not take it over.
        self._module_of_node.setdefault(sequence_number() - 1, module)
        return module, "forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if self._telling:
            return func(*args, **given)
        module, phase = self._position()
        key = (module, phase, str(func))
        self._ordinals[key] += 1
        call = Call(
            func=func,
            args=args,
            kwargs=given,
            module=module,
            phase=phase,
            ordinal=self._ordinals[key] - 1,
            returned=self._ordinals[module, "", ""],
        )
        return self._around(call, lambda: func(*args, **given))
