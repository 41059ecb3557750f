"""Work on rows, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.system.failures import hear


def share_rows(rows: Tensor, work: Callable[[Tensor], Tensor], block: int = 1024) -> Tensor:
    """`work` done on each block of rows by one rank; every rank gets all results, in order.

    rows: (n, ...), n > 0, the same on all ranks, which call this together; work: (b, ...) to
    (b, ...) for at most `block` rows. Blocks begin at the same rows for any number of ranks, so
    that rounding is the same too.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    num_blocks = -(-len(rows) // block)
    bounds = [min(num_blocks * i // ranks * block, len(rows)) for i in range(ranks + 1)]
    own = rows[bounds[rank] : bounds[rank + 1]]
    # A rank that gets none does a row all the same: it must know how wide a result is.
    done = torch.cat([work(one) for one in own.split(block)]) if len(own) else work(rows[:1])[:0]
    if ranks == 1:
        return done
    sizes = [stop - start for start, stop in zip(bounds, bounds[1:])]
    padded = done.new_zeros(max(sizes), *done.shape[1:])
    padded[: len(done)] = done
    gathered = [torch.empty_like(padded) for _ in range(ranks)]
    hear()
    dist.all_gather(gathered, padded)
    return torch.cat([one[:size] for one, size in zip(gathered, sizes)])
