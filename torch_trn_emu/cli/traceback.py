"""A script's error as Python would show it: without the frames of this command line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

__all__ = ["from_script", "show_only_script"]

_TORCH = Path(torch.__file__).parent
_OURS = Path(__file__).parent
# Between the script and the modes that watch it.
_BETWEEN = (
    *(
        str(_TORCH / name)
        for name in ("_compile.py", "_dynamo/eval_frame.py", "_ops.py", "overrides.py")
    ),
    *map(str, (_OURS.parent / "estimation").glob("*.py")),
)


def _links(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def from_script(error: BaseException) -> bool:
    """Whether the user's script raised it, or cannot be compiled."""
    names = (link.tb_frame.f_globals.get("__name__") for link in _links(error.__traceback__))
    return ("__main__" in names and not _only_ours(error)) or isinstance(error, SyntaxError)


def _only_ours(error: BaseException) -> bool:
    """`python -m torch_trn_emu` is a `__main__` too."""
    return not any(_is_script(link) for link in _links(error.__traceback__))


def _is_script(link: TracebackType) -> bool:
    scope = link.tb_frame.f_globals
    ours = Path(link.tb_frame.f_code.co_filename).is_relative_to(_OURS.parent)
    return scope.get("__name__") == "__main__" and not ours


def _of_script(trace: TracebackType | None) -> TracebackType | None:
    """The links from the script's first line on, without those of the modes that watch it."""
    links = list(_links(trace))
    begin = next((i for i, link in enumerate(links) if _is_script(link)), len(links))
    shown: TracebackType | None = None
    for link in reversed(links[begin:]):
        file = link.tb_frame.f_code.co_filename
        if file not in _BETWEEN and not Path(file).is_relative_to(_OURS):
            shown = TracebackType(shown, link.tb_frame, link.tb_lasti, link.tb_lineno)
    return shown


def show_only_script(error: BaseException) -> None:
    """When Python prints the error at exit, it shows the script's own traceback."""
    print_it = sys.excepthook

    def hook(kind: Any, raised: BaseException, trace: TracebackType | None) -> None:
        if raised is error:
            trace = _of_script(trace)
        print_it(kind, raised.with_traceback(trace), trace)

    sys.excepthook = hook
