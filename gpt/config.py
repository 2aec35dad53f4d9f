"""Every number that a run depends on, with its reason beside it.

`TrainConfig` and `GenerateConfig` are frozen dataclasses; the command line is made from their
fields and the text under each (`gpt/cli.py`), and a run folder keeps its `TrainConfig` as
`config.json`. This file knows no tensors, so that `--help` is quick. Go next to `gpt/presets.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from gpt import UserError
from gpt.fields import (
    at_least,
    check_device,
    check_model,
    check_seed,
    flag,
    plural,
    require,
    with_help,
)
from gpt.json_files import parse_json

# ---- A training run ----


SCRATCH = "scratch"  # --init-from: no weights to start from

Preset = Literal[
    "char",
    "shakespeare-gpu",
    "bigram",
    "gpt2-shakespeare",
    "gpt2-124m",
    "gpt2-355m",
    "gpt2-774m",
    "gpt2-1558m",
    "gpt-37m",
    "gpt2-finetune",
]


@with_help
@dataclass(frozen=True)
class TrainConfig:
    """A training run. The defaults are the preset `char`: nanoGPT's published recipe for a CPU."""

    preset: Preset = "char"
    """Where the other fields start from: `char` is a GPT that learns Shakespeare in minutes,
    `shakespeare-gpu` a larger one that needs a GPU for that, `bigram` is the model and the recipe
    of the article "Let's Build our own GPT Model from Scratch", `gpt2-shakespeare` is small and
    reads GPT-2's tokens, `gpt2-finetune` goes on with published weights (--init-from chooses it by
    itself), the others are GPT-2's four sizes and a smaller one."""
    name: str = ""
    """The run is kept in `<folder>/<name>`; without a name it gets its preset's, and a number where
    that is taken."""
    folder: str = "runs"
    """Where run folders are made."""
    data: str = "shakespeare"
    """What to learn: `shakespeare` (downloaded once), `python` (the language reference that every
    Python carries), the path of a UTF-8 text, or a folder of shards that `python -m gpt prepare`
    wrote (those of nanoGPT and llm.c are read as well)."""
    tokenizer: str = ""
    """What a token is: `characters`, `gpt2`, or the path of a tokenizer of your own. Without it, a
    text is read by characters and shards by the tokenizer that they were made with."""
    seed: int = 1337
    """Where every random number of the run begins; the same seed gives the same run."""
    init_from: str = SCRATCH
    """Where the weights start: `scratch` draws them; gpt2, gpt2-medium, gpt2-large, gpt2-xl (which
    `python -m gpt download` fetches) or a folder as `transformers` has it (`python -m gpt export`
    writes one, too) goes on from there, with its sizes and its tokenizer. A smaller --block-size
    keeps the first positions."""

    model: Literal["gpt", "bigram"] = "gpt"
    """`gpt` has GPT-2's shape, `bigram` is the article's model (it keeps the article's name, though
    it reads a whole context)."""
    block_size: int = 64
    """The context: how many tokens (by default, characters) the model sees at once. Attention costs
    its square."""
    n_layer: int = 4
    """How many blocks; each lets every position read the others once more."""
    n_head: int = 4
    """How many things each position can look for at once (attention heads); must divide the
    width."""
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

    vocab_multiple: int = 1
    """The token table is filled up to a multiple of this, for GPUs: 64 makes GPT-2's 50,257 rows
    50,304. What is filled up is never predicted and not exported."""
    checkpointing: bool = False
    """Keep only what goes into each block of `gpt` and compute the rest again in the backward pass:
    far less memory for a third more time."""

    iterations: int = 2000
    """How many steps the optimizer takes. The article calls one an epoch, which is something else:
    a pass over all the data."""
    batch_size: int = 12
    """Windows that are computed at once. A step's memory and, on a CPU, its time are proportional
    to them. Few, because noisy gradients cost less than fewer steps."""
    total_batch: int = 0
    """Tokens per step: gradients of as many batches as this takes are added up before the optimizer
    moves. It must be a multiple of batch size times context; 0 is one batch a step. GPT-2 took
    524,288."""
    ordered: bool = True
    """Add the gradients of a step's batches as a binary tree: however many processes share the
    step, its numbers are the same. A step of 4, 8, 16 batches keeps 2, 3, 4 sums meanwhile, each as
    large as the model; --no-ordered adds one batch after the other and keeps none."""
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
    """What decays: `matrices` leaves alone the biases and the gains of norms, which are offsets and
    scales; `all` is PyTorch's default, and so the article's."""
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
    keep_checkpoints: int = 1
    """How many of the latest checkpoints are kept; resuming needs one."""
    keep_best: bool = False
    """Also save at, and keep, the evaluation with the lowest validation loss."""
    sample_every: int = 0
    """Steps between two samples into the folder `samples`, to read how the model learns; 0 writes
    the one at the end only."""
    sample_chars: int = 2000
    """How many tokens (by default, characters) the model writes into a sample."""
    sample_prompt: str = ""
    """What that sample continues; without a prompt it begins as after a line break. (The article's
    text prompts with "i like to eat food", its code with token 0, which is the line break.)"""

    device: str = "auto"
    """Where to compute: `cpu`, `cuda`, `cuda:1` (a GPU by its number), `cuda-sim` (the GPU's
    kernels in a simulator, to study them), or `auto`: cuda where there is a GPU, else cpu. A run
    saved on one resumes on another."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What products are computed in, in training and evaluation. GPUs multiply bfloat16 several
    times as fast; parameters, sums and AdamW stay float32."""
    capture: bool = False
    """On a GPU: record the kernels of a batch once, as one CUDA graph, and start them all together
    from then on, which saves the time that Python takes to start each. The numbers are the same."""
    matmul_precision: Literal["highest", "high"] = "highest"
    """Of float32 products on a GPU: `highest` is float32, `high` rounds their inputs to TF32."""
    processes: int = 0
    """On a CPU: how many processes share the rows of each batch; one computes on threads, for which
    a small model's step has too many short calls. 0 takes one for each core, at most 4, where that
    is quicker, else 1. The numbers are the same but for rounding (and to the bit with as many), and
    so is what dropout leaves out. Each process needs memory for three or four times the parameters
    more."""
    checks: bool = True
    """Look for the classic silent mistakes before the first step, as `python -m gpt check` does."""
    ignore_memory: bool = False
    """Begin although the plan needs more memory than the machine has."""
    tensorboard: bool = False
    """Write the log for TensorBoard as well (needs tensorboardX)."""
    rank_timeout: float = 600.0
    """With many processes: seconds after which one that does not come stops the others.
    It must be more than what one does alone, a checkpoint or a sample, may take."""
    bucket_mb: float = 25.0
    """With many processes: megabytes of gradients that travel together. Few leave sooner, many need
    fewer messages; 25 is PyTorch's."""
    zero: bool = False
    """With many processes: each keeps AdamW's moments for its share of the parameters only (ZeRO,
    stage 1), for as many bytes sent, half of them beside the forward pass. Without clipping the
    numbers are the same to the bit."""
    compare_every: int = 0
    """With many processes: steps between two comparisons of their parameters; 0 compares at the
    start only."""

    def __post_init__(self) -> None:
        for field in ("block_size", "n_layer", "n_head", "n_embd", "iterations", "batch_size"):
            at_least(self, field, 1)
        for field in ("eval_every", "eval_batches", "log_every", "keep_checkpoints"):
            at_least(self, field, 1)
        for field in ("warmup", "checkpoint_every", "sample_chars", "weight_decay", "clip"):
            at_least(self, field, 0)
        at_least(self, "vocab_multiple", 1)
        at_least(self, "sample_every", 0)
        at_least(self, "total_batch", 0)
        at_least(self, "compare_every", 0)
        at_least(self, "bucket_mb", 0)
        require(
            self.rank_timeout > 0,
            f"--rank-timeout must be greater than 0, but it is {self.rank_timeout}",
        )
        tokens = self.batch_size * self.block_size
        require(
            self.total_batch % tokens == 0,
            f"--total-batch {self.total_batch:,} is not a multiple of --batch-size "
            f"{self.batch_size} times --block-size {self.block_size} = {tokens:,} tokens; the "
            f"nearest that is: {max(1, round(self.total_batch / tokens)) * tokens:,}",
        )
        at_least(self, "processes", 0)
        if self.processes > 1:
            reason = self.against_sharing(self.processes)
            require(not reason, f"--processes {self.processes} {reason}")
        require(
            self.model == "gpt" or not (self.checkpointing or self.vocab_multiple > 1),
            "--checkpointing and --vocab-multiple belong to --model gpt; the article's model has "
            "neither",
        )
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
        check_device(self.device)
        require(bool(self.data), "--data needs shakespeare, python, or a path")
        require(
            bool(self.init_from),
            "--init-from needs scratch, a name such as gpt2, or a folder of weights",
        )
        require(
            self.init_from != "resume",
            "--init-from resume has a flag of its own: --resume FOLDER goes on with that run",
        )
        require(
            not any(separator in self.name for separator in "/\\\0")
            and self.name not in (".", ".."),
            f"--name {self.name!r} must be one folder name; --folder says where it lies",
        )

    def against_sharing(self, processes: int) -> str:
        """Why so many processes cannot share a batch, as what they do; empty where they can."""
        T, C, H = self.block_size, self.n_embd, self.n_head
        if processes > self.batch_size:
            return (
                f"cannot share {plural(self.batch_size, 'row')}: each takes at least one of "
                "--batch-size"
            )
        if self.accumulation > 1 and self.ordered:
            return (
                f"would add the gradients of a step's {self.accumulation} batches one after the "
                "other, not as a tree; --no-ordered says so"
            )
        if self.dropout and (T * C % 8 or T * T * H % 8):
            return (
                f"cannot share dropout's masks: --block-size x --n-embd = {T * C:,} and "
                f"--block-size x --block-size x --n-head = {T * T * H:,} must be multiples of 8"
            )
        return ""

    @property
    def accumulation(self) -> int:
        """How many batches' gradients make one step."""
        return max(1, self.total_batch // (self.batch_size * self.block_size))


# What may differ when a run is resumed. All else decides what the run is: its model, its data, and
# every step that it has already taken.
CHANGEABLE = {
    "bucket_mb",
    "capture",
    "compare_every",
    "device",
    "matmul_precision",
    "processes",
    "rank_timeout",
    "checks",
    "ignore_memory",
    "iterations",
    "keep_best",
    "keep_checkpoints",
    "sample_every",
    "tensorboard",
    "zero",
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
    """Text from a trained model, printed as it is made."""

    run: str = ""
    """The folder of a run, such as runs/char."""
    weights: str = ""
    """Or a folder of weights as `transformers` has them, or gpt2, gpt2-medium, gpt2-large,
    gpt2-xl."""
    checkpoint: str = "best"
    """Which checkpoint of the run: `best` has the lowest validation loss of those that are kept,
    `last` is where training ended, and a folder such as checkpoint-000500 is itself."""
    prompt: tuple[str, ...] = ("",)
    """What the text continues, one or several; without a prompt it begins as after a line break, or
    the end of another text."""
    max_new_tokens: int = 500
    """How many tokens to add to the prompt (characters, where the run was trained on those)."""
    temperature: float = 1.0
    """Below 1 the likely becomes likelier, above 1 the unlikely does; 0 takes the likeliest."""
    top_k: int = 0
    """Choose among this many likeliest tokens only; 0 chooses among all."""
    top_p: float = 1.0
    """Choose among the fewest likeliest tokens that hold this much probability together."""
    min_p: float = 0.0
    """Leave out tokens that are less likely than this share of the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the text already has become less likely; 1.2 is much."""
    stop: tuple[str, ...] = ()
    """The text ends before any of these; give one or several."""
    stop_at_end: bool = True
    """Whether it ends where the model says so, with the token between two texts."""
    seed: int = 1337
    """The same seed writes the same text. Samples after the first take the seeds after it."""
    num_samples: int = 1
    """How many texts to write for each prompt."""
    batch_size: int = 8
    """How many are written at once; a token of GPT-2's smallest takes 72 KiB in each."""
    device: str = "auto"
    """Where to compute: `cpu`, `cuda`, `cuda:N`, `cuda-sim`, or `auto`: cuda where there is a
    GPU."""
    slide: int = 0
    """How many of the oldest tokens a text beyond the model's context leaves behind at once; 0
    takes a quarter of the context. 1 sees the most, and reads everything again for each token."""
    cache: bool = True
    """Whether keys and values of the tokens before are kept: the same text, much sooner."""
    probabilities: bool = False
    """Show how likely each token was, and what else was, in a table after each text."""
    html: str = ""
    """Write the texts, coloured by these probabilities, to this file."""

    def __post_init__(self) -> None:
        at_least(self, "max_new_tokens", 0)
        at_least(self, "temperature", 0)
        at_least(self, "top_k", 0)
        at_least(self, "num_samples", 1)
        at_least(self, "batch_size", 1)
        at_least(self, "slide", 0)
        check_model(self, "generate")
        require(bool(self.prompt), "--prompt needs a text; leave it out for none")
        require(all(self.stop), "--stop needs texts: every text contains the empty one")
        require(0 < self.top_p <= 1, f"--top-p must lie in (0, 1], but it is {self.top_p}")
        require(0 <= self.min_p <= 1, f"--min-p must lie in [0, 1], but it is {self.min_p}")
        require(
            0 < self.repetition_penalty < math.inf,
            f"--repetition-penalty must be greater than 0, but it is {self.repetition_penalty}",
        )
        check_seed(self.seed)
        check_device(self.device)


# ---- config.json ----


def to_json(config: TrainConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, where: str) -> TrainConfig:
    """The configuration that `to_json` wrote; `where` names the file where that is an error."""
    values = parse_json(text, where)
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no configuration")
    hints = get_type_hints(TrainConfig)
    unknown = [name[:60] for name in sorted(set(values) - set(hints))]
    require(not unknown, f"{where} has fields that no run has: {', '.join(unknown[:8])}")
    for field, value in values.items():
        require(fits(value, hints[field]), f"{where}: {field} cannot be {json.dumps(value)[:80]}")
    try:
        return TrainConfig(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint
