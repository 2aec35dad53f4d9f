"""What a training run says while it goes, how long it takes, and how it is asked to stop.

Lines go to stdout, at once also where that is a pipe; the progress bar goes to stderr, and only on
a terminal. Used by `gpt/train.py`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from tqdm import tqdm

from gpt.config import SCRATCH, TrainConfig
from gpt.corpus import Corpus
from gpt.data import Entropies
from gpt.fields import plural
from tinytensor.distributed import get_rank


def say(line: str) -> None:
    """A line above the progress bar, at once where the output is a pipe; rank 0 alone speaks."""
    if get_rank():
        return
    tqdm.write(line)
    sys.stdout.flush()


def progress_bar(step: int, iterations: int) -> tqdm[Any]:
    """On stderr, and only on a terminal (disable=None)."""
    return tqdm(
        initial=step,
        total=iterations,
        disable=True if get_rank() else None,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}% {bar} {n}/{total} [{elapsed}, {remaining} left{postfix}]",
    )


def introduce(corpus: Corpus, parameters: int, config: TrainConfig) -> None:
    """The text, the model, and what a loss on this text means, before the first step."""
    V, known = corpus.vocab_size, corpus.known
    say(f"text    {corpus.describe()}")
    say(
        f"model   {config.model}: {parameters:,} parameters, context {config.block_size}, "
        f"{plural(config.n_layer, 'layer')}, {plural(config.n_head, 'head')}, width "
        f"{config.n_embd}"
        f"{'' if config.init_from == SCRATCH else f', from the weights of {config.init_from}'}"
    )
    say(
        f"losses  {known.uniform:.3f} guesses (uniform, ln {V}); {known.unigram:.3f} knows what is "
        f"frequent (unigram); {known.bigram:.3f} knows what follows what (bigram)"
    )


def evaluation_line(
    step: int, losses: dict[str, float], known: Entropies, clock: Clock, config: TrainConfig
) -> str:
    minutes, seconds = divmod(round(clock.seconds()), 60)
    untrained = step == 0 and config.init_from == SCRATCH
    meaning = "untrained" if untrained else known.meaning(losses["validation_loss"])
    return (
        f"step {step:>{len(f'{config.iterations:,}')},}  train {losses['train_loss']:.4f}  "
        f"validation {losses['validation_loss']:.4f}  {minutes}:{seconds:02d}  "
        f"{meaning}"
    )


class Clock:
    """Seconds since the run began, pauses left out, and tokens per second of training."""

    def __init__(self, seconds_before: float):
        self.began = time.perf_counter() - seconds_before
        self.restart()

    def seconds(self) -> float:
        return round(time.perf_counter() - self.began, 3)

    def restart(self) -> None:
        self.since, self.tokens = time.perf_counter(), 0

    def count(self, tokens: int) -> None:
        self.tokens += tokens

    def tokens_per_second(self) -> int:
        """Since the last call or restart."""
        rate = self.tokens / max(time.perf_counter() - self.since, 1e-9)
        self.restart()
        return round(rate)


class StopRequest:
    """Ctrl-C as a request: the step under way is finished and saved. A second one stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self.in_main_thread = threading.current_thread() is threading.main_thread()
        if self.in_main_thread:  # only there can Python receive signals
            self.previous = signal.signal(signal.SIGINT, self.receive)
        return self

    def receive(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")

    def __exit__(self, *exception: object) -> None:
        if self.in_main_thread:
            signal.signal(signal.SIGINT, self.previous)
