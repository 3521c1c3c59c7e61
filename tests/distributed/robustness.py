"""Runs whose ranks are killed, stopped, late or mismatched at random times: each must end in time.

A run passes if every rank that is left ends within the timeout of its group and some seconds, with
an error whose last line names what failed, and if no process, socket or segment is left. Torch is
imported once: ranks are forked.

    python tests/distributed/robustness.py --runs 200 [--seed 0] [--transport shm]
"""

import argparse
import atexit
import faulthandler
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

TIMEOUT_S = 4
MARGIN_S = 20  # of a busy machine

SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "terminated": signal.SIGTERM,
           "interrupted": signal.SIGINT}  # fmt: skip
WITHIN = ("size", "dtype", "operation", "reduce", "left", "raised", "late", "memory")
WAYS = (*SIGNALS, *WITHIN)


def misbehave(way: str, x: torch.Tensor) -> torch.Tensor:
    """What the culprit does in its step; a tensor to go on with."""
    if way == "size":
        return torch.ones(x.numel() // 2, device=x.device)
    if way == "dtype":
        return x.bfloat16()
    if way == "operation":
        dist.broadcast(x, 0)
    elif way == "reduce":
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    elif way == "left":
        sys.exit(0)
    elif way == "raised":
        raise ValueError("a fault of the script")
    elif way == "late":
        time.sleep(TIMEOUT_S + 3)
    elif way == "memory":
        torch.empty(1 << 40, device=x.device)
    return x


def train(rank: int, world: int, way: str, culprit: int, step: int) -> None:
    """Collectives and messages of several sizes without end."""
    torch.accelerator.set_device_index(rank)
    dist.init_process_group(timeout=timedelta(seconds=TIMEOUT_S))
    print("together", flush=True)
    sizes = (16, 4096, 1 << 18)
    for i in range(1_000_000):
        x = torch.ones(sizes[i % 3], device="trn")
        if rank == culprit and i == step:
            print("now", flush=True)
            x = misbehave(way, x)
        dist.all_reduce(x)
        work = dist.all_gather_into_tensor(x.new_empty(world * x.numel()), x, async_op=True)
        ring = [dist.P2POp(dist.isend, x, (rank + 1) % world),
                dist.P2POp(dist.irecv, torch.empty_like(x), (rank - 1) % world)]  # fmt: skip
        for sent in dist.batch_isend_irecv(ring):
            sent.wait()
        work.wait()


@dataclass
class Rank:
    pid: int
    err: object
    out: object
    code: int | None = None
    ended_s: float = 0.0

    def poll(self, now: float) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code, self.ended_s = os.waitstatus_to_exitcode(status), now
        return self.code is not None

    def text(self, which: str) -> str:
        file = getattr(self, which)
        file.seek(0)
        return file.read()


@dataclass
class Outcome:
    way: str
    transport: str
    ranks: int
    took_s: float
    faults: list[str] = field(default_factory=list)


def fork(rank: int, world: int, port: int, transport: str, *what: object) -> Rank:
    out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115  read at the end
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Rank(pid, err, out)
    code = 0
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
        from torch_trn_emu import _C

        faulthandler.register(signal.SIGUSR1, file=err)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
        warnings.simplefilter("ignore")
        _C.set_transport(transport)
        train(rank, world, *what)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:
        sys.last_value = error
        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def left_behind() -> set[str]:
    """Names in the places where segments and sockets would be."""
    found = {str(p) for p in Path("/dev/shm").iterdir()}
    found |= {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:]
              if "trn" in line.split()[-1]}  # fmt: skip
    return found


def run(way: str, transport: str, ranks: int, choice: random.Random) -> Outcome:
    before = left_behind()
    culprit, step = choice.randrange(ranks), choice.randrange(1, 12)
    port = free_port()
    members = [fork(r, ranks, port, transport, way, culprit, step) for r in range(ranks)]
    # The clock runs from the fault on: before, a busy machine imports and connects.
    awaited, begin = "together" if way in SIGNALS else "now", time.monotonic()
    while awaited not in members[culprit].text("out") and time.monotonic() < begin + 120:
        time.sleep(0.05)
    if way in SIGNALS:
        time.sleep(choice.uniform(0, 0.3))
        os.kill(members[culprit].pid, SIGNALS[way])
    begin = time.monotonic()
    others = [m for r, m in enumerate(members) if r != culprit or way != "stopped"]
    while not all(m.poll(time.monotonic()) for m in others):
        if time.monotonic() > begin + TIMEOUT_S + MARGIN_S:
            break
        time.sleep(0.02)
    outcome = Outcome(way, transport, ranks, time.monotonic() - begin)
    judge(outcome, members, culprit)
    for member in members:
        if member.code is None:
            os.kill(member.pid, signal.SIGKILL)
            os.waitpid(member.pid, 0)
        member.out.close()
        member.err.close()
    if new := left_behind() - before:
        outcome.faults.append(f"left behind: {sorted(new)}")
    return outcome


def judge(outcome: Outcome, members: list[Rank], culprit: int) -> None:
    for r, member in enumerate(members):
        if r == culprit and outcome.way in (*SIGNALS, "left", "raised", "memory"):
            continue
        if member.code is None:
            os.kill(member.pid, signal.SIGUSR1)  # faulthandler tells where
            time.sleep(0.5)
            outcome.faults.append(f"rank {r} hangs: {member.text('err')[-2000:]}")
            continue
        lines = [line for line in member.text("err").splitlines() if "DistBackendError" in line]
        said = lines[-1] if lines else member.text("err")[-300:]
        if member.code == 0 or not lines:
            outcome.faults.append(f"rank {r} ended with {member.code}: {said!r}")
        elif f"rank {r} of {len(members)} ranks: " not in said:
            outcome.faults.append(f"rank {r} does not say what failed: {said!r}")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--transport", choices=("shm", "gloo"))
    options.add_argument("--way", choices=WAYS)
    chosen = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    choice = random.Random(chosen.seed)
    faults = Counter[str]()
    for number in range(chosen.runs):
        way = chosen.way or WAYS[number % len(WAYS)]
        transport = chosen.transport or ("shm", "gloo")[number // len(WAYS) % 2]
        outcome = run(way, transport, choice.choice((2, 2, 3, 4)), choice)
        faults["runs"] += 1
        faults["longest s"] = max(faults["longest s"], round(outcome.took_s))
        if outcome.faults:
            faults[f"{transport} {way}"] += 1
            print(number, outcome, flush=True)
    print(dict(faults))
    return int(len(faults) > 2)


if __name__ == "__main__":
    sys.exit(main())
