"""Does communication hide behind the backward pass? Two processes and a link as slow as we like.

    python examples/benchmark_overlap.py [--layers 8 --width 192 --batch 8]

The reductions are real; each is then held up as long as a link of the given speed would need for
it. Measured for each speed: a step without communication, the reductions of a step without
computing, and a step as it is trained. A perfect step takes as long as the longer of the two, if it
may begin to send at once and sends to the end; but the first bucket is complete after the forward
pass and the last layer's backward, and the last one at the very end. No step is shorter than
`bound`: the computation and the last bucket, or the first bucket's gradients and all communication.

Runs for about a minute on two cores; needs mpi4py and mpiexec (pip install 'tinytensor-gpt[mpi]').
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tinytensor as tt
import tinytensor.distributed as dist
from gpt.model import GPT, GPTConfig
from tinytensor.distributed.group import current

VOCAB, BLOCK_SIZE = 256, 64
# Communication as a multiple of the computation.
RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class SlowLink:
    """A communicator whose reductions take as long as over `bytes_per_second`."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside
        self.bytes_per_second = float("inf")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def all_reduce(self, arrays: list[Any], op: dist.ReduceOp) -> None:
        began = time.perf_counter()
        self.inside.all_reduce(arrays, op)
        moved = 2 * (self.inside.size - 1) / self.inside.size * sum(a.nbytes for a in arrays)
        left = moved / self.bytes_per_second - (time.perf_counter() - began)
        if left > 0:
            time.sleep(left)


def medians(repetitions: int, *works: Callable[[], None]) -> list[float]:
    """The median time of each, which all ranks begin together; in turn, so that all suffer alike.

    What a machine does beside comes and goes: times of one round can be compared.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repetitions):
        for work, of_one in zip(works, times, strict=True):
            dist.barrier()
            began = time.perf_counter()
            work()
            of_one.append(time.perf_counter() - began)
    return [statistics.median(of_one) for of_one in times]


def run(arguments: argparse.Namespace) -> None:
    place = dist.init_process_group(timeout=120)
    group = current()
    group.cpu = link = SlowLink(group.cpu)
    tt.set_num_threads(1)
    model = GPT(
        GPTConfig(
            vocab_size=VOCAB,
            block_size=BLOCK_SIZE,
            n_layer=arguments.layers,
            n_head=4,
            n_embd=arguments.width,
        )
    )
    optimizer = tt.optim.AdamW(model.parameters(), lr=1e-4)
    parallel = dist.DistributedDataParallel(model, bucket_cap_mb=arguments.bucket_mb)
    tokens = tt.randint(VOCAB, (arguments.batch, BLOCK_SIZE + 1))
    x, y = tokens[:, :-1], tokens[:, 1:]
    first_gradient = [0.0]
    top = parallel.buckets()[0][-1]
    top.register_post_accumulate_grad_hook(
        lambda _: first_gradient.__setitem__(0, time.perf_counter())
    )
    until_first: list[float] = []

    def step() -> None:
        optimizer.zero_grad()
        began = time.perf_counter()
        parallel(x, y)[1].backward()
        until_first.append(first_gradient[0] - began)

    def compute() -> None:
        with parallel.no_sync():
            step()

    def communicate() -> None:
        works = [
            group.launch("bucket", [a], lambda comm, a=a: comm.all_reduce([a], dist.ReduceOp.AVG))
            for a in arrays
        ]
        for work in works:
            work.wait()

    parallel.ordered = False  # a micro-step then is a step without communication, and no more
    step()
    arrays = [tt.zeros(sum(p.numel() for p in bucket)).numpy() for bucket in parallel.buckets()]
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    compute_time, unhindered = medians(arguments.repetitions, compute, communicate)
    if place.rank == 0:
        print(
            f"{megabytes:.1f} MB of gradients in {len(arrays)} buckets, {place.world_size} ranks; "
            f"without a link in between, their reduction takes {1e3 * unhindered:.1f} ms"
        )
        print("times in ms")
        print("  MB/s  compute  communication   step  bound  step / max  step / bound")
    for ratio in RATIOS:
        # All ranks take rank 0's time as the measure: the link is one.
        reference = tt.tensor(compute_time)
        dist.broadcast(reference, 0)
        link.bytes_per_second = megabytes * 1e6 / (ratio * reference.item())
        until_first.clear()
        alone, communication, whole = medians(arguments.repetitions, compute, communicate, step)
        longer = max(alone, communication)
        after_backward = communication * arrays[-1].nbytes / (1e6 * megabytes)
        bound = max(alone + after_backward, statistics.median(until_first) + communication)
        if place.rank == 0:
            print(
                f"{link.bytes_per_second / 1e6:6.1f}  {1e3 * alone:7.1f}  "
                f"{1e3 * communication:13.1f} {1e3 * whole:6.1f} {1e3 * bound:6.1f}  "
                f"{whole / longer:10.2f}  {whole / bound:12.2f}"
            )
        link.bytes_per_second = float("inf")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bucket-mb", type=float, default=1.0)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--one", action="store_true", help="measure, as one of the processes")
    arguments = parser.parse_args()
    if arguments.one:
        run(arguments)
        return
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    launcher = beside or shutil.which("mpiexec")
    if launcher is None or not dist.is_available():
        sys.exit("this needs mpi4py and mpiexec: pip install 'tinytensor-gpt[mpi]'")
    command = [launcher, "-n", "2", sys.executable, __file__, *sys.argv[1:], "--one"]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # the ranks share the cores
    sys.exit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    main()
