"""What holds for all tests: trn computes as the host does, so that results compare bit for bit.

Tests of the numerics choose their precision themselves.
"""

import os
import sys

import pytest

os.environ.setdefault("TRN_EMU_MATMUL", "fp32")  # read once, when torch is imported
if os.environ.get("TRN_EMU_HOST", "cpu") != "cuda":
    # Read when Triton is imported, which torch.compile may do: its kernels run on the CPU then.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Processes that run tests side by side share the cores: threads that wait for one spin.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


_STATUS: list[int] = []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    _STATUS.append(int(exitstatus))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End at once: native threads of torch 2.13 may abort a process as its interpreter finalizes.

    By now every test has its result and the summary is printed.
    """
    if _STATUS:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_STATUS[-1])
