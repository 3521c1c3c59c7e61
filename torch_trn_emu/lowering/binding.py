"""How a call's tensors lie in the HBM buffers of its programs: what lets the machine compute it.

A row of OPS whose field `bind` is set can say it for a call and its programs. The views are chains
of tensor methods, so this layer needs no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..isa import Program
from .call import Call

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Bind", "Binding", "Feed", "Programs", "Taken", "as_it_is"]


def as_it_is(x: "Tensor") -> "Tensor":
    return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What an input buffer holds, element by element: an argument of the call, or a constant.

    argument  its position in the schema; in a list, the list's position and the tensor's. A list
              is its tensors one after the other
    view      from the argument to what the buffer has in order
    memory    the buffer has the argument's memory, from its first element to its last
    integers  the numbers are places, which may be integers; elsewhere the machine has floats
    """

    argument: tuple[int, ...] = ()
    view: Callable[["Tensor"], "Tensor"] = as_it_is
    memory: bool = False
    integers: bool = False
    constant: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Where a result comes from: an output buffer in its shape, turned by `view`.

    rounds  the program stores float32 where torch keeps 16 bits
    """

    buffer: str
    rounds: bool = False
    view: Callable[["Tensor"], "Tensor"] = as_it_is


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Buffers by name.

    results  one entry for each result of the call, None for what the programs do not make
    written  arguments that are written in place, by output buffer: tensors, or lists of them
    links    for each program, what a buffer is fed with where that has another name, or is made
             by a program before. What program k makes as "out" is also called "k out"
    """

    feeds: Mapping[str, Feed]
    results: tuple[Taken | None, ...] = ()
    written: Mapping[str, int] = field(default_factory=dict)
    links: tuple[Mapping[str, str], ...] = ()


# Of one call; they run one after the other, and buffers of one name hold the same.
Programs = tuple[Program, ...]
# Raises Unimplemented for a call of which the program has the cost only.
Bind = Callable[[Call, Programs], Binding]
