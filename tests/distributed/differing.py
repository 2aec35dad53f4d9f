"""Ranks that are not alike in one respect, which the check must find and name."""

from __future__ import annotations

import sys

import tinytensor as tt
import tinytensor.distributed as dist


def main() -> None:
    what = sys.argv[1]
    place = dist.init_process_group(timeout=60)
    odd = place.rank == 2
    tt.manual_seed(1 if odd and what == "parameters" else 0)
    model = tt.nn.Linear(3, 5 if odd and what == "model" else 4)
    if what == "later":
        parallel = dist.DistributedDataParallel(model, check_every=2)
        for step in range(4):
            if odd and step == 1:
                model.bias.data += 1e-6
            parallel(tt.ones(2, 3)).sum().backward()
            assert step < 1, "the check came too late"
    elif what == "model":
        dist.DistributedDataParallel(model)
    else:
        lr = 0.2 if odd and what == "configuration" else 0.1
        dist.check_agreement(model.parameters(), {"lr": lr, "steps": 10})
        print("no difference was found")


if __name__ == "__main__":
    main()
