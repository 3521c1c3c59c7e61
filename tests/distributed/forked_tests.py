"""Runs test files of torch's repository, each test in a fork of a process that imported its file.

Each rank of a test that starts processes is a fork as well: a spawned one would import torch anew.
Prints `file`, then `all` with the tests' names, then `end` with name, outcome, how many processes
used memory of trn, and the error, one test a line. Standard input has, as JSON, the tests to leave
out or, with the word `only` before them, those to run; `after` and a count leave out the first.

    python forked_tests.py WAY SECONDS_OF_A_TEST SECONDS_OF_A_FILE FILE...
"""

import contextlib
import ctypes
import gc
import importlib.util
import json
import multiprocessing.process
import multiprocessing.util
import os
import random
import signal
import sys
import tempfile
import time
import unittest
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing


def prepare(way: str) -> None:
    """What a test finds as on a host of CUDA devices, or trn where torch lists its own names."""
    import torch._dynamo  # what most files import, once
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel
    import torch.testing._internal.common_fsdp
    import torch.testing._internal.distributed._tensor.common_dtensor

    if way == "gloo":
        return
    # The process of a test forks its ranks, so that it must not use a device itself.
    from torch.testing._internal import common_device_type, common_utils

    def set_up(cls):
        cls.no_magma, cls.no_cudnn, cls.cudnn_version = True, True, None
        cls.device_mod = getattr(torch, cls.device_type)
        cls.primary_device = f"{cls.device_type}:0"

    common_device_type.CUDATestBase.setUpClass = classmethod(set_up)
    common_device_type.PrivateUse1TestBase.device_type = "trn"
    common_device_type.PrivateUse1TestBase.setUpClass = classmethod(set_up)
    # CUDA's own calls: a test that moves to another stream of every device.
    common_utils.TestCase.enforceNonDefaultStream = lambda self: contextlib.nullcontext()
    if way == "cuda":  # trn refuses the question; suites ask when imported
        torch.cuda.nccl.version = lambda: (2, 28, 0)
        return
    from torch.testing._internal import common_distributed, common_fsdp
    from torch.testing._internal.distributed._tensor import common_dtensor

    common_distributed.DDP_RANK_DEVICES.append("trn")
    common_fsdp.DEVICE_TYPE, common_fsdp.DISTRIBUTED_BACKEND = "trn", "trn"
    common_fsdp.DEVICE_COUNT = 4

    def init_pg(self, eager_init, backend=None):  # torch's has a list of backends
        torch.accelerator.set_device_index(self.rank)
        device = torch.device("trn", self.rank) if eager_init else None
        torch.distributed.init_process_group(
            backend or self.backend, world_size=self.world_size, rank=self.rank,
            init_method=f"file://{self.file_name}", device_id=device,
        )  # fmt: skip

    common_dtensor.DTensorTestBase.init_pg = init_pg


def fork_always() -> None:
    forking = torch.multiprocessing.get_context("fork")
    torch.multiprocessing.get_context = lambda method=None: forking
    torch.multiprocessing.set_start_method("fork", force=True)
    torch.multiprocessing.set_start_method = lambda method, force=False: None


def end_with_parent() -> None:
    """Linux kills this process when the one that forked it has ended."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))


def note_use(path: str) -> None:
    """Adds a byte to a file if this process has had memory on a device."""
    trn = getattr(torch, "trn", None)
    if trn is None or not trn.is_initialized():
        return
    if any(trn.max_memory_allocated(i) for i in range(trn.device_count())):
        with open(path, "ab") as file:
            file.write(b".")


class _Ranks:
    """Has each process that a test forks note its use of devices when it ends."""

    def __init__(self, path: str) -> None:
        self.path = path
        multiprocessing.util.register_after_fork(self, _Ranks._forked)

    def _forked(self) -> None:
        end_with_parent()
        multiprocessing.util.Finalize(None, note_use, args=(self.path,), exitpriority=0)


@contextlib.contextmanager
def without_initializing(way: str):
    """What is imported asks devices for their properties, as on CUDA; a fork may not follow."""
    if way == "gloo":
        yield
        return
    from torch_trn_emu import _C

    register, _C.register_fork_handler = _C.register_fork_handler, lambda: None
    yield
    sys.modules["torch_trn_emu.trn.device"]._initialized = False
    _C.register_fork_handler = register


def load(path: Path):
    sys.path[:0] = [str(path.parent), str(next(p for p in path.parents if p.name == "test"))]
    os.chdir(path.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.argv = [str(path)]
    spec.loader.exec_module(module)
    return module


def flatten(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test


def run_here(test: unittest.TestCase, out: str) -> None:
    used = tempfile.mktemp()
    keep = _Ranks(used)
    result = unittest.TestResult()
    try:
        unittest.TestSuite([test]).run(result)
    except BaseException as error:  # exits of a rank that runs in this process, too
        result.errors.append((test, repr(error)))
    note_use(used)
    bad = result.errors + result.failures
    bad += [(t, "passed unexpectedly") for t in result.unexpectedSuccesses]
    word = "failed" if bad else "skipped" if result.skipped else "passed"
    why = bad[0][1] if bad else result.skipped[0][1] if result.skipped else ""
    count = os.path.getsize(used) if os.path.exists(used) else 0
    with contextlib.suppress(OSError):
        os.remove(used)
    del keep
    Path(out).write_text(json.dumps([word, count, why[-9000:]]))


def run(test: unittest.TestCase, seconds: float) -> tuple[str, int, str]:
    """Runs a test in a session of its own; whatever it leaves is killed."""
    out = tempfile.mktemp()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        end_with_parent()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        try:
            run_here(test, out)
        finally:
            os._exit(0)
    until = time.monotonic() + seconds
    ended = (0, 0)
    pause = 0.005
    while time.monotonic() < until:
        ended = os.waitpid(pid, os.WNOHANG)
        if ended[0]:
            break
        time.sleep(pause)
        pause = min(0.1, pause * 1.3)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if not ended[0]:
        os.waitpid(pid, 0)
    if os.path.exists(out):
        word, used, why = json.loads(Path(out).read_text())
        os.remove(out)
        return word, used, why
    if not ended[0]:
        return "hung", 0, f"more than {seconds:.0f} s"
    return "died", 0, f"status {ended[1]}"


def run_file(way: str, path: Path, limits: tuple[float, float], chosen: list[Any], out) -> None:
    def say(word: str, *told: object) -> None:
        print(word, json.dumps(told), file=out, flush=True)

    with without_initializing(way):
        module = load(path)
    tests = list(flatten(unittest.defaultTestLoader.loadTestsFromModule(module)))
    names = {test: ".".join(test.id().split(".")[-2:]) for test in tests}
    say("all", *names.values())
    random.Random(0).shuffle(tests)  # of a run that is cut short, a sample
    if chosen[:1] == ["after"]:
        tests, chosen = tests[chosen[1] :], []
    gc.freeze()  # forks share what is there
    until = time.monotonic() + limits[1]
    for test in tests:
        wanted = (names[test] in chosen) == (chosen[:1] == ["only"])
        if wanted and time.monotonic() < until:
            say("end", names[test], *run(test, limits[0]))


def main() -> None:
    way, test_limit, file_limit = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    warnings.simplefilter("ignore")
    chosen = json.loads(sys.stdin.read() or "[]")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    fork_always()
    with without_initializing(way):
        prepare(way)
    for file in sys.argv[4:]:
        print("file", json.dumps([file]), file=answers, flush=True)
        pid = os.fork()
        if pid == 0:
            try:
                run_file(way, Path(file), (test_limit, file_limit), chosen, answers)
            except BaseException as error:
                print("broken", json.dumps([repr(error)]), file=answers, flush=True)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
