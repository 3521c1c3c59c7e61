"""A script that knows nothing of trn but the device: DistributedDataParallel, three steps."""

import os

import torch
import torch.distributed as dist
from torch import nn

rank = int(os.environ["LOCAL_RANK"])
device = torch.device("trn", rank)
torch.accelerator.set_device_index(rank)
dist.init_process_group()
torch.manual_seed(0)
layers = [nn.Sequential(nn.Linear(128, 128), nn.ReLU()) for _ in range(3)]
model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers).to(device), device_ids=[rank])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(3):
    loss = model(torch.ones(8 * (rank + 1), 128, device=device)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item())
dist.destroy_process_group()
