"""Starts a program as the ranks of one group, as torchrun would, and collects what they say."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"


@dataclass
class Ended:
    """How one rank ended."""

    code: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(program: str, *args: str, ranks: int = 2, **environ: str) -> list[subprocess.Popen]:
    """The processes of the ranks; their output goes to files, so that no pipe fills."""
    common = dict(
        os.environ,
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        OMP_NUM_THREADS="1",
        TRN_EMU_MATMUL="fp32",
        **environ,
    )
    started = []
    for rank in range(ranks):
        out = tempfile.TemporaryFile("w+")  # noqa: SIM115  read when the rank has ended
        err = tempfile.TemporaryFile("w+")  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / program), *args],
            env=dict(common, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=out,
            stderr=err,
        )
        process.out, process.err = out, err
        started.append(process)
    return started


def finish(started: list[subprocess.Popen], timeout: float = 600) -> list[Ended]:
    """Wait for all; those still there at `timeout` are killed and have the code -9."""
    deadline = time.monotonic() + timeout
    ended = []
    for process in started:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
    for process in started:
        process.out.seek(0)
        process.err.seek(0)
        ended.append(Ended(process.returncode, process.out.read(), process.err.read()))
        process.out.close()
        process.err.close()
    return ended


def run(program: str, *args: str, ranks: int = 2, timeout: float = 600, **environ: str):
    """All ranks of a program, ended."""
    return finish(start(program, *args, ranks=ranks, **environ), timeout)


def outcomes(ended: list[Ended]) -> dict[str, str]:
    """What `programs/checking.py` printed: "" for a check that passed on all ranks."""
    found: dict[str, str] = {}
    for rank, one in enumerate(ended):
        for line in one.out.splitlines():
            verdict, _, rest = line.partition(" ")
            name, _, why = rest.partition(" ")
            if verdict == "ok":
                found.setdefault(name, "")
            elif verdict == "failed":
                found[name] = f"rank {rank}: {why}"
    if not found:
        found[""] = "\n".join(f"rank {r} ({e.code}): {e.err[-2000:]}" for r, e in enumerate(ended))
    return found
