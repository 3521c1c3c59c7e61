"""Passes of the compiler beside a user's own in Inductor's options."""

import pytest
import torch
from torch.fx import Graph

from torch_trn_emu.compiler.own_passes import sums_kept
from torch_trn_emu.compiler.writes_in_place import versions_kept
from torch_trn_emu.torch_private.inductor import CustomGraphPass, config


class Users(CustomGraphPass):
    def __call__(self, graph: Graph) -> None:
        graph.call_function(torch.ops.aten.sum.default, (next(iter(graph.nodes)),))

    def uuid(self) -> str:
        return "users"


PLACES = {"joint_custom_post_pass": sums_kept, "post_grad_custom_post_pass": versions_kept}


@pytest.mark.parametrize("option", PLACES)
def test_a_users_passes_run_first(option: str) -> None:
    """Whether the option holds none, one or a list; afterwards it is what it was."""
    users = Users()
    for given in (None, users, [users], (users, users)):
        before = (
            [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
        )
        with config.patch({option: given}):
            with PLACES[option]():
                *first, own = getattr(config, option)
            assert first == before
            assert own.uuid().startswith("trn: ")
            assert getattr(config, option) is given


def test_sums_are_kept_that_a_users_pass_makes() -> None:
    graph = Graph()
    graph.placeholder("x")
    with config.patch(joint_custom_post_pass=Users()), sums_kept():
        for one in config.joint_custom_post_pass:
            one(graph)
    assert "recompute" in next(iter(reversed(graph.nodes))).meta
