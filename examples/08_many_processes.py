"""One model on 1, 2 and 4 processes, and the same parameters bit for bit.

A step has four batches. One process takes them one after the other; of two processes, each takes
two, and of four, each one. Started alone, this script starts itself with `mpiexec` for each number
of processes, and compares: time, loss and a hash of all parameters, after a training with dropout.
Lines marked (*) are all that many processes need.

Runs for about a minute on two cores, four processes sharing them as they can. The last line is the
loss on the tenth of the text that was never trained on, as in
"validation loss 2.348 on 1, 2 and 4 processes, with the same bits".
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from arguments import at_least, text_to_read

import tinytensor as tt
import tinytensor.distributed as dist
from gpt.data import Windows, load_text, split
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import CharTokenizer
from tinytensor.distributed.agreement import parameters_hash

BLOCK_SIZE, BATCH_SIZE, BATCHES = 32, 16, 4  # so many batches a step, whoever computes them
LEARNING_RATE, CLIP = 3e-3, 1.0


def train(arguments: argparse.Namespace) -> None:
    """What every process runs."""
    place = dist.init_process_group(timeout=60)  # (*)
    tt.set_num_threads(1)
    text = load_text(arguments.data)
    tokenizer = CharTokenizer.of(text.content)
    tokens = np.array(tokenizer.encode(text.content))
    train_tokens, validation_tokens = split(tokens, BLOCK_SIZE, text.source)

    tt.manual_seed(arguments.seed)
    sizes = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        block_size=BLOCK_SIZE,
        n_layer=3,
        n_head=4,
        n_embd=64,
        dropout=0.1,
    )
    model = GPT(sizes)
    parallel = dist.DistributedDataParallel(model)  # (*)
    optimizer = tt.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    windows = Windows(train_tokens, BLOCK_SIZE, BATCH_SIZE, tt.Generator(arguments.seed))

    own = range(BATCHES)[place.rank * BATCHES // place.world_size :][: BATCHES // place.world_size]
    dist.barrier()
    began = time.perf_counter()
    for step in range(arguments.iterations):
        # Every process draws all batches, which costs little, and computes with its own.
        batches = [windows.next_batch() for _ in range(BATCHES)]
        optimizer.zero_grad()
        for number in own:
            dist.seed_micro_batch(step * BATCHES + number)  # (*) dropout's masks
            last = number == own[-1]
            with contextlib.nullcontext() if last else parallel.no_sync():  # (*)
                _, loss = parallel(*batches[number])
                (loss / len(own)).backward()
        tt.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    seconds = time.perf_counter() - began

    model.eval()
    windows = Windows(validation_tokens, BLOCK_SIZE, BATCH_SIZE, tt.Generator(arguments.seed))
    with tt.no_grad():
        # The validation batches are divided as well, and the losses averaged.
        batches = [windows.next_batch() for _ in range(arguments.eval_batches)]
        losses = [model(*batch)[1].item() for batch in batches[place.rank :: place.world_size]]
    total = tt.tensor(sum(losses))
    dist.all_reduce(total)
    if place.rank == 0:
        rate = arguments.iterations * BATCHES * BATCH_SIZE * BLOCK_SIZE / seconds
        loss = total.item() / arguments.eval_batches
        hashed = parameters_hash(model.parameters())
        print(f"{place.world_size:9}  {seconds:7.1f}  {rate:8,.0f}  {loss:.6f}  {hashed}")
    dist.destroy_process_group()


def mpiexec() -> str | None:
    """The launcher, where it and mpi4py are installed."""
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    return (beside or shutil.which("mpiexec")) if dist.is_available() else None


def compare() -> None:
    """Starts this script once for each number of processes, and reads what each printed."""
    launcher = mpiexec()
    print("processes  seconds  tokens/s  loss      parameters", flush=True)
    outcomes = []
    for count in (1, 2, 4) if launcher else (1,):
        command = [sys.executable, *(f"-W{o}" for o in sys.warnoptions), __file__, *sys.argv[1:]]
        if count > 1:
            command = [str(launcher), "-n", str(count), *command]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--one"], env=environment, stdout=subprocess.PIPE, encoding="utf-8"
        )
        if done.returncode:
            sys.exit(f"with {count} processes it failed")
        print(done.stdout, end="", flush=True)
        outcomes.append(done.stdout.split()[-2:])
    loss = float(outcomes[0][0])
    if not launcher:
        print(
            f"validation loss {loss:.3f} on 1 process: for more, pip install 'tinytensor-gpt[mpi]'"
        )
    elif len({hashed for _, hashed in outcomes}) == 1:
        print(f"validation loss {loss:.3f} on 1, 2 and 4 processes, with the same bits")
    else:
        sys.exit(f"the parameters differ: {outcomes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=at_least(0), default=200)
    parser.add_argument("--eval-batches", type=at_least(1), default=40)
    parser.add_argument(
        "--data", type=text_to_read, default="shakespeare", help="or python, or the path of a text"
    )
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--one", action="store_true", help="train, as one of the processes")
    arguments = parser.parse_args()
    if arguments.one:
        train(arguments)
    else:
        compare()


if __name__ == "__main__":
    main()
