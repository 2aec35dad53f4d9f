"""The published Shakespeare recipe on a GPU: is it as good, as fast, and the same as on the CPU?

`python -m gpt train --preset shakespeare-gpu` is nanoGPT's recipe for a GPU: 6 layers, 6 heads, a
width of 384, a context of 256, batches of 64, dropout 0.2, 5,000 iterations, with a best validation
loss of 1.4697. Two things are measured here, each written down as soon as it is known:

- the first 20 steps on the GPU and on the CPU from one seed, in float32: losses apart by at most
  1e-4, with the same dropout masks;
- the whole recipe on the GPU: its best validation loss (at most 1.48) and its time (at most 3
  minutes), in bfloat16 and as captured steps unless told otherwise.

`--device cuda-sim --tiny` runs the same lines in a simulator, with a model that a laptop can bear;
its times say nothing. The text has to be there already where there is no network: `--data
shakespeare` downloads it once, a path reads it.

Neither has been measured yet, for want of a GPU. The last line says how far apart the losses were,
the best validation loss and the seconds; measured.json in `--out` has all figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from arguments import at_least, text_to_read

import tinytensor as tt
from gpt.config import TrainConfig
from gpt.presets import PRESETS
from gpt.train import train

TINY = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 8,
    "batch_size": 2,
    "eval_batches": 1,
}
QUIET = {"sample_chars": 8, "checks": False, "checkpoint_every": 0}


def first_steps(config: TrainConfig, steps: int, device: str) -> list[float]:
    """The losses of the first steps on a device, in float32."""
    changes: dict[str, Any] = {
        "device": device, "iterations": steps, "eval_every": steps, "eval_batches": 1,
        "log_every": 1, "precision": "float32", "matmul_precision": "highest", "capture": False,
        "name": f"first-{device.replace(':', '-')}", "keep_best": False, **QUIET,
    }  # fmt: skip
    run = train(dataclasses.replace(config, **changes)).run
    return [record["loss"] for record in run.records("train")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/shakespeare-gpu-measured"))
    add(
        "--data",
        type=text_to_read,
        default="shakespeare",
        help="shakespeare, or the path of its text",
    )
    add("--device", default="cuda", choices=("cuda", "cuda-sim"))
    add("--iterations", type=at_least(1), default=5000)
    add("--steps", type=at_least(1), default=20, help="that are compared with the CPU")
    add("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    add("--no-capture", action="store_true", help="ask for the kernels of each step one by one")
    add("--tiny", action="store_true", help="a small model, to see that it runs")
    given = parser.parse_args()
    if given.device == "cuda" and not tt.cuda.is_available():
        raise SystemExit("no GPU here; --device cuda-sim --tiny --iterations 3 runs the same lines")

    config = dataclasses.replace(
        PRESETS["shakespeare-gpu"],
        data=given.data,
        folder=str(given.out),
        device=given.device,
        precision=given.precision,
        capture=not given.no_capture,
        iterations=given.iterations,
        **(TINY if given.tiny else {}),
    )
    found: dict[str, Any] = {"device": given.device, "config": dataclasses.asdict(config)}
    if given.device == "cuda":
        found["name"] = tt.cuda.get_device_name()

    def write() -> None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "measured.json").write_text(json.dumps(found, indent=1), encoding="utf-8")

    start = time.perf_counter()
    run = train(dataclasses.replace(config, name="recipe", **QUIET)).run
    found["seconds"] = time.perf_counter() - start
    found["validation_losses"] = [
        (record["step"], record["validation_loss"]) for record in run.records("evaluation")
    ]
    found["best"] = min(loss for _, loss in found["validation_losses"])
    write()
    found["first"] = {
        device: first_steps(config, given.steps, device) for device in (given.device, "cpu")
    }
    ours, theirs = found["first"].values()
    found["apart"] = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    write()
    print(f"\n{given.out / 'measured.json'} has all figures")
    print(
        f"furthest apart {found['apart']:.1e} in {given.steps} steps, best validation loss "
        f"{found['best']:.2f}, {found['seconds']:.0f} seconds"
    )


if __name__ == "__main__":
    main()
