"""Values of every collective; one spawn runs all checks. gloo: `make distributed-conformance`."""

import ast
from functools import cache

import launch
import pytest

RUNS = {"shm": 3, "gloo": 2}  # ranks


def checks_of(program: str) -> list[str]:
    tree = ast.parse((launch.PROGRAMS / program).read_text())
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in functions if name.startswith("check_")]


@cache
def outcomes(program: str, transport: str, ranks: int) -> dict[str, str]:
    return launch.outcomes(launch.run(program, ranks=ranks, TRN_EMU_TRANSPORT=transport))


@pytest.mark.parametrize(
    "transport", ["shm", pytest.param("gloo", marks=pytest.mark.distributed_conformance)]
)
@pytest.mark.parametrize("check", checks_of("values.py"))
def test_collective(check, transport):
    found = outcomes("values.py", transport, RUNS[transport])
    assert found.get(check, found.get("", "did not run")) == ""


@pytest.mark.parametrize(
    ("transport", "ranks"),
    [
        ("shm", 2),
        ("shm", 3),
        pytest.param("shm", 16, marks=pytest.mark.distributed_conformance),
        pytest.param("gloo", 3, marks=pytest.mark.distributed_conformance),
    ],
)
def test_calls_in_a_drawn_order(transport, ranks):
    [(check, found)] = outcomes("sequences.py", transport, ranks).items()
    assert (check, found) == ("check_calls_in_a_drawn_order", "")
