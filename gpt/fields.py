"""What the commands' fields have in common: the text under each as its help, and what is refused.

Each command's fields are a frozen dataclass beside what it does; its `__post_init__` says in a
sentence, with the flag in it, what cannot be. Go next to `gpt/config.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from types import MappingProxyType
from typing import Any, TypeVar

import docstring_parser

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


def plural(number: int, thing: str) -> str:
    """1 layer, 2 layers; `thing` takes an s."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def at_least(config: Any, field: str, least: int) -> None:
    value = getattr(config, field)
    require(least <= value < math.inf, f"{flag(field)} must be at least {least}, but it is {value}")


def check_device(name: str) -> None:
    require(
        re.fullmatch("auto|cpu|cuda(:[0-9]+)?|cuda-sim", name) is not None,
        f"--device {name!r} is unknown; it is auto, cpu, cuda, cuda:N (GPU number N) or cuda-sim",
    )


def check_model(config: Any, command: str) -> None:
    """One model: of a run, with its checkpoint, or of a folder of weights."""
    require(
        bool(config.run) != bool(config.weights),
        f"{command} needs one model: either --run FOLDER or --weights FOLDER",
    )
    require(
        bool(config.run) or config.checkpoint == "best",
        f"--checkpoint {config.checkpoint} chooses among those of a --run; --weights have none",
    )


def check_seed(seed: int) -> None:
    require(0 <= seed < 2**63, f"--seed must lie in [0, 2^63), but it is {seed}")
