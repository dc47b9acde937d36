"""One training step in each of two processes, for ``test_gpu.py``. Arguments: job, device."""

import sys

import torch
from torch.nn.parallel import DistributedDataParallel

job, device = sys.argv[1:]
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
model, batch = torch.load(job, map_location=device, weights_only=False)
distributed = DistributedDataParallel(model.train())
losses = distributed([batch[rank]])
sum(losses.values()).backward()
if rank == 0:
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.save(gradients, f"{job}.gradients")
torch.distributed.destroy_process_group()
