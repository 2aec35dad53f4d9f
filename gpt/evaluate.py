"""How well a model predicts a text: `python -m gpt evaluate --run runs/char --data text.txt`.

Every token is scored exactly once. Windows of the model's context slide by `stride` tokens, and of
each only what no window before has scored counts: the first counts whole, every other one its last
`stride` tokens, each given at least `block_size - stride + 1` tokens before it. A stride of
the whole context is fast and pessimistic (the first token of each window is guessed from one
token), one of 1 is the model at its best and `block_size` times as slow.

Loss is in nats per token, and models with different tokens cannot be compared by it; bits per byte
is the same information per byte of text, which all models share. HellaSwag is in
`gpt/hellaswag.py`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import tinytensor as tt
from gpt import UserError, devices
from gpt.fields import at_least, check_device, check_model, require, with_help
from gpt.language_model import LanguageModel, evaluating
from gpt.model import GPT
from tinytensor.nn import functional as F

if TYPE_CHECKING:
    from gpt.tokenizer import Tokenizer

Tokens = np.ndarray[Any, Any]

# Logits that are in memory at once: 206 MB for GPT-2's vocabulary in float32.
ROWS_AT_ONCE = 1024
# Tokens that go through the model together.
TOKENS_AT_ONCE = 4096


@with_help
@dataclass(frozen=True)
class EvaluateConfig:
    """How well a model predicts a text or shards, or how often it is right on HellaSwag."""

    run: str = ""
    """The folder of a run, such as runs/char."""
    weights: str = ""
    """Or a folder of weights as `transformers` has them, or gpt2, gpt2-medium, gpt2-large,
    gpt2-xl."""
    checkpoint: str = "best"
    """Which checkpoint of the run: `best` has the lowest validation loss of those that are kept,
    `last` is where training ended, and a folder such as checkpoint-000500 is itself."""
    data: str = ""
    """A UTF-8 text, a folder of shards, `shakespeare` or `python`; a run's own text if nothing is
    given."""
    split: Literal["validation", "train", "whole"] = "validation"
    """Which part. Of a text, `validation` is the last tenth, on which no run has trained; `whole`
    is for texts that no run has seen."""
    stride: int = 0
    """How many tokens each window scores after those of the window before; 0 takes half of the
    context. The smaller it is, the more each token sees before it, and the longer it takes."""
    limit: int = 0
    """Score no more than this many tokens, the first ones; 0 scores all."""
    hellaswag: str = ""
    """Instead of a text: HellaSwag's file of JSON lines, such as hellaswag_val.jsonl."""
    examples: int = 0
    """How many of its examples, the first ones; 0 takes all."""
    device: str = "auto"
    """Where to compute: `cpu`, `cuda`, `cuda:N`, `cuda-sim`, or `auto`: cuda where there is a
    GPU."""
    json: str = ""
    """Also write the results to this file."""

    def __post_init__(self) -> None:
        check_model(self, "evaluate")
        require(
            not (self.data and self.hellaswag), "--data and --hellaswag: one evaluation at a time"
        )
        require(
            bool(self.data or self.hellaswag or self.run), "evaluate needs --data or --hellaswag"
        )
        for field in ("stride", "limit", "examples"):
            at_least(self, field, 0)
        check_device(self.device)


# ---- A score ----


@dataclass(frozen=True)
class Score:
    """What was scored, and how many nats it took to tell: the sum of -ln p over all tokens."""

    nats: float
    tokens: int
    bytes: int
    least_context: int  # every token but the first ones has seen at least so many before it

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """e^loss: among so many equally likely tokens one would be as unsure. inf beyond floats."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """What an arithmetic coder that asks the model would write, for each byte of the text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def line(self) -> str:
        return (
            f"loss {self.loss:.4f} nats a token, perplexity {self.perplexity:,.2f}, "
            f"{self.bits_per_byte:.4f} bits a byte ({self.tokens:,} tokens, {self.bytes:,} bytes; "
            f"at least {self.least_context:,} tokens of context after the first window)"
        )


def windows(count: int, block_size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) of each window on `count` inputs: it reads begin, …, end - 1, and scores
    what follows each of first, …, end - 1.
    """
    end = min(block_size, count)
    yield 0, 0, end
    while end < count:
        first, end = end, min(end + stride, count)
        yield max(0, end - block_size), first, end


def score_tokens(
    model: LanguageModel, tokens: Tokens, stride: int = 0, progress: Any = lambda x, total: x
) -> tuple[float, int]:
    """The nats of tokens[1:], each given those before it in its window, and how many they are.

    Raises ValueError for a stride beyond the context, and for less than two tokens.
    """
    T = model.block_size
    stride = stride or max(1, T // 2)
    if not 1 <= stride <= T:
        raise ValueError(f"evaluate: the stride must be between 1 and {T}, the context: {stride}")
    count = len(tokens) - 1
    if count < 1:
        raise ValueError(f"evaluate: {len(tokens)} tokens leave nothing to predict")
    total, scored = 0.0, 0
    batch: list[tuple[int, int, int]] = []
    together = max(1, TOKENS_AT_ONCE // min(T, count))
    all_windows = list(windows(count, T, stride))
    for number, window in enumerate(progress(all_windows, total=len(all_windows)), start=1):
        batch.append(window)
        if len(batch) == together or number == len(all_windows):
            total += window_nats(model, tokens, batch)
            scored += sum(end - first for _, first, end in batch)
            batch = []
    return total, scored


def window_nats(
    model: LanguageModel, tokens: Tokens, batch: Sequence[tuple[int, int, int]]
) -> float:
    """The nats of what these windows score; all are equally long."""
    inputs = np.stack([tokens[begin:end] for begin, _, end in batch]).astype(np.int64)
    rows = np.concatenate([np.full(end - f, i) for i, (_, f, end) in enumerate(batch)])
    columns = np.concatenate([np.arange(first - begin, end - begin) for begin, first, end in batch])
    targets = np.concatenate([tokens[first + 1 : end + 1] for _, first, end in batch])
    return float(losses(model, inputs, rows, columns, targets.astype(np.int64)).sum())


def losses(
    model: LanguageModel, inputs: Tokens, rows: Tokens, columns: Tokens, targets: Tokens
) -> Tokens:
    """-ln p of each target (N,), after the place (row, column) of the inputs (B, T); float64.

    Only the places asked for are turned into logits, a piece at a time.
    """
    out = np.empty(len(targets))
    with evaluating(model):
        where = devices.device_of(model)
        idx = tt.tensor(inputs, dtype=tt.long, device=where)
        hidden = model.transformer(idx) if isinstance(model, GPT) else model.logits(idx)
        for i in range(0, len(targets), ROWS_AT_ONCE):
            piece = slice(i, i + ROWS_AT_ONCE)
            row, column, target = (
                tt.tensor(numbers[piece], device=where) for numbers in (rows, columns, targets)
            )
            logits = hidden[row, column]  # (N, C) or (N, V)
            if isinstance(model, GPT):
                logits = model.lm_head(logits)
            nats = F.cross_entropy(logits, target, reduction="none")
            out[piece] = nats.cpu().numpy()
    return out


# ---- Texts and shards ----


def bytes_of(tokenizer: Tokenizer, tokens: Tokens) -> int:
    """The bytes of text that these tokens stand for; special tokens stand for none."""
    return int(byte_lengths(tokenizer)[tokens].sum())


def byte_lengths(tokenizer: Any) -> Tokens:
    if hasattr(tokenizer, "token_bytes"):
        lengths = [len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
        for special in tokenizer.special_tokens.values():
            lengths[special] = 0
    else:
        lengths = [len(tokenizer.decode([i]).encode()) for i in range(tokenizer.vocab_size)]
    return np.array(lengths, np.int64)


def score_pieces(
    model: LanguageModel,
    tokenizer: Tokenizer,
    pieces: Sequence[Tokens],
    stride: int = 0,
    limit: int = 0,
    progress: Any = lambda x, total: x,
) -> Score:
    """The score of several rows of tokens; the first token of each is context only."""
    nats, count, size = 0.0, 0, 0
    stride = stride or max(1, model.block_size // 2)
    for piece in pieces:
        if limit:
            piece = piece[: limit - count + 1]
        if len(piece) < 2:
            continue
        more, scored = score_tokens(model, piece, stride, progress)
        nats, count, size = nats + more, count + scored, size + bytes_of(tokenizer, piece[1:])
    if not count:
        raise UserError("there is nothing to score: less than two tokens")
    return Score(nats, count, size, model.block_size - stride + 1)


def text_tokens(tokenizer: Tokenizer, text: str) -> Tokens:
    """The tokens of a text after the one that texts begin after, so that its first one counts."""
    return np.array([tokenizer.start, *tokenizer.encode(text)], np.int64)


def tokens_of(config: EvaluateConfig, tokenizer: Tokenizer, data: str) -> list[Tokens]:
    """What `--data` and `--split` name, as rows of tokens."""
    if Path(data).is_dir():
        from gpt.shard_files import find_shards
        from gpt.tokenizers import load_tokenizer

        if config.split == "whole":
            raise UserError("shards have the splits train and validation; --split chooses one")
        own = Path(data) / "tokenizer.json"
        if own.exists() and load_tokenizer(own).to_json() != tokenizer.to_json():
            raise UserError(f"{data} was made with another tokenizer than the model's")
        shards = find_shards(data, config.split, tokenizer.vocab_size)
        return [shard.open() for shard in shards]

    from gpt.data import TRAIN_FRACTION, load_text

    text = load_text(data)
    if text.note:
        raise UserError(text.note.split(";")[0])
    try:
        tokens = text_tokens(tokenizer, text.content)
    except UserError as error:
        raise UserError(f"{data} cannot be scored: {error}") from None
    border = 1 + int(TRAIN_FRACTION * (len(tokens) - 1))
    if config.split == "validation":
        return [tokens[border - 1 :]]  # the last token of the training part is context
    return [tokens[:border] if config.split == "train" else tokens]


# ---- The command ----


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Runs the evaluation and prints its line; returns the numbers."""
    from tqdm import tqdm

    where = devices.choose(config.device)
    model, tokenizer = load_model(config.run, config.weights, config.checkpoint)
    model.to(where)

    def progress(items: Any, total: int) -> Any:
        return tqdm(items, total=total, disable=None, leave=False, unit_scale=True)

    if config.hellaswag:
        from gpt.hellaswag import read_examples, score_examples

        examples = read_examples(Path(config.hellaswag), config.examples)
        result = score_examples(model, tokenizer, examples, progress)
        print(result.line())
        numbers = result.numbers()
    else:
        require(
            config.stride <= model.block_size,
            f"--stride {config.stride} is larger than the model's context of {model.block_size}",
        )
        data = config.data or run_data(config.run)
        pieces = tokens_of(config, tokenizer, data)
        score = score_pieces(model, tokenizer, pieces, config.stride, config.limit, progress)
        print(score.line())
        numbers = {
            "loss": score.loss,
            "perplexity": score.perplexity,
            "bits_per_byte": score.bits_per_byte,
            "tokens": score.tokens,
            "bytes": score.bytes,
        }
    if config.json:
        from gpt.files import replace_file

        try:
            replace_file(Path(config.json), json.dumps(numbers, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{config.json} cannot be written: {error.strerror}") from None
    return numbers


def run_data(run: str) -> str:
    """What a run was trained on."""
    from gpt.runs import RunFolder

    return str(RunFolder.open(run).config().data)


def load_model(run: str, weights: str, checkpoint: str) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer of a run folder, or of a folder of weights.

    Says on stderr which checkpoint it is, where that is not the last.
    """
    if run:
        from gpt.runs import RunFolder, load_run

        place, last = (RunFolder.open(run).find_checkpoint(which) for which in (checkpoint, "last"))
        if checkpoint == "best" and place != last:
            print(
                f"{place.name} has the lowest validation loss; --checkpoint last takes {last.name}",
                file=sys.stderr,
            )
        return load_run(run, checkpoint)

    from gpt.weights import load_pretrained

    return load_pretrained(weights)
