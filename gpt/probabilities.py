"""How sure the model was of each token: a coloured table for the terminal, or a page of HTML.

The probabilities are the model's own, before temperature and the other options. Red is unlikely,
green likely; the number beside it says the same without colour.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Choice:
    """A token that was chosen, and what else the model held likely."""

    token: int
    probability: float
    rank: int  # 1 for the likeliest
    alternatives: tuple[tuple[int, float], ...]  # tokens and probabilities, the likeliest first


def choice(logits: Numbers, token: int, alternatives: int) -> Choice:
    """What the model's scores (V,) say about `token`, and about the likeliest ones."""
    scores = logits.astype(np.float64)
    p = np.exp(scores - scores.max())
    p /= p.sum()
    count = min(alternatives, len(p))
    ids = np.argpartition(p, len(p) - count)[len(p) - count :]
    ids = ids[np.argsort(-p[ids], kind="stable")]
    rank = int((p > p[token]).sum()) + 1
    return Choice(token, float(p[token]), rank, tuple((int(i), float(p[i])) for i in ids))


Show = Callable[[int], str]  # a token as text, of which one sees where it begins and ends


def shower(tokenizer: Any) -> Show:
    """Shows a token in quotes, line breaks and what would move the cursor written out.

    A token that is a part of a character is shown as its bytes.
    """

    def show(token: int) -> str:
        if hasattr(tokenizer, "token_bytes"):
            try:
                return repr(tokenizer.token_bytes(token).decode("utf-8"))
            except UnicodeDecodeError:
                return repr(tokenizer.token_bytes(token))
        return repr(tokenizer.decode([token]))

    return show


def hue(probability: float) -> float:
    """From 0, red, to 120, green, in degrees: the square root tells small ones apart."""
    return 120 * probability**0.5


def table(choices: Sequence[Choice], show: Show, colour: bool) -> str:
    """A line for each token: its probability, its rank, itself, and the likeliest ones."""
    texts = [show(c.token) for c in choices]
    width = max((len(text) for text in texts), default=0)
    lines = [f"{'chance':>8}  {'rank':>6}  {'token':<{width}}  likeliest"]
    for c, text in zip(choices, texts, strict=True):
        others = "  ".join(f"{show(token)} {p:.1%}" for token, p in c.alternatives)
        cell = f"{text:<{width}}"
        if colour:
            cell = f"\x1b[48;2;{rgb(c.probability)}m\x1b[30m{cell}\x1b[0m"
        lines.append(f"{c.probability:>8.2%}  {c.rank:>6,}  {cell}  {others}")
    return "\n".join(lines)


def rgb(probability: float) -> str:
    """The hue at full brightness and half saturation, as terminals take it."""
    degrees = hue(probability)
    red = 255 if degrees <= 60 else round(255 - (degrees - 60) / 60 * 127)
    green = 255 if degrees >= 60 else round(128 + degrees / 60 * 127)
    return f"{red};{green};128"


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Probabilities</title><style>
body {{ font: 16px/1.7 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
.text {{ white-space: pre-wrap }}
.text span {{ border-radius: 3px }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0 }}
td, th {{ padding: 0 .7em; text-align: left; white-space: pre }}
.number {{ text-align: right }}
</style></head><body>
<p>Each token's colour is the chance that the model gave it, from red (0) to green (1).</p>
{texts}
</body></html>
"""


def page(
    texts: Sequence[tuple[str, Sequence[Choice]]], show: Show, pieces: Callable[[int], str]
) -> str:
    """A page of HTML for texts, each a prompt and the choices after it.

    `pieces` gives a token's plain text, `show` the same in quotes. No script, nothing is loaded.
    """
    parts = []
    for prompt, choices in texts:
        spans, rows = [], []
        for c in choices:
            style = f"background:hsl({hue(c.probability):.0f} 80% 80%)"
            others = ", ".join(f"{show(token)} {p:.1%}" for token, p in c.alternatives)
            hint = f"{c.probability:.2%}, rank {c.rank:,}; likeliest: {others}"
            spans.append(
                f'<span style="{style}" title="{html.escape(hint)}">'
                f"{html.escape(pieces(c.token))}</span>"
            )
            rows.append(
                f'<tr><td class="number">{c.probability:.2%}</td>'
                f'<td class="number">{c.rank:,}</td>'
                f'<td style="{style}">{html.escape(show(c.token))}</td>'
                f"<td>{html.escape(others)}</td></tr>"
            )
        parts.append(
            f'<p class="text">{html.escape(prompt)}{"".join(spans)}</p>\n'
            "<table><tr><th>chance</th><th>rank</th><th>token</th><th>likeliest</th></tr>\n"
            + "\n".join(rows)
            + "</table>"
        )
    return PAGE.format(texts="\n<hr>\n".join(parts))
