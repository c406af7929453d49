"""The processes that train one model together, and what they tell each other.

Each draws the order and the noise of whole batches from the same seed, and takes its share of the
rows: every `world`-th, from `rank`. So any number of processes computes the same training, apart
from the order of sums. For one process all of this does nothing, and
torch is not imported: a command must know its processes before it says that it loads torch.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.distributed_c10d import Store


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a training, and which of them this is."""

    rank: int = 0
    """From 0; this one speaks, logs and saves."""
    world: int = 1
    """How many there are, on all machines."""
    local_rank: int = 0
    """The number of this process on its machine, and of its GPU."""
    store: "Store | None" = None
    """Where they tell each other of failures, if there are several."""

    def own(self, rows: "Tensor") -> "Tensor":
        """Return those of a batch's rows that are this process's share; there may be none."""
        return rows if self.world == 1 else rows[self.rank :: self.world]

    def parallel(self, module: "nn.Module") -> "nn.Module":
        """Return a module whose gradients are the mean over the processes, from now on."""
        if self.world == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module)

    def sum(self, value: "Tensor") -> "Tensor":
        """Return the sum of a tensor over the processes."""
        if self.world > 1:
            import torch.distributed as dist

            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: "Tensor") -> "Tensor":
        """Return the tensor of each process, (world, *shape)."""
        if self.world == 1:
            return value.unsqueeze(0)
        import torch
        import torch.distributed as dist

        values = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(values, value.contiguous())
        return torch.stack(values)

    def agree(self, *values: float) -> list[float]:
        """Return the largest that any process has of each number, when all have come here."""
        if self.world == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        agreed: list[float] = largest.tolist()
        return agreed

    def differing(self, content: bytes) -> int | None:
        """Return the first process that has other bytes than process 0, None if all are equal."""
        if self.world == 1:
            return None
        import torch

        digest = bytearray(hashlib.sha256(content).digest())
        digests = self.gather(torch.frombuffer(digest, dtype=torch.uint8))
        differ: list[int] = (digests != digests[0]).any(1).nonzero().flatten().tolist()
        return differ[0] if differ else None


ALONE = Processes()
"""A training in one process."""
