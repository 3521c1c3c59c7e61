"""The stub of the compiled bindings says what there is."""

import ast
import re
from pathlib import Path

import pytest

import torch_trn_emu
from torch_trn_emu import _C

PACKAGE = Path(torch_trn_emu.__file__).parent
STUB = ast.parse((PACKAGE / "_C.pyi").read_text())
FUNCTIONS = {n.name: n for n in STUB.body if isinstance(n, ast.FunctionDef)}
CLASSES = {n.name: n for n in STUB.body if isinstance(n, ast.ClassDef)}


def test_the_stub_has_the_names_of_the_library() -> None:
    assert {*FUNCTIONS, *CLASSES} == {name for name in dir(_C) if not name.startswith("__")}


def _signature(name: str) -> ast.FunctionDef:
    """What pybind11 writes as the first line of a docstring."""
    line = str(getattr(_C, name).__doc__).splitlines()[0]
    (made,) = ast.parse(f"def {line}: ...").body
    assert isinstance(made, ast.FunctionDef)
    return made


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stub_has_the_signature_of_the_library(name: str) -> None:
    stub, made = FUNCTIONS[name], _signature(name)
    given = [a.arg for a in made.args.args]
    if stub.args.posonlyargs:
        assert given == [f"arg{k}" for k in range(len(stub.args.posonlyargs))]
        assert not stub.args.args
    else:
        assert given == [a.arg for a in stub.args.args]
    assert [ast.unparse(d) for d in made.args.defaults] == [
        ast.unparse(d) for d in stub.args.defaults
    ]
    returned = ast.unparse(made.returns or ast.Constant(None)).removeprefix("torch_trn_emu._C.")
    if not re.search(r"\b(object|dict|list|tuple)\b(?!\[)", returned):  # which say no more
        assert ast.unparse(stub.returns or ast.Constant(None)) == returned


def test_nothing_is_any_but_what_python_hands_through() -> None:
    text = (PACKAGE / "_C.pyi").read_text()
    assert "__getattr__" not in text
    untyped = {n for n, f in FUNCTIONS.items() if "Any" in ast.unparse(f)}
    assert untyped == {"set_gloo_maker"}
