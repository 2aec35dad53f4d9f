"""HellaSwag: which of four endings goes on from here? (R. Zellers et al., 2019, arXiv:1905.07830.)

A model answers by the probabilities of the endings after the context. The sum of their logarithms
favours short endings, their mean over the tokens does not: both accuracies are given. Chance is
0.25. Of GPT-2 124M, 0.2859 by the sum and 0.2955 by the mean are published (A. Karpathy,
build-nanogpt, with the 10,042 examples of the validation file and an ending encoded with the space
before it, as here). The file is JSON lines with `ctx`, `endings` and `label`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tinytensor as tt
from gpt import UserError
from gpt.cache import KeyValueCache
from gpt.evaluate import losses
from gpt.files import check_regular
from gpt.language_model import LanguageModel, evaluating
from gpt.model import GPT

if TYPE_CHECKING:
    from gpt.tokenizer import Tokenizer

LONGEST_LINE = 1 << 20  # characters; HellaSwag's have about a thousand
PUBLISHED = "GPT-2 124M: 0.2859 and 0.2955"


@dataclass(frozen=True)
class Example:
    """A context, its possible endings, and the number of the right one."""

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Accuracy:
    """How many examples were answered rightly, by the sum and by the mean over the tokens."""

    examples: int
    by_sum: int
    by_mean: int

    def numbers(self) -> dict[str, float]:
        return {
            "examples": self.examples,
            "accuracy": self.by_sum / self.examples,
            "accuracy_normalised": self.by_mean / self.examples,
            "standard_error": self.standard_error,
        }

    @property
    def standard_error(self) -> float:
        p = self.by_mean / self.examples
        return math.sqrt(p * (1 - p) / self.examples)

    def line(self) -> str:
        return (
            f"HellaSwag: {self.by_sum / self.examples:.4f} by the sum, "
            f"{self.by_mean / self.examples:.4f} length-normalised (± {self.standard_error:.4f}, "
            f"{self.examples:,} examples; published for {PUBLISHED}, chance 0.25)"
        )


def read_examples(path: Path, limit: int = 0) -> list[Example]:
    """The examples of a file. Raises UserError that names the line where one is damaged."""
    examples = []
    try:
        check_regular(path)
        with open(path, encoding="utf-8") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{path}, line {number}: longer than {LONGEST_LINE:,} letters")
                if line.strip():
                    examples.append(parse(line, f"{path}, line {number}"))
                if limit and len(examples) == limit:
                    break
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not examples:
        raise UserError(f"{path} has no examples")
    return examples


def parse(line: str, where: str) -> Example:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: this is not JSON") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: an example is an object with ctx, endings and label")
    context, endings, label = (content.get(field) for field in ("ctx", "endings", "label"))
    if not isinstance(context, str) or not context.strip():
        raise UserError(f"{where}: ctx must be a text")
    if (
        not isinstance(endings, list)
        or not 2 <= len(endings) <= 100
        or not all(isinstance(ending, str) and ending.strip() for ending in endings)
    ):
        raise UserError(f"{where}: endings must be a list of two texts or more")
    if isinstance(label, str) and label in map(str, range(len(endings))):
        label = int(label)  # as Hugging Face writes it
    if type(label) is not int or not 0 <= label < len(endings):
        raise UserError(
            f"{where}: label must be the number of the right ending, 0 to {len(endings) - 1}, but "
            f"it is {str(label)[:40]!r} (the test file of HellaSwag has no labels)"
        )
    return Example(context, tuple(endings), label)


def score_examples(
    model: LanguageModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    progress: Any = lambda x, total: x,
) -> Accuracy:
    """Answers every example. Raises UserError where its characters or length do not fit."""
    by_sum = by_mean = 0
    for example in progress(examples, total=len(examples)):
        context = tokenizer.encode(example.context)
        endings = [tokenizer.encode(" " + ending) for ending in example.endings]
        nats = ending_nats(model, context, endings)
        by_sum += int(np.argmin([row.sum() for row in nats])) == example.label
        by_mean += int(np.argmin([row.mean() for row in nats])) == example.label
    return Accuracy(len(examples), by_sum, by_mean)


def ending_nats(
    model: LanguageModel, context: list[int], endings: Sequence[list[int]]
) -> list[np.ndarray[Any, Any]]:
    """-ln p of each token of each ending after the context; of a long context, its end is read."""
    longest = max(map(len, endings))
    room = model.block_size - longest + 1
    if room < 1:
        raise UserError(
            f"an ending of {longest} tokens does not fit into the model's context of "
            f"{model.block_size}"
        )
    context = context[-room:]
    # Right of a shorter ending there is padding, which comes too late to be seen.
    padded = [ending + [0] * (longest - len(ending)) for ending in endings]
    if isinstance(model, GPT):
        flat = cached_nats(model, context, padded)
    else:
        inputs = np.array([[*context, *ending[:-1]] for ending in padded])
        rows = np.repeat(np.arange(len(padded)), longest)
        columns = np.tile(np.arange(longest) + len(context) - 1, len(padded))
        flat = losses(model, inputs, rows, columns, np.array(padded).reshape(-1))
    table = flat.reshape(len(padded), longest)
    return [row[: len(ending)] for row, ending in zip(table, endings, strict=True)]


def cached_nats(
    model: GPT, context: list[int], padded: Sequence[list[int]]
) -> np.ndarray[Any, Any]:
    """The same with the context, most of the work, read once for all endings."""
    weight = model.transformer.wte.weight
    where = weight.device
    with evaluating(model):
        room = len(context) - 1 + len(padded[0])
        cache = KeyValueCache(model.config, 1, room, weight.dtype, where)
        if len(context) > 1:
            model.transformer(tt.tensor([context[:-1]], dtype=tt.long, device=where), cache)
        shared = cache.rows([0] * len(padded))
        rows = [[context[-1], *ending[:-1]] for ending in padded]
        inputs = tt.tensor(rows, dtype=tt.long, device=where)
        scores = model(inputs, cache=shared)[0].cpu().numpy().astype(np.float64)  # (B, T, V)
    scores -= scores.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(scores, np.array(padded)[..., None], axis=-1)[..., 0]
    return np.log(np.exp(scores).sum(axis=-1)) - chosen
