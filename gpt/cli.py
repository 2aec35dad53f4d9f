"""The command line: `python -m gpt <command> [--field value …]`.

Each command is a function in `COMMANDS`; its flags are the fields of a dataclass, turned into a
command line by tyro. The person at the keyboard sees sentences, never tracebacks: a `UserError` is
printed as `error: …`. Exit codes: 0 done, 2 refused, 130 stopped by Ctrl-C (as shells have it).

Tensors and pictures are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tyro

from gpt import UserError
from gpt.config import SCRATCH, GenerateConfig, TrainConfig
from gpt.presets import PRESETS

if TYPE_CHECKING:
    from gpt.generate import Writing

DONE, REFUSED, STOPPED = 0, 2, 130

Config = TypeVar("Config")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that lacks a character shows a ?
            stream.reconfigure(errors="replace")
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        if command in ("-h", "--help"):
            if speaks():
                print(overview())
            return DONE
        if command not in COMMANDS:
            raise UserError(unknown_command(command))
        return COMMANDS[command][0](rest)
    except UserError as error:
        from gpt.ranks import refuse

        return refuse(str(error), REFUSED)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # the reader of our output (`| head`) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: the disk is full ({error.strerror})", file=sys.stderr)
        return REFUSED


# ---- Commands ----


@dataclass(frozen=True)
class TrainCommand:
    """Trains a language model on a text and keeps what comes of it in a run folder."""

    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    resume: str = ""
    """Go on with the run in this folder, from its last checkpoint, bit for bit."""


@dataclass(frozen=True)
class CheckCommand:
    """Looks for the classic silent mistakes in what `train` would begin with these fields."""

    config: tyro.conf.OmitArgPrefixes[TrainConfig]


@dataclass(frozen=True)
class PlanCommand:
    """Says what `train` would take with these fields: steps, memory by part, what would fit."""

    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    measure: bool = False
    """Also take the first two steps, in a process of their own, and say how much memory they
    took."""


def train_command(arguments: list[str]) -> int:
    # Three flags decide the others' defaults, so they are looked up before tyro reads them all.
    saved = run = None
    if folder := value_of("--resume", arguments):
        from gpt.runs import RunFolder

        run = RunFolder.open(folder)
        saved = run.config()
    config = saved or starting_point(arguments)
    asked = parse(TrainCommand, "train", arguments, TrainCommand(config=config))

    from gpt.train import check_changes, train

    if saved is not None:
        check_changes(saved, asked.config)
    outcome = train(asked.config, run)
    return DONE if outcome.finished else STOPPED


def check_command(arguments: list[str]) -> int:
    default = CheckCommand(config=starting_point(arguments))
    config = parse(CheckCommand, "check", arguments, default).config

    from gpt.before import check

    return DONE if check(config) else REFUSED


def plan_command(arguments: list[str]) -> int:
    default = PlanCommand(config=starting_point(arguments))
    asked = parse(PlanCommand, "plan", arguments, default)

    from gpt.before import show_plan

    show_plan(asked.config, asked.measure)
    return DONE


def generate_command(arguments: list[str]) -> int:
    config = parse(GenerateConfig, "generate", arguments)

    from gpt.evaluate import load_model
    from gpt.generate import write_in_order
    from gpt.probabilities import page, shower, table

    model, tokenizer = load_model(config.run, config.weights, config.checkpoint)
    show = shower(tokenizer)
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    texts: list[Writing] = []
    for text, piece in write_in_order(model, tokenizer, config):
        if not texts or text is not texts[-1]:
            if texts:
                print("\n" + "-" * 72)
            texts.append(text)
            print(text.prompt, end="", flush=True)
        if piece:
            print(piece, end="", flush=True)
        if config.probabilities and text.ended:
            print("\n\n" + table(text.choices, show, coloured), end="", flush=True)
    print()
    if config.html:
        decode = lambda token: tokenizer.decode([token])  # noqa: E731
        write_file(config.html, page([(t.prompt, t.choices) for t in texts], show, decode))
    return DONE


def evaluate_command(arguments: list[str]) -> int:
    from gpt.evaluate import EvaluateConfig, evaluate

    evaluate(parse(EvaluateConfig, "evaluate", arguments))
    return DONE


def prepare_command(arguments: list[str]) -> int:
    from gpt.prepare import PrepareConfig, prepare

    prepare(parse(PrepareConfig, "prepare", arguments))
    return DONE


def tokenizer_command(arguments: list[str]) -> int:
    from gpt.prepare import TokenizerConfig, train_tokenizer

    action, *rest = arguments or [""]
    if action not in ("train", "-h", "--help"):
        raise UserError("a tokenizer can be trained: python -m gpt tokenizer train <texts>")
    rest = rest if action == "train" else arguments
    train_tokenizer(parse(TokenizerConfig, "tokenizer train", rest))
    return DONE


def download_command(arguments: list[str]) -> int:
    from gpt.download import DownloadConfig, download

    config = parse(DownloadConfig, "download", arguments)
    print(f"{config.name} is whole in {download(config)}")
    return DONE


def export_command(arguments: list[str]) -> int:
    from gpt.export import ExportConfig, export

    config = parse(ExportConfig, "export", arguments)
    print(f"{export(config)} is written; AutoModelForCausalLM.from_pretrained reads it")
    return DONE


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (train_command, "learn a text, Shakespeare by default"),
    "generate": (generate_command, "write text with a trained model"),
    "check": (check_command, "look for silent mistakes before training"),
    "plan": (plan_command, "say what a training takes, by formula or measured"),
    "evaluate": (evaluate_command, "score a model on a text, on shards or on HellaSwag"),
    "tokenizer": (tokenizer_command, "learn a vocabulary of byte pairs from texts"),
    "prepare": (prepare_command, "turn texts into shards of tokens"),
    "download": (download_command, "fetch the published weights of GPT-2"),
    "export": (export_command, "write a trained model as `transformers` reads it"),
}


# ---- Reading the command line ----


def parse(
    kind: type[Config], command: str, arguments: list[str], default: Config | None = None
) -> Config:
    """The dataclass that the flags describe. tyro exits with status 2 where they describe none."""
    prog = f"python -m gpt {command}"
    with contextlib.ExitStack() as silence:
        if not speaks():
            silence.enter_context(contextlib.redirect_stdout(io.StringIO()))
            silence.enter_context(contextlib.redirect_stderr(io.StringIO()))
        if default is None:
            return tyro.cli(kind, prog=prog, args=arguments)
        return tyro.cli(kind, prog=prog, args=arguments, default=default)


def speaks() -> bool:
    """Whether this process is to talk of its flags: the first of many, which all have the same."""
    if not any(name.startswith(("PMI", "OMPI_", "SLURM_")) for name in os.environ):
        return True  # no launcher, and nothing to import for that answer
    import tinytensor.distributed as dist

    return dist.launched_rank() == 0


def starting_point(arguments: Sequence[str]) -> TrainConfig:
    """What the fields are that no flag gives: the preset's, and the sizes of --init-from."""
    weights = value_of("--init-from", arguments) or value_of("--init_from", arguments)
    recipe = "gpt2-finetune" if weights not in ("", SCRATCH) else "char"
    preset = PRESETS.get(value_of("--preset", arguments), PRESETS[recipe])
    if recipe == "char" or weights == "resume":  # the latter is refused with a hint
        return preset
    from gpt.pretrained import with_sizes

    return with_sizes(preset, weights)


def value_of(flag: str, arguments: Sequence[str]) -> str:
    """The last value given to a flag, as `--flag value` or `--flag=value`; empty without one."""
    value = ""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument == flag:
            value = following
        elif argument.startswith(flag + "="):
            value = argument[len(flag) + 1 :]
    return value


def write_file(path: str, text: str) -> None:
    from gpt.files import replace_file

    try:
        replace_file(Path(path), text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def overview() -> str:
    commands = "\n".join(f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items())
    return (
        "usage: python -m gpt <command> [--field value …]\n\n"
        f"{commands}\n\n"
        "python -m gpt <command> --help  lists its fields, each with its reason"
    )


def unknown_command(command: str) -> str:
    nearest = difflib.get_close_matches(command, COMMANDS, n=1)
    given = f"there is no command {command!r}" if command else "no command is given"
    hint = f" (nearest: {nearest[0]})" if nearest else ""
    return f"{given}{hint}; the commands are {', '.join(COMMANDS)}; see python -m gpt --help"
