"""From one rank to four: trains the same step on 1, 2 and 4 ranks, then prefetches for FSDP.

python docs/tutorials/several_ranks.py --figures docs/tutorials/figures
torchrun --nproc-per-node 4 docs/tutorials/several_ranks.py

The page several_ranks.md shows this code and what it wrote. Under torchrun, it is the script of one
rank.
"""

import argparse
import json
import os
import socket
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard

import torch_trn_emu

WIDTH, LAYERS, ROWS = 1024, 4, 64


def make_blocks() -> nn.Sequential:
    torch.manual_seed(0)

    def block() -> nn.Sequential:
        return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    return nn.Sequential(*(block() for _ in range(LAYERS)))


def shard(model: nn.Sequential, prefetch: bool) -> None:
    blocks = list(model)
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    if prefetch:
        for this, following in pairwise(blocks):
            this.set_modules_to_forward_prefetch([following])
            following.set_modules_to_backward_prefetch([this])


def train(prefetch: bool = False) -> torch_trn_emu.profile:
    """The script: torchrun calls it once in each process."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.accelerator.set_device_index(rank)
    dist.init_process_group()
    model = make_blocks().to("trn")
    shard(model, prefetch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    rows = torch.randn(ROWS // dist.get_world_size(), WIDTH, device="trn")

    def step() -> None:
        loss = (model(rows) - rows).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    with torch_trn_emu.profile() as found:
        step()
    return found


def main_of_rank(rank: int, world: int, port: int, folder: str, prefetch: bool) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    found = train(prefetch)
    if rank == 0:
        found.export_json(Path(folder) / "run.json")
        (Path(folder) / "verdict.txt").write_text(
            "\n".join(change.text for change in found.verdict().changes if "ommunic" in change.text)
        )
    dist.destroy_process_group()


def launch(world: int, prefetch: bool = False) -> dict[str, Any]:
    """What torchrun does, without importing torch again: rank 0's profile, as data."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        mp.start_processes(
            main_of_rank, (world, port, folder, prefetch), nprocs=world, start_method="fork"
        )
        text = (Path(folder) / "verdict.txt").read_text()
        found: dict[str, Any] = json.loads((Path(folder) / "run.json").read_text())
        return found | {"communication": text}


def table(runs: dict[str, dict[str, Any]]) -> str:
    head = "| run | step, simulated ms | collectives | active ms | exposed ms |"
    rows = [
        f"| {name} | {1e3 * run['elapsed_s']:.2f} | {run['counters']['cc_op_count']:.0f} "
        f"| {1e3 * run['counters']['cc_op_active_time']:.2f} "
        f"| {1e3 * run['counters']['cc_exposed_time']:.2f} |"
        for name, run in runs.items()
    ]
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def by_operation(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Exposed and active milliseconds of each operation, without and with prefetch."""
    names = sorted({row["operation"] for row in before["collectives"]})

    def of(run: dict[str, Any], name: str) -> str:
        rows = [row for row in run["collectives"] if row["operation"] == name]
        exposed, active = (sum(row[k] for row in rows) for k in ("exposed_s", "duration_s"))
        return f"{1e3 * exposed:.2f} of {1e3 * active:.2f}"

    rows = [f"| `{name}` | {of(before, name)} | {of(after, name)} |" for name in names]
    head = "| exposed ms of | as it is | with prefetch |"
    return "\n".join([head, "|---|---|---|", *rows])


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--figures", type=Path)
    options.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument("--prefetch", action="store_true", help="under torchrun")
    chosen = options.parse_args()
    if dist.is_torchelastic_launched():
        found = train(chosen.prefetch)
        if dist.get_rank() == 0:
            print(found.summary())
        dist.destroy_process_group()
        return
    folder, most = chosen.figures, chosen.ranks[-1]
    runs = {f"{world} rank{'s' * (world > 1)}": launch(world) for world in chosen.ranks}
    runs[f"{most} ranks, prefetch"] = launch(most, prefetch=True)
    pair = runs[f"{most} ranks"], runs[f"{most} ranks, prefetch"]
    print(table(runs), by_operation(*pair), pair[0]["communication"], sep="\n\n")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ranks.md").write_text(table(runs) + "\n")
        (folder / "prefetch.md").write_text(by_operation(*pair) + "\n")
        (folder / "ranks_verdict.txt").write_text(pair[0]["communication"] + "\n")


if __name__ == "__main__":
    main()
