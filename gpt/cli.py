"""The command line: `python -m gpt <command> [--field value …]`.

Each command is a function in `COMMANDS`; its flags are the fields of a dataclass, turned into a
command line by tyro. The person at the keyboard sees sentences, never tracebacks: a `UserError` is
printed as `error: …`. Exit codes: 0 done, 2 refused, 130 stopped by Ctrl-C (as shells have it).

Tensors and pictures are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tyro

from gpt import UserError
from gpt.config import PRESETS, GenerateConfig, TrainConfig

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
            print(overview())
            return DONE
        if command not in COMMANDS:
            raise UserError(unknown_command(command))
        return COMMANDS[command][0](rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
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


def train_command(arguments: list[str]) -> int:
    # Two flags decide the others' defaults, so they are looked up before tyro reads them all.
    saved = run = None
    if folder := value_of("--resume", arguments):
        from gpt.runs import RunFolder

        run = RunFolder.open(folder)
        saved = run.config()
    preset = PRESETS.get(value_of("--preset", arguments), PRESETS["char"])
    asked = parse(TrainCommand, "train", arguments, TrainCommand(config=saved or preset))

    from gpt.train import check_changes, train

    if saved is not None:
        check_changes(saved, asked.config)
    outcome = train(asked.config, run)
    return DONE if outcome.finished else STOPPED


def generate_command(arguments: list[str]) -> int:
    config = parse(GenerateConfig, "generate", arguments)

    import tinytensor as tt
    from gpt.generate import encode_prompt, generate
    from gpt.runs import load_run

    model, tokenizer = load_run(config.run)
    prompt = encode_prompt(tokenizer, config.prompt, "--prompt")
    generator = tt.Generator(config.seed)
    for number in range(config.num_samples):
        if number:
            print("-" * 72)
        print(config.prompt, end="", flush=True)
        for i in generate(
            model,
            prompt,
            config.max_new_tokens,
            config.temperature,
            config.top_k,
            config.top_p,
            generator,
        ):
            print(tokenizer.decode([i]), end="", flush=True)
        print()
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


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (train_command, "learn a text, Shakespeare by default"),
    "generate": (generate_command, "write text with a trained model"),
    "tokenizer": (tokenizer_command, "learn a vocabulary of byte pairs from texts"),
    "prepare": (prepare_command, "turn texts into shards of tokens"),
}


# ---- Reading the command line ----


def parse(
    kind: type[Config], command: str, arguments: list[str], default: Config | None = None
) -> Config:
    """The dataclass that the flags describe. tyro exits with status 2 where they describe none."""
    prog = f"python -m gpt {command}"
    if default is None:
        return tyro.cli(kind, prog=prog, args=arguments)
    return tyro.cli(kind, prog=prog, args=arguments, default=default)


def value_of(flag: str, arguments: Sequence[str]) -> str:
    """The last value given to a flag, as `--flag value` or `--flag=value`; empty without one."""
    value = ""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument == flag:
            value = following
        elif argument.startswith(flag + "="):
            value = argument[len(flag) + 1 :]
    return value


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
    return f"{given}{hint}; the commands are {' and '.join(COMMANDS)}, see python -m gpt --help"
