"""Types of command-line arguments: what is refused at once, in a sentence, not after minutes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def at_least(least: int) -> Callable[[str], int]:
    """A whole number that is not smaller."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    return number


def above_zero(text: str) -> float:
    """A number such as a learning rate."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {value}")
    return value


def text_to_read(text: str) -> str:
    """What `gpt.data.load_text` takes: a name that it knows, or a path."""
    if text not in ("shakespeare", "python") and not (text and Path(text).exists()):
        raise argparse.ArgumentTypeError(
            f"there is no file or folder {text or repr(text)}; give a path, or one of shakespeare "
            "and python"
        )
    return text


def file_to_write(text: str) -> Path:
    """A path whose folder exists."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent} to write to")
    return path
