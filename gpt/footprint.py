"""What a training really takes: two steps of `gpt/train.py` on random tokens, in a new process.

The answer is the most main memory that the process had, less what it had before it built the model,
and the most that the processes which share its batches have had for themselves.
The second step begins as most steps do, with moments. `python -m gpt plan --measure` prints it
beside the plan, and `tests/gpt/test_plan.py` compares the two. Go back to `gpt/plan.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import tinytensor as tt
import tinytensor.distributed as dist
from gpt import UserError
from gpt.config import TrainConfig, from_json, to_json
from gpt.runs import build_model
from gpt.shared import SharedGradients
from gpt.train import accumulate, build_optimizer, parallelized


def measure(config: TrainConfig, vocab_size: int) -> int:
    """Bytes of main memory that a run takes beyond what its process has before it begins.

    Raises UserError, with the last words of the process, where it ends otherwise.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "gpt.footprint", str(vocab_size)],
        input=to_json(config),
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        words = finished.stderr.strip().splitlines() or ["it was killed, perhaps for its memory"]
        raise UserError(f"the step could not be measured: {words[-1]}")
    return int(finished.stdout)


def take_steps(config: TrainConfig, vocab_size: int, steps: int = 2) -> int:
    """The first steps of a run that no launcher started, on random tokens.

    Returns the bytes that the processes which share its batches had for themselves; one has none.
    """
    dist.init_process_group()
    model = build_model(config, vocab_size)
    optimizer = build_optimizer(config, model)
    parallel = parallelized(model, config)
    shape = config.batch_size, config.block_size
    n = config.processes
    with SharedGradients(model, optimizer, config, n) if n > 1 else nullcontext() as gradients:
        for step in range(1, steps + 1):
            batches = [
                (tt.randint(vocab_size, shape), tt.randint(vocab_size, shape))
                for _ in range(config.accumulation)
            ]
            accumulate(parallel, optimizer, batches, config, step, gradients)
            tt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        others = sum(map(private, gradients.other_processes())) if gradients else 0
    dist.destroy_process_group()
    return others


def private(process: int) -> int:
    """Bytes of main memory that another process had at most and shared with none."""
    now = amounts(Path(f"/proc/{process}/smaps_rollup"))
    past = amounts(Path(f"/proc/{process}/status"))
    return now["Private_Clean"] + now["Private_Dirty"] + past["VmHWM"] - past["VmRSS"]


def amounts(path: Path) -> dict[str, int]:
    """The bytes in a file of Linux's, by their names."""
    lines = [line.split() for line in path.read_text().splitlines() if line.endswith(" kB")]
    return {name.rstrip(":"): int(kilobytes) << 10 for name, kilobytes, _ in lines}


def resident(peak: bool) -> int:
    """Bytes of main memory that this process has, or had at most."""
    status = Path("/proc/self/status")
    if status.exists():
        return amounts(status)["VmHWM" if peak else "VmRSS"]
    try:
        import resource
    except ImportError:
        raise UserError("Windows does not say how much memory a process had") from None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def main() -> None:
    config = from_json(sys.stdin.read(), "the configuration")
    before = resident(peak=False)
    others = take_steps(config, int(sys.argv[1]))
    print(json.dumps(resident(peak=True) - before + others))


if __name__ == "__main__":
    main()
