"""One way to fail, named by the first argument; rank 1 is who misbehaves."""

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

RANK, WAY = int(os.environ["RANK"]), sys.argv[1]
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 60

torch.accelerator.set_device_index(RANK)
dist.init_process_group(timeout=timedelta(seconds=SECONDS))
x = torch.ones(4096, device="trn")
dist.all_reduce(x)
print("together", flush=True)

if WAY == "subgroup":  # its members are not its ranks
    pair = dist.new_group([1, 2], timeout=timedelta(seconds=SECONDS), group_desc="pair")
    message = torch.ones(4, device="trn")
    other = dist.new_group([1, 2], timeout=timedelta(seconds=SECONDS), group_desc="pair")
    if RANK == 1:
        for call in (lambda: dist.recv(message, 2, pair), lambda: dist.all_reduce(x, group=other)):
            try:
                call()
            except dist.DistBackendError as error:
                print(error, flush=True)
    time.sleep(3 * SECONDS)
    sys.exit(0)
if RANK == 1:
    if WAY == "size":
        x = torch.ones(2048, device="trn")
    elif WAY == "dtype":
        x = x.bfloat16()
    elif WAY == "operation":
        dist.broadcast(x, 0)
    elif WAY == "reduce":
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    elif WAY == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif WAY == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif WAY == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
    elif WAY == "memory":
        torch.empty(1 << 40, device="trn")
    elif WAY == "left":
        dist.destroy_process_group()
        time.sleep(2)
        sys.exit(0)
    elif WAY in ("late", "interrupted"):
        time.sleep(SECONDS + 8)
    elif WAY == "send":
        dist.send(torch.ones(3, device="trn"), 0)
        time.sleep(3)
        sys.exit(0)
if WAY == "send":
    dist.recv(torch.ones(4, device="trn"), 1)
dist.all_reduce(x)
print("not reached", flush=True)
