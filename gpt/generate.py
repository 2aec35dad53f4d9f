"""Text from a model, one token after another.

`generate` yields token numbers as they are drawn; the caller decodes and prints them
(`gpt/cli.py`). The model sees the last `block_size` tokens: a longer text slides past its context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import tinytensor as tt
from gpt import UserError
from tinytensor.nn import functional as F

if TYPE_CHECKING:
    from gpt.model import LanguageModel
    from gpt.tokenizer import Tokenizer


def generate(
    model: LanguageModel,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: tt.Generator | None = None,
) -> Iterator[int]:
    """Yields `max_new_tokens` tokens that continue `ids`, each drawn given those before it.

    `temperature` divides the logits (0 takes the likeliest token), `top_k` keeps that many of the
    likeliest (0 keeps all), `top_p` the fewest likeliest that hold this share of the probability,
    counted after `top_k`. Dropout is off while a token is made. Raises ValueError at once, not at
    the first token.
    """
    if not ids:
        raise ValueError("generate: the prompt has no token to continue")
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must not be negative, got {max_new_tokens}")
    check_sampling(temperature, top_k, top_p)
    return tokens(model, list(ids), max_new_tokens, temperature, top_k, top_p, generator)


def encode_prompt(tokenizer: Tokenizer, prompt: str, flag: str) -> list[int]:
    """The tokens of a prompt, or the one that a text begins after where the prompt is empty.

    Raises UserError, naming the flag, for characters that the vocabulary lacks.
    """
    try:
        return tokenizer.encode(prompt) or [tokenizer.start]
    except UserError as error:
        raise UserError(f"{flag} {prompt!r} cannot be continued: {error}") from None


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"generate: temperature must be at least 0 and finite, got {temperature}")
    if top_k < 0:
        raise ValueError(f"generate: top_k must be at least 1, or 0 for all, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p must lie in (0, 1], got {top_p}")


def tokens(
    model: LanguageModel,
    ids: list[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: tt.Generator | None,
) -> Iterator[int]:
    for _ in range(max_new_tokens):
        next_id = draw(next_logits(model, ids), temperature, top_k, top_p, generator)
        ids.append(next_id)
        yield next_id


def next_logits(model: LanguageModel, ids: Sequence[int]) -> tt.Tensor:
    """The scores (V,) of every token that could come next."""
    was_training = model.training
    model.eval()
    # The switches are back before the caller sees the token, not when it asks for the next one.
    with tt.no_grad():
        logits, _ = model(tt.tensor([ids[-model.block_size :]], dtype=tt.long))  # (1, T, V)
    model.train(was_training)
    return logits[0, -1]


def draw(
    logits: tt.Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: tt.Generator | None,
) -> int:
    """One token number, drawn from the distribution that the options leave of `logits` (V,)."""
    if temperature == 0:
        return int(logits.argmax().item())
    V = logits.shape[-1]
    # The largest logit becomes 0 first: dividing by a tiny temperature must not overflow.
    probabilities = F.softmax((logits - logits.max()) / temperature, dim=-1)
    if top_k in (0, V) and top_p == 1:
        return int(tt.multinomial(probabilities, 1, generator=generator).item())
    likeliest, order = tt.topk(probabilities, min(top_k or V, V))  # descending
    if top_p < 1:
        likeliest = likeliest / likeliest.sum()
        before = likeliest.cumsum(dim=-1) - likeliest  # the probability held by those likelier
        likeliest = tt.where(before < top_p, likeliest, 0.0)
    return int(order[tt.multinomial(likeliest, 1, generator=generator)].item())
