"""Training in parallel: the losses of gloo on the CPU. One spawn of two ranks for all of it."""

import launch
import pytest
from test_values import checks_of

BOUND = "check_meshes_after_device_id"
CHECKS = [*checks_of("parallel.py"), *checks_of("random_dtensors.py")]
CHECKS.remove(BOUND)
# What pytest runs; the rest under `make distributed-conformance`.
FAST = ("check_ddp", "check_fsdp2", "check_tensor_and_sequence_parallel", "check_expert_parallel",
        "check_random_dtensors", "check_dtensor", "check_uneven_pipeline_stages",
        "check_functions_with_gradients",
        "check_the_first_random_dtensor_synchronizes_seeds")  # fmt: skip


@pytest.fixture(scope="module")
def fast():
    return launch.outcomes(launch.run("parallel.py", *FAST))


@pytest.fixture(scope="module")
def all_checks():
    return launch.outcomes(launch.run("parallel.py"))


@pytest.mark.parametrize("check", FAST)
def test_parallel(check, fast):
    assert fast.get(check, fast.get("", "did not run")) == ""


@pytest.mark.distributed_conformance
@pytest.mark.parametrize("check", [c for c in CHECKS if c not in FAST])
def test_parallel_widely(check, all_checks):
    assert all_checks.get(check, all_checks.get("", "did not run")) == ""


def test_a_mesh_of_a_bound_device_splits_its_group():
    checks = (BOUND, "check_compiled_collectives", "check_compiled_random_dtensors",
              "check_generators_of_random_dtensors",
              "check_random_dtensors_of_a_graph_for_all_ranks")  # fmt: skip
    found = launch.outcomes(launch.run("parallel.py", "bound", *checks))
    assert found == dict.fromkeys(checks, "")


def test_a_script_for_cuda_runs():
    for rank, ended in enumerate(launch.run("as_cuda.py", TRN_EMU_AS="cuda")):
        assert "done" in ended.out, f"rank {rank}: {ended.err[-3000:]}"
        assert ended.code == 0


def test_clocks():
    runs = [launch.run("clocks.py") for _ in range(2)]
    found = launch.outcomes(runs[0])
    assert set(found.values()) == {""}, found
    lines = [
        [line for one in run for line in one.out.splitlines() if line.startswith("counters")]
        for run in runs
    ]
    assert len(lines[0]) == 2
    assert lines[0] == lines[1], "two runs give the same counters"
