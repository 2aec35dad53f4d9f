"""Training, as prose: batches, gradients, clip, step, log, evaluate, sample, save.

`train` is the whole of it and is read from top to bottom; what it calls stands below it. A run can
be stopped at any step (Ctrl-C) or killed (`kill -9`) and goes on bit for bit: see `gpt/runs.py`.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import tinytensor as tt
import tinytensor.distributed as dist
from gpt import UserError, devices, ranks
from gpt.captured import CapturedGradients
from gpt.checks import check_before_training, close
from gpt.config import CHANGEABLE, TrainConfig
from gpt.corpus import Batch, Batches, Corpus, load_corpus
from gpt.data import random_stream, stream_seed
from gpt.diagnosis import all_finite, damaged_parameter, explain, unwarned
from gpt.fields import flag
from gpt.generate import encode_prompt, generate
from gpt.language_model import LanguageModel, evaluating
from gpt.model import parameter_groups
from gpt.plan import flops_per_token, peak_of, plan_for
from gpt.plot import plot_losses
from gpt.pretrained import check_start, starting_model
from gpt.progress import Clock, StopRequest, evaluation_line, introduce, progress_bar, say
from gpt.runs import MODEL, OPTIMIZER, RunFolder, build_model
from gpt.shared import SharedGradients, chosen_processes, shares
from gpt.streaming import TextStream
from gpt.tokenizer import Tokenizer

# A gradient is never this long, but its length is measured by the function that clips.
NO_CLIP = 1e30


@dataclass(frozen=True)
class Outcome:
    """How far a run came; it is finished unless Ctrl-C stopped it."""

    run: RunFolder
    step: int
    finished: bool


@ranks.parting
def train(config: TrainConfig, run: RunFolder | None = None) -> Outcome:
    """Trains what `config` describes, in a new run folder, or goes on with `run`.

    Prints its progress. Raises UserError for whatever the user can put right.
    """
    place = ranks.join(config)  # of many processes, or of this one
    where = place.device
    tt.set_float32_matmul_precision(config.matmul_precision)
    saved = run.load_state(MODEL, OPTIMIZER) if run is not None and run.checkpoint() else None
    if saved is None:
        corpus = load_corpus(config)
    else:
        assert run is not None
        corpus = load_corpus(config, run.tokenizer(), saved["text"])
    if corpus.note:
        say(corpus.note)
    tokenizer, known = corpus.tokenizer, corpus.known
    # Encoded now: that it cannot be should not come out after the training.
    prompt = encode_prompt(tokenizer, config.sample_prompt, "--sample-prompt")
    if saved is None:
        check_start(config, tokenizer.vocab_size)
    before = saved.get("processes", 0) if saved else 0
    processes = chosen_processes(config, tokenizer.vocab_size, where, place.world_size, before)
    plan = plan_for(config, tokenizer.vocab_size, where, processes)
    plan.check()
    if config.total_batch:  # what takes long or much is said before anything is allocated
        say("\n".join(plan.lines()))

    tt.manual_seed(config.seed)
    start = starting_model if saved is None else build_model
    model = start(config, tokenizer.vocab_size).to(where)
    optimizer: tt.optim.Optimizer = build_optimizer(config, model)
    batches = corpus.training_batches()
    if saved is None and config.checks:
        check_before_training(model, optimizer, corpus, config)

    parallel = parallelized(model, config)
    if config.zero:
        optimizer = ranks.divided(optimizer, parallel)

    config = dataclasses.replace(config, data=corpus.source)
    step, seconds_before = 0, 0.0
    if run is not None:
        run = ranks.written_by_rank_0(run)
    if run is None:
        run = ranks.new_folder(config)
        config = dataclasses.replace(config, name=run.path.name)
        run.begin(config, tokenizer)
    elif saved is None:  # it was stopped before its first checkpoint
        run.begin(config, tokenizer)
    else:
        run.load_checkpoint(saved, model, optimizer, batches)
        step, seconds_before = saved["step"], saved["seconds"]
        run.save_config(config)
    if config.tensorboard:
        run.open_board(step)

    facts_of_run = {"step": step, **dataclasses.asdict(config)}
    dist.check_agreement(model.parameters(), facts_of_run, code=("tinytensor", "gpt"))
    another_way: Any = nullcontext()  # to a batch's gradients
    if config.capture:
        another_way = nullcontext(CapturedGradients(model, config, place.world_size))
    elif processes > 1:
        another_way = SharedGradients(model, optimizer, config, processes, run)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    introduce(corpus, parameters, config)
    if where.type != "cpu":
        say(f"device  {where}, products in {config.precision}")
    if processes > 1:
        say(f"shared  each batch by {processes} processes")
    if saved is not None:
        say(f"goes on from step {step:,} of {config.iterations:,}")
    flops, peak = flops_per_token(plan.sizes), peak_of(where, config)
    clock = Clock(seconds_before)

    bar = progress_bar(step, config.iterations)
    with unwarned(), StopRequest() as stop, bar, another_way as gradients:
        if saved is None:
            facts = {"tokens": corpus.tokens, "vocab_size": corpus.vocab_size, "unit": corpus.unit}
            facts |= {"parameters": parameters, "matmul_peak": round(peak), "processes": processes}
            run.log("start", 0, device=str(where), **facts, **dataclasses.asdict(known))
            losses = evaluate(model, corpus, config)
            run.log("evaluation", 0, **losses)
            say(evaluation_line(0, losses, known, clock, config))
        clock.restart()

        stopping = False
        while step < config.iterations and not stopping:
            step += 1
            place_in_text = batches.state_dict()
            step_batches = [batches.next_batch() for _ in range(config.accumulation)]  # (B, T) each
            parts = accumulate(parallel, optimizer, step_batches, config, step, gradients)
            norm = ranks.clip_grad_norm(model, optimizer, config.clip or NO_CLIP)
            # The one place where a step waits for its device: numbers that are not finite must not
            # reach the parameters, so they are looked at before the optimizer moves.
            *losses_of_parts, length = devices.read([*parts, norm])
            loss = ranks.summed(sum(losses_of_parts))
            measured = {
                "loss": loss,
                "learning_rate": learning_rate(step, config),
                "gradient_norm": length,
            }
            if not all_finite(measured):
                batches.load_state_dict(place_in_text)
                why, damaged = look_again(parallel, optimizer, step_batches, config, step)
                if not damaged:  # what the step began with, to look at it again
                    save(run, step - 1, model, optimizer, batches, corpus, clock, config, processes)
                raise UserError(diverged(step, measured, why, run))
            for group in optimizer.param_groups:
                group["lr"] = measured["learning_rate"]
            # Agreed on before the step: what that sends may go on beside the next forward pass.
            stopping = ranks.anyone(stop.requested)
            optimizer.step()
            clock.count(sum(x.numel() for x, _ in step_batches))

            if step % config.log_every == 0:
                rate = clock.tokens_per_second()
                utilisation = round(rate * flops / peak, 4)
                run.log(
                    "train",
                    step,
                    **measured,
                    tokens_per_second=rate,
                    flops_utilisation=utilisation,
                    seconds=clock.seconds(),
                )
                bar.set_postfix_str(
                    f"loss {loss:.3f}, {rate:,} tokens/s, {utilisation:.0%} of peak", refresh=False
                )
            last = step == config.iterations
            best = False
            if step % config.eval_every == 0 or last:
                losses = evaluate(model, corpus, config)
                best = losses["validation_loss"] < run.best_evaluation()[1]
                run.log("evaluation", step, **losses, seconds=clock.seconds())
                say(evaluation_line(step, losses, known, clock, config))
                clock.restart()
            if config.sample_every and step % config.sample_every == 0 and ranks.leads():
                run.write_sample(step, sample(model, tokenizer, prompt, config, step))
                clock.restart()
            stopping = stopping or (place.world_size == 1 and stop.requested)
            due = config.checkpoint_every and step % config.checkpoint_every == 0
            if due or stopping or last or (best and config.keep_best):
                save(run, step, model, optimizer, batches, corpus, clock, config, processes)
            bar.update()

    close(batches)
    dist.destroy_process_group()
    if step < config.iterations:
        if place.rank == 0:
            say(f"stopped after step {step:,}; to go on:  {run.resume_command}")
        return Outcome(run, step, finished=False)
    if place.rank == 0:
        finish(run, model, corpus, prompt, config)
    return Outcome(run, step, finished=True)


# ---- A step's gradients ----


def parallelized(model: LanguageModel, config: TrainConfig) -> dist.DistributedDataParallel:
    """The model on this rank among others, whose gradients are added up.

    Not averaged: a batch's gradient counts by its share of all targets. The parameters are not sent
    either: every rank has them from the seed or from a file, and `train` compares them.
    """
    return dist.DistributedDataParallel(
        model,
        config.bucket_mb,
        init_sync=False,
        ordered=config.ordered,
        average=False,
        check_every=config.compare_every,
    )


def accumulate(
    model: Any,
    optimizer: tt.optim.Optimizer,
    batches: list[Batch],
    config: TrainConfig,
    step: int,
    gradients: CapturedGradients | SharedGradients | None = None,
) -> list[tt.Tensor]:
    """What this rank's batches add to the mean loss over the targets of all batches, one by one.

    They are still where the model is. The gradient of the whole is left in the parameters. `model`
    is the language model itself, or inside DistributedDataParallel.

    Each batch's loss is a mean of its own, so its gradient counts by its share of the targets: the
    sum is the gradient of one large batch. (Adding the means up, or dividing by the number of
    batches where some have targets to ignore, gives another one.)
    """
    optimizer.zero_grad(set_to_none=not isinstance(gradients, CapturedGradients))
    where = devices.device_of(model)
    parts = []
    own = ranks.share_of(list(zip(batches, shares(batches), strict=True)))
    for number, (batch, share) in own:
        if config.dropout:  # masks that depend on the batch alone, not on who computes it when
            place = (step - 1) * len(batches) + number
            tt.manual_seed(stream_seed(config.seed, f"dropout {place}"))
        if gradients is not None:
            parts.append(gradients(batch, share))
            continue
        with devices.precision(config.precision, where):
            loss = devices.loss_on(model, batch)
        more = number != own[-1][0] and isinstance(model, dist.DistributedDataParallel)
        with model.no_sync() if more else nullcontext():
            loss.backward(None if share == 1.0 else tt.full((), share, device=where))
        parts.append(loss.detach() * share)
    return parts


def look_again(
    parallel: dist.DistributedDataParallel,
    optimizer: tt.optim.Optimizer,
    batches: list[Batch],
    config: TrainConfig,
    step: int,
) -> tuple[str, bool]:
    """Why a step is not finite, and whether it began with parameters that were not.

    A step on another device is computed again on the CPU, where every number of it can be read.
    """
    model: Any = parallel.module
    again: Callable[[], object]
    if devices.device_of(model).type == "cpu":
        again = lambda: accumulate(parallel, optimizer, batches, config, step)  # noqa: E731
        parallel.ordered = False
        with parallel.no_sync():  # each rank looks at its own batches, which stay with it
            why = explain(again, model)
        return why, bool(damaged_parameter(model))
    copy = build_model(config, model.vocab_size)
    copy.load_state_dict(model.state_dict())
    its_optimizer = build_optimizer(config, copy)
    again = lambda: accumulate(copy, its_optimizer, batches, config, step)  # noqa: E731
    return f"looked at on the CPU, {explain(again, copy)}", bool(damaged_parameter(copy))


def diverged(step: int, measured: dict[str, float], why: str, run: RunFolder) -> str:
    name = next(name for name, value in measured.items() if not math.isfinite(value))
    return (
        f"at step {step} the {name.replace('_', ' ')} is {measured[name]}: the training has "
        f"diverged; {why}; a lower --learning-rate may help ({run.way_on()})"
    )


def save(
    run: RunFolder,
    step: int,
    model: LanguageModel,
    optimizer: tt.optim.Optimizer,
    batches: Batches,
    corpus: Corpus,
    clock: Clock,
    config: TrainConfig,
    processes: int,
) -> None:
    ranks.bring_together(optimizer)
    run.save_checkpoint(
        step,
        model,
        optimizer,
        batches,
        text=corpus.digest,
        seconds=clock.seconds(),
        processes=processes,
        keep=config.keep_checkpoints,
        keep_best=config.keep_best,
    )


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


# ---- Evaluation ----


def evaluate(model: LanguageModel, corpus: Corpus, config: TrainConfig) -> dict[str, float]:
    """The mean loss on each split, over the same batches each time.

    They are drawn apart from the others: evaluating changes nothing in the training.
    """
    losses = {}
    with evaluating(model), devices.precision(config.precision, devices.device_of(model)):
        for split in corpus.splits:
            own = ranks.dealt(list(corpus.evaluation_batches(split)))
            each = ranks.collected(devices.read([devices.loss_on(model, batch) for batch in own]))
            losses[f"{split}_loss"] = sum(each) / len(each)
    return losses


def sample(
    model: LanguageModel, tokenizer: Tokenizer, prompt: list[int], config: TrainConfig, step: int
) -> str:
    """What the model writes at this step; its random numbers are its own."""
    generator = random_stream(config.seed, f"sample {step}")
    ids = generate(model, prompt, config.sample_chars, generator=generator)
    return "".join(pieces(tokenizer, ids))


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Text as it becomes certain: a token may end in the middle of a character."""
    stream = TextStream(tokenizer)
    for i in ids:
        yield stream.add(i)
    yield stream.finish()


# ---- The end of a run ----


def finish(
    run: RunFolder,
    model: LanguageModel,
    corpus: Corpus,
    prompt: list[int],
    config: TrainConfig,
) -> None:
    """The loss curve, the sample, and where everything is."""
    tokenizer, known = corpus.tokenizer, corpus.known
    loss = run.records("evaluation")[-1]["validation_loss"]
    generator = random_stream(config.seed, "sample")
    ids = generate(model, prompt, config.sample_chars, generator=generator)
    try:
        plot_losses(run, run.path / "loss.png")
        say("-" * 72)
        with open(run.path / "sample.txt", "w", encoding="utf-8", newline="\n") as file:
            for piece in pieces(tokenizer, ids):
                file.write(piece)
                print(piece, end="", flush=True)
    except OSError as error:
        raise UserError(f"{run} cannot be written: {error.strerror}; {run.way_on()}") from None
    print(f"\n{'-' * 72}")
    print(
        f"validation loss {loss:.3f} ({known.meaning(loss)}), where uniform is "
        f"{known.uniform:.3f}, unigram {known.unigram:.3f} and bigram {known.bigram:.3f}"
    )
    kept = " and ".join(place.name for place in run.checkpoints())
    print(f"{run} holds loss.png, sample.txt, log.jsonl, config.json, {kept}")
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


# ---- Small things ----


def example_prompt(tokenizer: Tokenizer) -> str:
    """ROMEO: where the vocabulary has these characters, else a few that it has."""
    try:
        tokenizer.encode("ROMEO:")
    except UserError:
        letters = [c for c in tokenizer.decode(range(tokenizer.vocab_size)) if c.isalpha()]
        return "".join(letters[:1]) or " "
    return "ROMEO:"
