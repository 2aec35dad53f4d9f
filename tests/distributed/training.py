"""What the ranks of the tests run: a small GPT with dropout, trained for some steps, with mishaps.

    mpiexec -n 2 python -m tests.distributed.training --out FOLDER --steps 20 …

Rank 0 leaves `parameters.safetensors` in the folder, the same file bit for bit however the
micro-batches were divided among ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

import tinytensor as tt
import tinytensor.distributed as dist
from gpt.model import GPT, GPTConfig
from tinytensor.distributed import watch

VOCAB, BLOCK, BATCH = 31, 16, 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--micro-batches", type=int, default=4, help="a step, over all ranks")
    parser.add_argument("--bucket-mb", type=float, default=0.02)
    parser.add_argument("--sharded", action="store_true", help="ZeRO stage 1")
    parser.add_argument("--at-once", action="store_true", help="no gathering beside the forward")
    parser.add_argument("--undivided", type=float, default=0.0)
    parser.add_argument("--look", action="store_true", help="at the parameters between the steps")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--no-bias", action="store_true")
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--last-words", type=float, default=watch.LAST_WORDS)
    parser.add_argument("--mishap", choices=["kill", "raise", "hang", "freeze", "leave"])
    parser.add_argument(
        "--where", choices=["backward", "reduction", "saving", "forward", "gathering"]
    )
    parser.add_argument("--victim", type=int, default=1)
    parser.add_argument("--at", type=int, default=-1, help="the step of the mishap, from 0")
    return parser.parse_args()


def mishap(options: argparse.Namespace, step: int, where: str) -> None:
    """Something happens to the victim here, if this is the time and place."""
    if (options.where, options.at, options.victim) != (where, step, dist.get_rank()):
        return
    if options.mishap == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if options.mishap == "raise":
        raise ValueError("a planted error")
    if options.mishap == "hang":
        time.sleep(600)
    if options.mishap == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if options.mishap == "leave":
        sys.exit(0)


def micro_batch(number: int) -> tuple[tt.Tensor, tt.Tensor]:
    """Its tokens follow from its number alone."""
    generator = np.random.default_rng(number)
    tokens = generator.integers(0, VOCAB, (BATCH, BLOCK + 1))
    return tt.from_numpy(tokens[:, :-1].copy()), tt.from_numpy(tokens[:, 1:].copy())


def save(folder: Path, step: int, model: Any, optimizer: Any, options: Any) -> None:
    """Aside, then renamed: `checkpoint` is the last whole one."""
    if options.sharded:
        optimizer.consolidate_state_dict()
    if dist.get_rank() != 0:
        mishap(options, step, "saving")
        return
    aside = folder / "checkpoint.aside"
    aside.mkdir(exist_ok=True)
    tt.save_file(model.state_dict(), aside / "model.safetensors")
    mishap(options, step, "saving")
    tt.save(optimizer.state_dict(), aside / "optimizer.safetensors")
    (aside / "state.json").write_text(json.dumps({"step": step + 1}))
    aside.rename(folder / f"checkpoint-{step + 1:04d}")


def load(folder: Path, model: Any, optimizer: Any) -> int:
    """The last checkpoint, where there is one; answers the next step."""
    whole = sorted(folder.glob("checkpoint-*"))
    if not whole:
        return 0
    model.load_state_dict(tt.load_file(whole[-1] / "model.safetensors"))
    optimizer.load_state_dict(tt.load(whole[-1] / "optimizer.safetensors"))
    return int(json.loads((whole[-1] / "state.json").read_text())["step"])


def main() -> None:
    options = arguments()
    watch.LAST_WORDS = options.last_words
    place = dist.init_process_group(timeout=options.timeout)
    tt.set_num_threads(1)
    tt.manual_seed(1)
    model = GPT(
        GPTConfig(
            vocab_size=VOCAB,
            block_size=BLOCK,
            n_layer=2,
            n_head=2,
            n_embd=16,
            dropout=0.2,
            bias=not options.no_bias,
        )
    )
    dist.check_agreement(model.parameters(), {"steps": options.steps})
    parallel = dist.DistributedDataParallel(model, bucket_cap_mb=options.bucket_mb, average=False)
    if options.sharded:
        optimizer: Any = dist.ZeroRedundancyOptimizer(
            model.parameters(),
            tt.optim.AdamW,
            model=parallel,
            overlap=not options.at_once,
            undivided=options.undivided,
            lr=options.lr,
        )
    else:
        optimizer = tt.optim.AdamW(model.parameters(), lr=options.lr)
    options.out.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    begin = load(options.out, model, optimizer)
    local = options.micro_batches // place.world_size
    for step in range(begin, options.steps):
        optimizer.zero_grad()
        first = (step * place.world_size + place.rank) * local
        for index in range(local):
            last = index == local - 1
            dist.seed_micro_batch(first + index)
            mishap(options, step, "forward")
            with nullcontext() if last else parallel.no_sync():
                _, loss = parallel(*micro_batch(first + index))
                loss = loss / options.micro_batches
                if last:
                    plant(options, step, model)
                loss.backward()
        if options.clip and options.sharded:
            optimizer.clip_grad_norm_(options.clip)
        elif options.clip:
            tt.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        if options.where == "gathering":
            plant_in_gathering(options, step)
        optimizer.step()
        if options.look:
            look(step, model)
        if options.save_every and (step + 1) % options.save_every == 0:
            save(options.out, step, model, optimizer, options)
    if place.rank == 0:
        tt.save_file(model.state_dict(), options.out / "parameters.safetensors")
        print(f"{place.world_size} ranks: done")
    dist.destroy_process_group()


def plant(options: argparse.Namespace, step: int, model: Any) -> None:
    """Mishaps inside the backward pass, or in the middle of its reductions."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if options.where == "backward":
        parameters[len(parameters) // 2].register_hook(lambda _: mishap(options, step, "backward"))
    if options.where == "reduction" and (options.victim, options.at) == (dist.get_rank(), step):
        communicator = dist.group.current().cpu
        inside = communicator._combined

        def interrupted(*args: Any) -> Any:
            mishap(options, step, "reduction")
            return inside(*args)

        communicator._combined = interrupted


def plant_in_gathering(options: argparse.Namespace, step: int) -> None:
    """A mishap when one bucket of the parameters has been gathered, and the next has not."""
    if (options.victim, options.at) != (dist.get_rank(), step):
        return
    communicator = dist.group.current().cpu
    inside, calls = communicator.all_gather, []

    def interrupted(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            mishap(options, step, "gathering")
        inside(*args)

    communicator.all_gather = interrupted


def look(step: int, model: Any) -> None:
    """Each rank reads other parameters, in another order, and writes what is there already."""
    parameters = list(model.parameters())
    chosen = np.random.default_rng((step, dist.get_rank())).permutation(len(parameters))[:5]
    before = {index: parameters[index].array.copy() for index in chosen}
    model.load_state_dict(model.state_dict())
    for index, array in before.items():
        assert np.array_equal(parameters[index].array, array), "a stale parameter was read"


if __name__ == "__main__":
    main()
