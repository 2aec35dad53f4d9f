"""Programs that end without a word to the others, in the middle of something.

mpiexec -n 2 python -m tests.distributed.ending gathering | interrupted | parted
"""

from __future__ import annotations

import sys
import time
from typing import Any

import tinytensor as tt
import tinytensor.distributed as dist


def main() -> None:
    how = sys.argv[1]
    place = dist.init_process_group(timeout=60)
    model = tt.nn.Sequential(*[tt.nn.Linear(4, 4) for _ in range(6)])
    parallel = dist.DistributedDataParallel(model, bucket_cap_mb=0)
    optimizer = dist.ZeroRedundancyOptimizer(
        model.parameters(), tt.optim.AdamW, model=parallel, lr=0.1
    )
    parallel(tt.ones(1, 4)).sum().backward()
    if how == "gathering" and place.rank == 1:
        communicator = dist.group.current().cpu
        inside = communicator.all_gather

        def slow(*args: Any) -> None:
            time.sleep(0.05)
            inside(*args)

        communicator.all_gather = slow
    optimizer.step()  # the parameters are on their way now
    if how == "interrupted" and place.rank == 0:
        raise KeyboardInterrupt
    if how == "parted":
        dist.destroy_process_group()
        assert all(type(p) is tt.nn.Parameter for p in model.parameters() if p.array.size)
    print(f"rank {place.rank} is at its end")


if __name__ == "__main__":
    main()
