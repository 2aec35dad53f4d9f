"""The classic silent mistakes, each looked for and named in a sentence.

A language model with one of them trains, prints falling losses, and is wrong: it sees the future,
learns from the text it is tested on, or moves one weight twice. Each function below returns the
fault in words, or nothing. The first five cost milliseconds and run at the start of every training
(`--no-checks` leaves them out); `python -m gpt check` runs all of them. `tests/gpt/test_checks.py`
plants every one of these faults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

import tinytensor as tt
from gpt import UserError
from gpt.config import SCRATCH, TrainConfig
from gpt.corpus import Batch, Corpus, first_windows
from gpt.devices import device_of, loss_on
from gpt.language_model import LanguageModel, evaluating
from gpt.model import GPT, parameter_groups

# Two orders of summation differ by a few units in the last place of the largest logits.
ROUNDING = 1e-4
# An untrained model guesses. How far it may be from ln V: PyTorch's default initialisation of a
# head costs a tenth, embeddings of N(0, 1) under a tied head many times as much.
UNTRAINED = 0.25
ROWS, TIME = 8, 32  # of the batch to learn by heart: more than a few rows, so that they differ
STEPS = 120


# ---- The model ----


def future(model: LanguageModel) -> str:
    """Does a later token move an earlier logit? Each half of the context is changed in turn."""
    T = min(model.block_size, 16)
    idx = tokens_of(model, (1, T))
    before = logits(model, idx)
    for border in sorted({T // 2, T - 1} - {0}):
        changed = idx.copy()
        changed[:, border:] = (changed[:, border:] + 1) % model.vocab_size
        moved = np.abs(logits(model, changed)[:, :border] - before[:, :border]).max(axis=(0, 2))
        if (worst := moved.max()) > rounding(before):
            return (
                f"a later token moves an earlier logit: changing the tokens from position {border} "
                f"on moved the logits of position {int(moved.argmax())} by {worst:.2g}; the causal "
                "mask is missing, too late, or on the wrong axis"
            )
    return ""


def rows(model: LanguageModel) -> str:
    """Is each row of a batch independent of the others?"""
    idx = tokens_of(model, (3, min(model.block_size, 16)))
    before = logits(model, idx)
    changed = idx.copy()
    changed[1] = (changed[1] + 1) % model.vocab_size
    moved = np.abs(logits(model, changed) - before).max(axis=(1, 2))
    moved[1] = 0
    if (worst := moved.max()) > rounding(before):
        return (
            f"the rows of a batch are not independent: changing row 1 moved the logits of row "
            f"{int(moved.argmax())} by {worst:.2g}; a softmax, norm or reshape mixes the batch axis"
        )
    return ""


def first_loss(model: LanguageModel, batch: Batch, pretrained: bool = False) -> str:
    """Is the loss of the untrained model ln V? That of a trained one must not be above it."""
    loss, guess = loss_of(model, batch), math.log(model.vocab_size)
    if abs(loss / guess - 1) <= UNTRAINED or model.vocab_size == 1:
        return ""
    if pretrained and loss < guess:
        return ""
    if pretrained:
        cause = "the weights belong to another tokenizer, or were damaged"
    elif loss > guess:
        cause = "the initial weights are too large for the head"
    else:
        cause = "it sees its targets, or was trained already"
    return (
        f"the first loss is {loss:.3f}, but a model that knows nothing guesses, which is ln "
        f"{model.vocab_size:,} = {guess:.3f}: {cause}"
    )


def tied_once(
    model: LanguageModel, groups: Iterable[dict[str, Any]], config: TrainConfig | None = None
) -> str:
    """Is each weight, the tied one too, counted, decayed and updated once?"""
    parameters: list[tt.Tensor] = []
    for group in groups:
        parameters += list(group["params"])
    names = {id(p): name for name, p in model.named_parameters()}
    seen: dict[int, str] = {}
    for p in parameters:
        place = p.data_ptr()
        if place in seen:
            return (
                f"{seen[place]} is given to the optimizer twice, as "
                f"{names.get(id(p), 'another tensor')} too: a tied weight is one parameter, "
                "counted and updated once"
            )
        seen[place] = names.get(id(p), "a weight")
    if left := [name for name, p in model.named_parameters() if not in_list(p, parameters)]:
        return f"{left[0]} is not given to the optimizer and will never learn"
    wanted = config.tied if config is not None else isinstance(model, GPT) and model.config.tied
    head, table = getattr(model, "lm_head", None), getattr(model, "transformer", None)
    if wanted and head is not None and table is not None and head.weight is not table.wte.weight:
        return (
            "the head's weight is a copy of the token table, not the table itself: it is counted "
            "twice, and tied until the first step only"
        )
    return ""


def overfits(model: LanguageModel, batch: Batch, steps: int = STEPS) -> str:
    """Can the model learn one batch by heart? This trains the model that it is given."""
    batch = shortened(batch)
    optimizer = tt.optim.AdamW(parameter_groups(model, 0.0), lr=3e-3, betas=(0.9, 0.99))
    first = loss_of(model, batch)
    for _ in range(steps):
        loss = loss_on(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        tt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.item() < 0.1 * first:
            return ""
    if (last := loss_of(model, batch)) < 0.25 * first:
        return ""
    return (
        f"one batch of {batch[0].shape[0]} rows is not learned by heart: after {steps} steps on it "
        f"alone the loss went from {first:.3f} to {last:.3f} only; the gradient does not reach all "
        "weights, or the model does not see all of its input"
    )


# ---- The data ----


def targets(batch: Batch) -> str:
    """Are the targets the inputs moved by one?"""
    x, y = (part.numpy() for part in batch)
    T = x.shape[1]
    if T < 2 or (y[:, :-1] == x[:, 1:]).all():
        return ""
    if (y == x).all():
        return "the targets are the inputs themselves: the model would learn to copy"
    for k in range(2, min(T, 9)):
        if (y[:, :-k] == x[:, k:]).all():
            return f"the targets are the inputs moved by {k} tokens, not by one"
    return "the targets are not the inputs moved by one token: y[b, t] must be x[b, t + 1]"


def overlap(corpus: Corpus) -> str:
    """Do training and validation windows overlap?"""
    train, validation = corpus.splits["train"], corpus.splits["validation"]
    if np.shares_memory(train, validation):
        return (
            "training and validation windows overlap: they are cut from the same tokens, so the "
            "validation loss says nothing about text that the model never saw"
        )
    # The same tokens in another place, a copied shard for one. A text may repeat itself by nature;
    # a passage that the training text has more than once is no evidence.
    length = min(32, len(validation))
    haystack = np.ascontiguousarray(train[: 1 << 24]).tobytes()
    found = [haystack.count(w.astype(train.dtype).tobytes()) for w in some(validation, length)]
    copies = sum(count == 1 for count in found)
    if copies > len(found) / 2:
        return (
            f"training and validation windows overlap: {copies} of {len(found)} passages of the "
            "validation text stand in the training text, too"
        )
    return ""


def some(tokens: np.ndarray[Any, Any], length: int) -> list[Any]:
    return first_windows(tokens, 16, length)


# ---- Running them ----


Check = tuple[str, Callable[[], str]]


def cheap_checks(
    model: LanguageModel, optimizer: tt.optim.Optimizer, corpus: Corpus, config: TrainConfig
) -> Iterator[Check]:
    """What is looked at before every training, with the sentence that is true where all is well."""
    batch = a_batch(corpus)
    yield "no later token moves an earlier logit", lambda: future(model)
    yield "each row of a batch is independent of the others", lambda: rows(model)
    trained = config.init_from != SCRATCH
    statement = "the first loss is below ln V" if trained else "the first loss is ln V"
    yield statement, lambda: first_loss(model, shortened(batch), trained)
    groups = optimizer.param_groups
    yield "each weight, the tied one too, is counted once", lambda: tied_once(model, groups, config)
    yield "the targets are the inputs moved by one", lambda: targets(batch)
    yield "training and validation windows do not overlap", lambda: overlap(corpus)


def all_checks(
    model: LanguageModel, optimizer: tt.optim.Optimizer, corpus: Corpus, config: TrainConfig
) -> Iterator[Check]:
    yield from cheap_checks(model, optimizer, corpus, config)
    batch = a_batch(corpus)
    yield "one batch is learned by heart", lambda: overfits(model, batch)


def check_before_training(
    model: LanguageModel, optimizer: tt.optim.Optimizer, corpus: Corpus, config: TrainConfig
) -> None:
    """Raises UserError with the first fault that a cheap check finds."""
    for _, check in cheap_checks(model, optimizer, corpus, config):
        if fault := check():
            raise UserError(f"{fault} (--no-checks trains all the same)")


def a_batch(corpus: Corpus) -> Batch:
    """A batch as training sees it, from a sequence of its own."""
    batches = corpus.training_batches()
    try:
        return batches.next_batch()
    finally:
        close(batches)


def close(batches: object) -> None:
    """Stops a loader that reads ahead; windows have nothing to stop."""
    getattr(batches, "close", lambda: None)()


def shortened(batch: Batch) -> Batch:
    x, y = batch
    return x[:ROWS, :TIME], y[:ROWS, :TIME]


def logits(model: LanguageModel, idx: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with evaluating(model):
        scores = model(tt.from_numpy(idx).to(device_of(model)))[0]
        return np.array(scores.cpu().numpy())


def loss_of(model: LanguageModel, batch: Batch) -> float:
    with evaluating(model):
        return float(loss_on(model, batch).item())


def tokens_of(model: LanguageModel, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Some tokens, the same ones each time; the run's own random numbers are left alone."""
    return tt.randint(model.vocab_size, shape, generator=tt.Generator(1)).numpy().astype(np.int64)


def rounding(values: np.ndarray[Any, Any]) -> float:
    return float(ROUNDING * np.abs(values).max())


def in_list(tensor: tt.Tensor, tensors: list[tt.Tensor]) -> bool:
    return any(tensor is other for other in tensors)
