"""accelerate with FSDP2: sharded parameters, mixed precision, and a checkpoint that resumes."""

import sys
import tempfile

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

set_seed(0)
plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="size_based_wrap",
                                        min_num_params=100)  # fmt: skip
accelerator = Accelerator(fsdp_plugin=plugin, mixed_precision=sys.argv[1])
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
data = TensorDataset(torch.randn(64, 8), torch.randn(64, 1))
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, 8))


def step(x, y):
    loss = F.mse_loss(model(x).float(), y)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


batches = list(loader)
for batch in batches[:2]:
    step(*batch)
folder = [tempfile.mkdtemp()]
dist.broadcast_object_list(folder, src=0, device=accelerator.device)
accelerator.save_state(folder[0])
first = [step(*batch) for batch in batches[2:]]
accelerator.load_state(folder[0])
again = [step(*batch) for batch in batches[2:]]
assert first == again, (first, again)
kinds = {type(p).__name__ for p in model.parameters()}
print(f"rank {accelerator.process_index} of {accelerator.num_processes} on {accelerator.device}: "
      f"{sorted(kinds)} resumed", flush=True)  # fmt: skip
dist.destroy_process_group()
