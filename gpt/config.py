"""Every number that a run depends on, with its reason beside it; presets are values.

`TrainConfig` and `GenerateConfig` are frozen dataclasses; the command line is made from their
fields and the text under each (`gpt/cli.py`), and a run folder keeps its `TrainConfig` as
`config.json`. This file knows no tensors, so that `--help` is quick. Go next to `gpt/train.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from gpt import UserError

Class = TypeVar("Class", bound=type)


def with_help(cls: Class) -> Class:
    """Hands tyro the text under each field as one paragraph; it would keep the line breaks."""
    texts = {
        doc.arg_name: doc.description for doc in docstring_parser.parse_from_object(cls).params
    }
    for field in dataclasses.fields(cls):
        help_text = " ".join((texts.get(field.name) or "").split())
        field.metadata = MappingProxyType({**field.metadata, "help": help_text})
    return cls


# ---- Checks ----


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def at_least(config: Any, field: str, least: int) -> None:
    value = getattr(config, field)
    require(least <= value < math.inf, f"{flag(field)} must be at least {least}, but it is {value}")


def check_seed(seed: int) -> None:
    require(0 <= seed < 2**63, f"--seed must lie in [0, 2^63), but it is {seed}")


# ---- A training run ----


@with_help
@dataclass(frozen=True)
class TrainConfig:
    """A training run. The defaults are the preset `char`: nanoGPT's published recipe for a CPU."""

    preset: Literal["char", "bigram"] = "char"
    """Where the other fields start from: `char` is a GPT that learns Shakespeare in minutes,
    `bigram` is the model and the recipe of the article."""
    name: str = ""
    """The run is kept in `<folder>/<name>`; without a name it gets its preset's, and a number."""
    folder: str = "runs"
    """Where run folders are made."""
    data: str = "shakespeare"
    """What to learn: `shakespeare` (downloaded once), `python` (the language reference that every
    Python carries), or the path of a UTF-8 text."""
    seed: int = 1337
    """Where every random number of the run begins; the same seed gives the same run."""

    model: Literal["gpt", "bigram"] = "gpt"
    """`gpt` has GPT-2's shape, `bigram` is the article's model (it keeps the article's name, though
    it reads a whole context)."""
    block_size: int = 64
    """The context: how many characters the model sees at once. Attention costs its square."""
    n_layer: int = 4
    """How many blocks; each lets every position read the others once more."""
    n_head: int = 4
    """How many things each position can look for at once; must divide the width."""
    n_embd: int = 128
    """The width: how many numbers describe a position. Parameters grow with its square."""
    dropout: float = 0.0
    """The share of activations zeroed in training, against learning by heart. None is needed while
    a run sees its data hardly more than once: 2,000 steps of 12 x 64 read Shakespeare 1.5 times."""
    bias: bool = False
    """Whether the linear layers and norms of `gpt` have biases. GPT-2 has them; without, it is a
    little faster and no worse. (`bigram` has the article's.)"""
    tied: bool = True
    """Whether one table of `gpt` both reads characters in and scores them at the end, as in GPT-2:
    fewer parameters, and each character's row learns from both. (`bigram` has two tables.)"""
    activation: Literal["gelu_tanh", "gelu", "relu"] = "gelu_tanh"
    """The nonlinearity of `gpt`; GPT-2's weights were trained with `gelu_tanh`. (`bigram` has the
    article's ReLU.)"""

    iterations: int = 2000
    """How many steps the optimizer takes. The article calls one an epoch, which is something else:
    a pass over all the data."""
    batch_size: int = 12
    """Windows per step. Few, because on a CPU the time of a step is proportional to them and noisy
    gradients cost less than fewer steps."""
    learning_rate: Annotated[float, tyro.conf.arg(aliases=["--lr"])] = 1e-3
    """The largest step size. AdamW's customary 1e-3 suits a model this small; a large one
    needs less."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """`cosine` lowers the step size along half a cosine: large steps find the valley, small ones
    its floor. `constant` keeps it."""
    min_learning_rate: float = 1e-4
    """Where the cosine ends: a tenth of the largest, after which more steps gain little."""
    warmup: int = 100
    """Over how many first steps the step size grows from zero, while AdamW's averages are still
    poor estimates."""
    beta1: float = 0.9
    """AdamW's memory of the gradient: about the last 1 / (1 - beta1) steps."""
    beta2: float = 0.99
    """AdamW's memory of the squared gradient. Less than the usual 0.999, because a run of 2,000
    steps is too short to average over 1,000 of them."""
    weight_decay: float = 0.1
    """How strongly weights are pulled to zero, in units of the learning rate."""
    decay: Literal["matrices", "all"] = "matrices"
    """What decays: biases and the gains of norms are offsets and scales, and better left alone;
    `all` is PyTorch's default, and so the article's."""
    clip: float = 1.0
    """The longest gradient that is followed as it is; a longer one is scaled to this length, so
    that one odd batch cannot throw the model far. 0 never clips."""

    eval_every: int = 500
    """Steps between two evaluations."""
    eval_batches: int = 50
    """Batches of each split that an evaluation averages over; the same ones each time, so that the
    curve moves because the model does."""
    log_every: int = 10
    """Steps between two lines of log.jsonl."""
    checkpoint_every: int = 500
    """Steps between two checkpoints, the most that a power cut costs; 0 saves at the end only."""
    sample_chars: int = 2000
    """How many characters the trained model writes into sample.txt."""
    sample_prompt: str = ""
    """What that sample continues; without a prompt it begins as after a line break. (The article's
    text prompts with "i like to eat food", its code with token 0, which is the line break.)"""

    def __post_init__(self) -> None:
        for field in ("block_size", "n_layer", "n_head", "n_embd", "iterations", "batch_size"):
            at_least(self, field, 1)
        for field in ("eval_every", "eval_batches", "log_every"):
            at_least(self, field, 1)
        for field in ("warmup", "checkpoint_every", "sample_chars", "weight_decay", "clip"):
            at_least(self, field, 0)
        for field in ("dropout", "beta1", "beta2"):
            value = getattr(self, field)
            require(0 <= value < 1, f"{flag(field)} must lie in [0, 1), but it is {value}")
        at_least(self, "min_learning_rate", 0)
        require(
            0 < self.learning_rate < math.inf,
            f"--learning-rate must be greater than 0, but it is {self.learning_rate}",
        )
        require(
            self.schedule == "constant" or self.min_learning_rate <= self.learning_rate,
            f"--min-learning-rate {self.min_learning_rate} is above --learning-rate "
            f"{self.learning_rate}: the cosine falls from the one to the other",
        )
        require(
            self.n_embd % self.n_head == 0,
            f"--n-head {self.n_head} does not divide --n-embd {self.n_embd}: the heads share the "
            "width in equal parts",
        )
        check_seed(self.seed)
        require(
            not any(separator in self.name for separator in "/\\\0")
            and self.name not in (".", ".."),
            f"--name {self.name!r} must be one folder name; --folder says where it lies",
        )


# ---- Presets ----

PRESETS: dict[str, TrainConfig] = {
    "char": TrainConfig(),
    # The article's listing: PyTorch's AdamW as it comes (betas, decay of 0.01 on everything), a
    # constant step size, no clipping; losses every 1,000 iterations over 200 batches of each split.
    "bigram": TrainConfig(
        preset="bigram",
        model="bigram",
        block_size=8,
        n_embd=64,
        bias=True,
        tied=False,
        activation="relu",
        iterations=5000,
        batch_size=32,
        schedule="constant",
        warmup=0,
        beta2=0.999,
        weight_decay=0.01,
        decay="all",
        clip=0.0,
        eval_every=1000,
        eval_batches=200,
        checkpoint_every=1000,
    ),
}

# What may differ when a run is resumed. All else decides what the run is: its model, its data, and
# every step that it has already taken.
CHANGEABLE = {
    "iterations",
    "eval_every",
    "eval_batches",
    "log_every",
    "checkpoint_every",
    "sample_chars",
    "sample_prompt",
}


@with_help
@dataclass(frozen=True)
class GenerateConfig:
    """Text from a trained run, printed as it is made."""

    run: str
    """The folder of the run, such as runs/char."""
    prompt: str = ""
    """What the text continues; without a prompt it begins as after a line break."""
    max_new_tokens: int = 500
    """How many tokens (here: characters) to add to the prompt."""
    temperature: float = 1.0
    """Below 1 the likely becomes likelier, above 1 the unlikely does; 0 takes the likeliest."""
    top_k: int = 0
    """Choose among this many likeliest tokens only; 0 chooses among all."""
    top_p: float = 1.0
    """Choose among the fewest likeliest tokens that hold this much probability together."""
    seed: int = 1337
    """The same seed writes the same text."""
    num_samples: int = 1
    """How many texts to write."""

    def __post_init__(self) -> None:
        at_least(self, "max_new_tokens", 0)
        at_least(self, "temperature", 0)
        at_least(self, "top_k", 0)
        at_least(self, "num_samples", 1)
        require(0 < self.top_p <= 1, f"--top-p must lie in (0, 1], but it is {self.top_p}")
        check_seed(self.seed)


# ---- config.json ----


def to_json(config: TrainConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, where: str) -> TrainConfig:
    """The configuration that `to_json` wrote; `where` names the file where that is an error."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    require(isinstance(values, dict), f"{where} holds no configuration")
    hints = get_type_hints(TrainConfig)
    unknown = sorted(set(values) - set(hints))
    require(not unknown, f"{where} has fields that no run has: {', '.join(unknown)}")
    for field, value in values.items():
        require(fits(value, hints[field]), f"{where}: {field} cannot be {json.dumps(value)}")
    return TrainConfig(**values)


def fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint
