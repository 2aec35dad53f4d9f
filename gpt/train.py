"""Training, as prose: batch, forward, backward, clip, step, log, evaluate, save; then a sample.

`train` is the whole of it and is read from top to bottom; what it calls stands below it. A run can
be stopped at any step (Ctrl-C) or killed (`kill -9`) and goes on bit for bit: see `gpt/runs.py`.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinytensor as tt
from gpt import UserError
from gpt.config import CHANGEABLE, TrainConfig, flag
from gpt.data import Entropies, Text, Windows, entropies, load_text, split
from gpt.generate import encode_prompt, generate
from gpt.model import LanguageModel, parameter_groups
from gpt.plot import plot_losses
from gpt.progress import Clock, StopRequest, evaluation_line, introduce, progress_bar, say
from gpt.runs import MODEL, OPTIMIZER, RunFolder, build_model
from gpt.tokenizer import CharTokenizer, Tokenizer


@dataclass(frozen=True)
class Outcome:
    """How far a run came; it is finished unless Ctrl-C stopped it."""

    run: RunFolder
    step: int
    finished: bool


def train(config: TrainConfig, run: RunFolder | None = None) -> Outcome:
    """Trains what `config` describes, in a new run folder, or goes on with `run`.

    Prints its progress. Raises UserError for whatever the user can put right.
    """
    text = load_text(config.data)
    if text.note:
        say(text.note)
    tokenizer = CharTokenizer.of(text.content)
    tokens = np.array(tokenizer.encode(text.content), dtype=token_dtype(tokenizer.vocab_size))
    train_tokens, validation_tokens = split(tokens, config.block_size, text.source)
    known = entropies(train_tokens, tokenizer.vocab_size)
    # Encoded now: that it cannot be should not come out after the training.
    prompt = encode_prompt(tokenizer, config.sample_prompt, "--sample-prompt")

    tt.manual_seed(config.seed)
    model = build_model(config, tokenizer.vocab_size)
    optimizer = build_optimizer(config, model)
    batches = Windows(
        train_tokens, config.block_size, config.batch_size, random_stream(config.seed, "batches")
    )
    splits = {"train": train_tokens, "validation": validation_tokens}

    config = dataclasses.replace(config, data=text.source)
    step, seconds_before = 0, 0.0
    resuming = run is not None
    if run is None:
        run = RunFolder.create(config)
        config = dataclasses.replace(config, name=run.path.name)
        run.begin(config, tokenizer)
    elif run.checkpoint() is None:  # it was stopped before its first checkpoint
        run.begin(config, tokenizer)
    else:
        state = run.load_state(MODEL, OPTIMIZER)
        check_same_text(run, state["text"], text)
        run.load_checkpoint(state, model, optimizer, batches)
        step, seconds_before = state["step"], state["seconds"]
        run.save_config(config)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    introduce(text, tokenizer.vocab_size, known, parameters, config)
    if resuming:
        say(f"goes on from step {step:,} of {config.iterations:,}")
    facts = {"tokens": len(tokens), "vocab_size": tokenizer.vocab_size, "parameters": parameters}
    clock = Clock(seconds_before)

    with StopRequest() as stop, progress_bar(step, config.iterations) as bar:
        if step == 0:
            run.log("start", 0, **facts, **dataclasses.asdict(known))
            losses = evaluate(model, splits, config)
            run.log("evaluation", 0, **losses)
            say(evaluation_line(0, losses, known, clock, config))
        clock.restart()

        stopping = False
        while step < config.iterations and not stopping:
            step += 1
            x, y = batches.next_batch()  # (B, T) each
            _, loss = model(x, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            measured = {"loss": loss.item(), "learning_rate": learning_rate(step, config)}
            if config.clip:
                norm = tt.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                measured["gradient_norm"] = norm.item()
            check_finite(step, measured, run)
            for group in optimizer.param_groups:
                group["lr"] = measured["learning_rate"]
            optimizer.step()
            clock.count(x.numel())

            if step % config.log_every == 0:
                rate = clock.tokens_per_second()
                run.log("train", step, **measured, tokens_per_second=rate, seconds=clock.seconds())
                bar.set_postfix_str(
                    f"loss {measured['loss']:.3f}, {rate:,} tokens/s", refresh=False
                )
            if step % config.eval_every == 0 or step == config.iterations:
                losses = evaluate(model, splits, config)
                run.log("evaluation", step, **losses, seconds=clock.seconds())
                say(evaluation_line(step, losses, known, clock, config))
                clock.restart()
            stopping = stop.requested
            due = config.checkpoint_every and step % config.checkpoint_every == 0
            if due or stopping or step == config.iterations:
                run.save_checkpoint(
                    step, model, optimizer, batches, text=text.sha256, seconds=clock.seconds()
                )
            bar.update()

    if step < config.iterations:
        say(f"stopped after step {step:,}; to go on:  {run.resume_command}")
        return Outcome(run, step, finished=False)
    finish(run, model, tokenizer, prompt, known, config)
    return Outcome(run, step, finished=True)


# ---- The optimizer ----


def build_optimizer(config: TrainConfig, model: LanguageModel) -> tt.optim.AdamW:
    if config.decay == "matrices":
        parameters: Any = parameter_groups(model, config.weight_decay)
    else:
        parameters = model.parameters()
    return tt.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """The step size of step 1, 2, …: it grows over the warm-up, then stays or follows a cosine.

    It is a function of the step alone, so that a resumed run needs no memory of it.
    """
    highest, lowest = config.learning_rate, config.min_learning_rate
    if step <= config.warmup:
        return highest * step / (config.warmup + 1)
    if config.schedule == "constant":
        return highest
    done = (step - 1 - config.warmup) / max(1, config.iterations - config.warmup)
    return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * done))


def check_finite(step: int, measured: dict[str, float], run: RunFolder) -> None:
    for name, value in measured.items():
        if not math.isfinite(value):
            raise UserError(
                f"at step {step} the {name.replace('_', ' ')} is {value}: the training has "
                f"diverged; a lower --learning-rate may help ({run.way_on()})"
            )


# ---- Evaluation ----


def evaluate(
    model: LanguageModel, splits: dict[str, np.ndarray[Any, Any]], config: TrainConfig
) -> dict[str, float]:
    """The mean loss on each split, over the same random windows each time.

    They come from a generator of their own: evaluating changes nothing in the training.
    """
    model.eval()
    losses = {}
    with tt.no_grad():
        for name, tokens in splits.items():
            generator = random_stream(config.seed, f"evaluation on {name}")
            batches = Windows(tokens, config.block_size, config.batch_size, generator)
            total = 0.0
            for _ in range(config.eval_batches):
                _, loss = model(*batches.next_batch())
                total += loss.item()
            losses[f"{name}_loss"] = total / config.eval_batches
    model.train()
    return losses


# ---- The end of a run ----


def finish(
    run: RunFolder,
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: list[int],
    known: Entropies,
    config: TrainConfig,
) -> None:
    """The loss curve, the sample, and where everything is."""
    loss = run.records("evaluation")[-1]["validation_loss"]
    generator = random_stream(config.seed, "sample")
    ids = generate(model, prompt, config.sample_chars, generator=generator)
    try:
        plot_losses(run, run.path / "loss.png")
        say("-" * 72)
        with open(run.path / "sample.txt", "w", encoding="utf-8", newline="\n") as file:
            for i in ids:
                piece = tokenizer.decode([i])
                file.write(piece)
                print(piece, end="", flush=True)
    except OSError as error:
        raise UserError(f"{run} cannot be written: {error.strerror}; {run.way_on()}") from None
    print(f"\n{'-' * 72}")
    print(
        f"validation loss {loss:.3f} ({known.meaning(loss)}), where uniform is "
        f"{known.uniform:.3f}, unigram {known.unigram:.3f} and bigram {known.bigram:.3f}"
    )
    print(f"{run} holds loss.png, sample.txt, log.jsonl, config.json and the checkpoint")
    example = example_prompt(tokenizer)
    print(f"more text:  python -m gpt generate --run {shlex.quote(str(run))} --prompt '{example}'")


# ---- Resuming ----


def check_changes(saved: TrainConfig, asked: TrainConfig) -> None:
    """Refuses to resume a run as another one."""
    for field in dataclasses.fields(TrainConfig):
        before, after = getattr(saved, field.name), getattr(asked, field.name)
        if before != after and field.name not in CHANGEABLE:
            raise UserError(
                f"{flag(field.name)} was {before!r} when the run began and cannot become "
                f"{after!r}: a resumed run may change {', '.join(map(flag, sorted(CHANGEABLE)))}"
            )


def check_same_text(run: RunFolder, digest: str, text: Text) -> None:
    if text.sha256 != digest:
        raise UserError(
            f"{text.source} is not the text that {run} began with (its SHA-256 begins "
            f"{text.sha256[:8]}, then {digest[:8]}); a run goes on with its own text only"
        )


# ---- Small things ----


def random_stream(seed: int, purpose: str) -> tt.Generator:
    """Random numbers of the run for one purpose, independent of those for others."""
    return tt.Generator(zlib.crc32(f"{seed} {purpose}".encode()))


def token_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def example_prompt(tokenizer: Tokenizer) -> str:
    """ROMEO: where the vocabulary has these characters, else a few that it has."""
    try:
        tokenizer.encode("ROMEO:")
    except UserError:
        letters = [c for c in tokenizer.decode(range(tokenizer.vocab_size)) if c.isalpha()]
        return "".join(letters[:1]) or " "
    return "ROMEO:"
