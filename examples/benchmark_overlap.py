"""Does communication hide behind computing? Two processes and a link as slow as we like.

    python examples/benchmark_overlap.py [--layers 16 --width 128 --batch 48]

A step is the forward pass, the backward pass, clipping by the norm of all gradients, and AdamW.
Two ways of sharing it out are timed:

    plain      gradients are all-reduced beside the backward pass
    sharded    gradients are reduce-scattered beside the backward pass, each rank updates its part,
               and the parameters are gathered beside the next forward pass (ZeRO, stage 1). Some
               buckets are not divided, but all-reduced beside the backward pass, which takes
               longer than the forward pass and so can hide more: --undivided is their share of
               the bytes. By default (B - F) / (B + F), from the measured times of the two passes:
               each then has as much to hide as it takes, where computing takes as long as sending

The collectives are real; each is then held up as long as a link of the given speed would need for
it. For each speed a table shows a step without communication, all that a step sends without
computing, and steps as they are trained, one after another. A perfect step takes as long as the
longer of the two. No step is shorter than `bound`: the first gradients come after the forward pass
and the last layer's backward, the last ones at the very end; what is clipped must all be there; and
the first layer waits for its parameters. With F, B and U the times of the forward pass, the
backward pass and the update, `a` of the first gradients, and `s` and `g` of all that is sent beside
the backward and the forward pass:

    plain      F + max(B + the last bucket, a + s) + U
    sharded    max(F + the first bucket, g) + max(B + the last bucket, a + s) + U

Takes five minutes on two cores; needs mpi4py and mpiexec (pip install 'tinytensor-gpt[mpi]').
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
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import tinytensor as tt
import tinytensor.distributed as dist
from gpt.model import GPT, GPTConfig
from tinytensor.distributed.group import current
from tinytensor.distributed.mpi import slices

VOCAB, BLOCK_SIZE = 256, 64
RATIOS = [0.25, 0.5, 1.0, 2.0, 4.0]


class SlowLink:
    """A communicator whose collectives take as long as over `bytes_per_second`; 0 leaves them out.

    An all-reduce moves 2 (N - 1) / N bytes a byte, each of its halves as many as the other.
    """

    def __init__(self, inside: Any) -> None:
        self.inside = inside
        self.bytes_per_second = float("inf")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def _held_up(self, halves: int, nbytes: int, collective: Callable[[], None]) -> None:
        if not self.bytes_per_second:
            return
        began = time.perf_counter()
        collective()
        moved = halves * (self.inside.size - 1) / self.inside.size * nbytes
        left = moved / self.bytes_per_second - (time.perf_counter() - began)
        if left > 0:
            time.sleep(left)

    def all_reduce(self, arrays: list[Any], op: dist.ReduceOp) -> None:
        nbytes = sum(array.nbytes for array in arrays)
        self._held_up(2, nbytes, lambda: self.inside.all_reduce(arrays, op))

    def reduce_scatter(self, array: Any, parts: list[slice], op: dist.ReduceOp) -> None:
        self._held_up(1, array.nbytes, lambda: self.inside.reduce_scatter(array, parts, op))

    def all_gather(self, array: Any, parts: list[slice]) -> None:
        self._held_up(1, array.nbytes, lambda: self.inside.all_gather(array, parts))


class Phases(NamedTuple):
    """Seconds of a step without communication, and how far into it the first bucket is complete."""

    forward: float
    first_bucket: float
    backward: float
    update: float

    @property
    def step(self) -> float:
        return self.forward + self.backward + self.update


class Way:
    """A model in training, with its gradients and its optimizer shared out in one way."""

    def __init__(self, arguments: argparse.Namespace, undivided: float | None = None) -> None:
        """Sharded, but for a share of `undivided`; with None, every rank updates all."""
        tt.manual_seed(0)
        sizes = {"n_layer": arguments.layers, "n_head": 4, "n_embd": arguments.width}
        model = GPT(GPTConfig(vocab_size=VOCAB, block_size=BLOCK_SIZE, **sizes))
        self.parallel = dist.DistributedDataParallel(model, bucket_cap_mb=arguments.bucket_mb)
        self.parallel.ordered = False  # a micro-step then is a step that sends nothing, and no more
        self.sharded = undivided is not None
        if undivided is not None:
            self.optimizer: Any = dist.ZeroRedundancyOptimizer(
                model.parameters(),
                tt.optim.AdamW,
                model=self.parallel,
                undivided=undivided,
                lr=1e-4,
            )
        else:
            self.optimizer = tt.optim.AdamW(model.parameters(), lr=1e-4)
        tokens = tt.randint(VOCAB, (arguments.batch, BLOCK_SIZE + 1))
        self.x, self.y = tokens[:, :-1], tokens[:, 1:]
        buckets = self.parallel.buckets()
        self.sizes = [sum(p.numel() * p.dtype.itemsize for p in bucket) for bucket in buckets]
        self.divided = self.optimizer.divided() if self.sharded else [False] * len(buckets)
        self.first_bucket = 0.0
        buckets[0][-1].register_post_accumulate_grad_hook(self._look_at_the_clock)

    def _look_at_the_clock(self, _: tt.Tensor) -> None:
        self.first_bucket = time.perf_counter()

    def step(self, communicates: bool = True) -> Phases:
        """One step; the phases are of use where nothing is sent."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        with nullcontext() if communicates else self.parallel.no_sync():
            loss = self.parallel(self.x, self.y)[1]
            forward = time.perf_counter()
            loss.backward()
        backward = time.perf_counter()
        if self.sharded:
            self.optimizer.clip_grad_norm_(1.0)
        else:
            tt.nn.utils.clip_grad_norm_(self.parallel.parameters(), 1.0)
        self.optimizer.step()
        ended = time.perf_counter()
        return Phases(
            forward - began, self.first_bucket - forward, backward - forward, ended - backward
        )

    def communicate(self) -> None:
        """All that a step sends, without the step."""
        works = []
        for size, divided in zip(self.sizes, self.divided, strict=True):
            flat = tt.zeros(size // 4).numpy()
            works.append(current().launch("bucket", [flat], _collectives(flat, divided)))
        for work in works:
            work.wait()

    def bound(self, phases: Phases, communication: float) -> float:
        """No step is shorter where a step sends for `communication` seconds."""
        second = communication / sum(self.sizes)
        beside_forward = [
            second * size / 2 for size, divided in zip(self.sizes, self.divided, strict=True)
            if divided
        ]  # fmt: skip
        last = second * self.sizes[-1] / (2 if self.divided[-1] else 1)
        gathering = sum(beside_forward)
        forward = phases.forward + (beside_forward[-1] if self.divided[-1] else 0.0)
        backward = phases.first_bucket + communication - gathering
        return max(forward, gathering) + max(phases.backward + last, backward) + phases.update


def _collectives(flat: Any, divided: bool) -> Callable[[Any], None]:
    def task(comm: Any) -> None:
        if divided:
            parts = slices(flat.size, comm.size)
            comm.reduce_scatter(flat, parts, dist.ReduceOp.AVG)
            comm.all_gather(flat, parts)
        else:
            comm.all_reduce([flat], dist.ReduceOp.AVG)

    return task


def slowest(seconds: float) -> float:
    """That of the rank that took longest: the others wait for it."""
    return float(max(current().gather_objects(seconds)))


def run(arguments: argparse.Namespace) -> None:
    place = dist.init_process_group(timeout=120)
    group = current()
    group.cpu = link = SlowLink(group.cpu)
    tt.set_num_threads(1)

    def set_speed(bytes_per_second: float) -> None:
        dist.barrier()  # what is still under way has the speed that it began with
        link.bytes_per_second = bytes_per_second

    def phases_of(way: Way) -> Phases:
        """Without communication; medians, of the slowest rank each."""
        set_speed(0.0)
        runs = [way.step(communicates=False) for _ in range(arguments.steps + 1)][1:]
        set_speed(float("inf"))
        return Phases(*(slowest(statistics.median(one)) for one in zip(*runs, strict=True)))

    def step_of(way: Way, speed: float) -> float:
        """Of steps that follow each other, so that each hides what the one before it left."""
        set_speed(speed)
        way.step()
        began = time.perf_counter()
        for _ in range(arguments.steps):
            way.step()
        taken = (time.perf_counter() - began) / arguments.steps
        set_speed(float("inf"))
        return slowest(taken)

    def communication_of(way: Way, speed: float) -> float:
        set_speed(speed)
        dist.barrier()
        began = time.perf_counter()
        way.communicate()
        taken = time.perf_counter() - began
        set_speed(float("inf"))
        return slowest(taken)

    plain = Way(arguments)
    plain.step()  # the first one allocates
    first = phases_of(plain)
    undivided = arguments.undivided
    if undivided is None:
        undivided = max(0.0, (first.backward - first.forward) / (first.backward + first.forward))
    ways = [plain, Way(arguments, undivided)]
    ways[1].step()
    unhindered = [communication_of(way, float("inf")) for way in ways]
    nbytes = sum(ways[0].sizes)
    if place.rank == 0:
        print(
            f"{nbytes / 1e6:.1f} MB of gradients in {len(ways[0].sizes)} buckets, "
            f"{place.world_size} ranks; without a link in between, sending takes "
            f"{1e3 * unhindered[0]:.1f} ms (plain) and {1e3 * unhindered[1]:.1f} ms (sharded, "
            f"{undivided:.2f} of it undivided)"
        )
        columns = "compute    send    step   bound  step/max  step/bound"
        print(f"times in ms\n{'plain':>33}{'sharded':>58}\n  MB/s  {columns}    {columns}")
    for ratio in arguments.ratios:
        moved = 2 * (place.world_size - 1) / place.world_size * nbytes
        speed = moved / (ratio * first.step)
        phases: list[list[Phases]] = [[], []]
        sent: list[list[float]] = [[], []]
        steps: list[list[float]] = [[], []]
        # In turn: what a machine does beside comes and goes.
        for _ in range(arguments.repetitions):
            for number, way in enumerate(ways):
                phases[number].append(phases_of(way))
                sent[number].append(communication_of(way, speed))
                steps[number].append(step_of(way, speed))
        line = f"{speed / 1e6:6.1f}"
        for number, way in enumerate(ways):
            alone = Phases(*map(statistics.median, zip(*phases[number], strict=True)))
            communication = statistics.median(sent[number])
            whole, bound = statistics.median(steps[number]), way.bound(alone, communication)
            longer = max(alone.step, communication)
            line += (
                f"  {1e3 * alone.step:7.1f} {1e3 * communication:7.1f} {1e3 * whole:7.1f} "
                f"{1e3 * bound:7.1f}  {whole / longer:8.2f}  {whole / bound:10.2f}  "
            )
        if place.rank == 0:
            print(line, flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--bucket-mb", type=float, default=0.4)
    parser.add_argument("--undivided", type=float, help="share kept whole (default: measured)")
    parser.add_argument(
        "--ratios", type=float, nargs="+", default=RATIOS, help="sending over computing"
    )
    parser.add_argument("--steps", type=int, default=2, help="timed together")
    parser.add_argument("--repetitions", type=int, default=3)
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
