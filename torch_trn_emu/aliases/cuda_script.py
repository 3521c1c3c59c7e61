"""TorchScript under `--as-cuda`: compiled functions take the branches that eager ones take.

The interpreter asks no function mode, so the graphs themselves are translated, before they run:
names of devices, `is_cuda` and `Tensor.cuda()`. Checked on torch 2.13.0.
"""

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch

from ..torch_private import inline_script_calls, script_types

__all__ = ["map_scripts"]


def map_scripts(to_trn: Callable[[Any], Any]) -> None:
    """What `torch.jit` compiles, traces and loads names trn where the script names cuda."""
    jit: Any = torch.jit
    script, load = jit.script, jit.load

    @wraps(script)
    def translated_script(obj: Any, *args: Any, _frames_up: int = 0, **kwargs: Any) -> Any:
        made = script(obj, *args, _frames_up=_frames_up + 1, **kwargs)
        return made if _asked_by_torch() else _translated(made, to_trn)

    @wraps(load)
    def translated_load(*args: Any, **kwargs: Any) -> Any:
        return _translated(load(*args, **kwargs), to_trn)

    jit.script, jit.load = translated_script, translated_load


def _asked_by_torch() -> bool:
    """Whether torch compiles a formula of its own, which keeps its branches."""
    name: str = sys._getframe(2).f_globals.get("__name__", "")
    return name.startswith("torch.")


def _translated(made: Any, to_trn: Callable[[Any], Any]) -> Any:
    for graph in _graphs(made):
        _translate(graph, to_trn)
    return made


def _graphs(made: Any) -> Iterator[Any]:
    if isinstance(made, torch.jit.ScriptFunction):
        yield made.graph
    elif isinstance(made, torch.jit.ScriptModule):
        modules: list[Any] = list(made.modules())
        for module in modules:
            for name in module._c._method_names():
                yield module._c._get_method(name).graph


def _translate(graph: Any, to_trn: Callable[[Any], Any]) -> None:
    """Calls of other functions become part of the graph only where they name a device."""
    whole = graph.copy()
    inline_script_calls(whole)
    if not _rewrite(whole, to_trn):
        return
    inline_script_calls(graph)
    _rewrite(graph, to_trn)


def _rewrite(graph: Any, to_trn: Callable[[Any], Any]) -> int:
    count, before = 0, graph.insertPoint()
    for node in graph.findAllNodes("prim::Constant", True):
        if not node.hasAttribute("value") or node.kindOf("value") != "s":
            continue
        name = node.s("value")
        if to_trn(name) != name:
            node.s_("value", to_trn(name))
            count += 1
    for node in graph.findAllNodes("prim::is_cuda", True):
        _replace(graph, node, _is_trn(graph, node))
        count += 1
    for node in graph.findAllNodes("aten::cuda", True):
        _replace(graph, node, _moved(graph, node))
        count += 1
    graph.setInsertPoint(before)
    return count


def _made(graph: Any, kind: str, inputs: list[Any], type_: Any) -> Any:
    node = graph.insertNode(graph.create(kind, inputs, 1))
    node.output().setType(type_)
    return node.output()


def _is_trn(graph: Any, node: Any) -> Any:
    device_type, text, boolean = script_types
    graph.setInsertPoint(node)
    device = _made(graph, "prim::device", [node.inputsAt(0)], device_type.get())
    name = _made(graph, "prim::type", [device], text.get())
    return _made(graph, "aten::eq", [name, graph.insertConstant("trn")], boolean.get())


def _moved(graph: Any, node: Any) -> Any:
    graph.setInsertPoint(node)
    no = graph.insertConstant(False)
    inputs = [node.inputsAt(0), graph.insertConstant(torch.device("trn"))]
    inputs += [graph.insertConstant(None), no, no]
    return _made(graph, "aten::to", inputs, node.output().type())


def _replace(graph: Any, node: Any, value: Any) -> None:
    node.output().replaceAllUsesWith(value)
    node.destroy()
