"""Text from a model, one token after another.

`generate` yields token numbers as they are drawn, `write` continues several texts at once, up to
their stop strings, and hands out pieces of text as they become certain. What a model sees of a text
longer than its context is said in `gpt/contexts.py`; how a token is chosen, in `gpt/sampling.py`.
The command is in `gpt/cli.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import tinytensor as tt
from gpt import UserError, devices
from gpt.contexts import contexts_of, default_slide
from gpt.probabilities import Choice, choice
from gpt.sampling import Sampling
from gpt.streaming import TextStream

if TYPE_CHECKING:
    from gpt.config import GenerateConfig
    from gpt.language_model import LanguageModel
    from gpt.tokenizer import Tokenizer

ALTERNATIVES = 5  # shown beside each token


def generate(
    model: LanguageModel,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: tt.Generator | None = None,
    *,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    slide: int = 0,
    cached: bool = True,
) -> Iterator[int]:
    """Yields `max_new_tokens` tokens that continue `ids`, each drawn given those before it.

    The options of the distribution are those of `Sampling`; `slide` is how many of the oldest
    tokens leave a full context at once (0: a quarter of it). `cached` changes the time only.
    Dropout is off while a token is made. Raises ValueError at once, not at the first token.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    slide = checked(model, [ids], max_new_tokens, slide)
    return tokens(model, list(ids), max_new_tokens, sampling, generator, slide, cached)


def tokens(
    model: LanguageModel,
    ids: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    generator: tt.Generator | None,
    slide: int,
    cached: bool,
) -> Iterator[int]:
    contexts = contexts_of(model, [ids], max_new_tokens, slide, cached)
    for _ in range(max_new_tokens):
        (token,) = sampling.draw_all(contexts.next_logits(), contexts.texts, [generator])
        contexts.append([token])
        yield token


class Writing:
    """One text under way: what has been written, and why it ended."""

    def __init__(self, stream: TextStream, generator: tt.Generator):
        self.stream, self.generator = stream, generator
        self.prompt = ""  # for who shows it
        self.tokens: list[int] = []
        self.choices: list[Choice] = []  # as many as tokens, if asked for
        self.text = ""
        self.ended = ""  # "length", "stop" or "end" when it has

    def take(self, token: int, end: int | None, max_new_tokens: int) -> str:
        """Adds a token; returns the piece of text that is certain now."""
        self.tokens.append(token)
        if token == end:
            self.ended, piece = "end", self.stream.finish()
        else:
            piece = self.stream.add(token)
            if self.stream.stopped:
                self.ended = "stop"
            elif len(self.tokens) == max_new_tokens:
                self.ended, piece = "length", piece + self.stream.finish()
        self.text += piece
        return piece


def write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (it is frozen)
    seeds: Sequence[int] = (),
    stop: Sequence[str] = (),
    end: int | None = None,
    alternatives: int = 0,
    slide: int = 0,
    cached: bool = True,
) -> tuple[list[Writing], Iterator[tuple[Writing, str]]]:
    """Continues all prompts together: the texts, and pairs of a text and its next piece.

    A text ends after `max_new_tokens`, with the token `end` (which is not written), or before a
    stop string. Each has a random generator of its own, from its seed (0 unless given): what else
    is in the batch does not change what it draws. (Sums in another order round differently, and a
    number that falls between two tokens to the last digit may then choose the other one.)
    `alternatives` keeps that many of the likeliest tokens at each step in `choices`. Raises
    ValueError at once.
    """
    slide = checked(model, prompts, max_new_tokens, slide)
    seeds = list(seeds) or [0] * len(prompts)
    if len(seeds) != len(prompts):
        raise ValueError(f"generate: {len(prompts)} prompts cannot have {len(seeds)} seeds")
    texts = [
        Writing(TextStream(tokenizer, stop), tt.Generator(seed))
        for _, seed in zip(prompts, seeds, strict=True)
    ]

    def pieces() -> Iterator[tuple[Writing, str]]:
        if not max_new_tokens:
            return
        under_way = list(texts)
        contexts = contexts_of(model, prompts, max_new_tokens, slide, cached)
        while under_way:
            all_logits = contexts.next_logits()
            generators = [text.generator for text in under_way]
            tokens = sampling.draw_all(all_logits, contexts.texts, generators)
            for row, (text, token) in enumerate(zip(under_way, tokens, strict=True)):
                if alternatives:
                    logits = all_logits[row].cpu().numpy()
                    text.choices.append(choice(logits, token, alternatives))
                yield text, text.take(token, end, max_new_tokens)
            going_on = [row for row, text in enumerate(under_way) if not text.ended]
            contexts.append([text.tokens[-1] for text in under_way])
            contexts.keep(going_on)
            under_way = [under_way[row] for row in going_on]

    return texts, pieces()


def write_in_order(
    model: LanguageModel, tokenizer: Tokenizer, config: GenerateConfig
) -> Iterator[tuple[Writing, str]]:
    """What the command writes: every sample of every prompt, one text after the other.

    Texts are written `batch_size` at once; the first that has not ended streams, and the others
    wait. Each is named at least once, with an empty piece where there is none.
    """
    prompts = [encode_prompt(tokenizer, prompt, "--prompt") for prompt in config.prompt]
    model.to(devices.choose(config.device))
    if config.slide > model.block_size:
        raise UserError(
            f"--slide {config.slide} is more than the model's context of {model.block_size}"
        )
    sampling = Sampling(
        config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty
    )
    jobs = [
        (number, (config.seed + sample) % 2**63)
        for number in range(len(prompts))
        for sample in range(config.num_samples)
    ]
    for i in range(0, len(jobs), config.batch_size):
        batch = jobs[i : i + config.batch_size]
        texts, pieces = write(
            model,
            tokenizer,
            [prompts[number] for number, _ in batch],
            config.max_new_tokens,
            sampling,
            seeds=[seed for _, seed in batch],
            stop=config.stop,
            end=getattr(tokenizer, "end_of_text", None) if config.stop_at_end else None,
            alternatives=ALTERNATIVES if config.probabilities or config.html else 0,
            slide=config.slide,
            cached=config.cache,
        )
        for text, (number, _) in zip(texts, batch, strict=True):
            text.prompt = config.prompt[number]
        yield from in_order(texts, pieces)


def in_order(
    texts: Sequence[Writing], pieces: Iterator[tuple[Writing, str]]
) -> Iterator[tuple[Writing, str]]:
    """The pieces of the first text as they come, then those of the second, and so on."""
    shown, first = dict.fromkeys(map(id, texts), 0), 0  # characters of each
    for _ in pieces:
        while first < len(texts):
            text = texts[first]
            yield text, text.text[shown[id(text)] :]
            shown[id(text)] = len(text.text)
            if not text.ended:
                break
            first += 1
    for text in texts[first:]:  # where nothing was to be written
        yield text, ""


def checked(
    model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, slide: int
) -> int:
    """How far a full context slides. Raises ValueError for what cannot be continued."""
    if not prompts or not all(map(len, prompts)):
        raise ValueError("generate: the prompt has no token to continue")
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must not be negative, got {max_new_tokens}")
    if not 0 <= slide <= model.block_size:
        raise ValueError(
            f"generate: slide must be between 1 and the context of {model.block_size}, or 0 for a "
            f"quarter of it, got {slide}"
        )
    return slide or default_slide(model.block_size)


def encode_prompt(tokenizer: Tokenizer, prompt: str, flag: str) -> list[int]:
    """The tokens of a prompt, or the one that a text begins after where the prompt is empty.

    Raises UserError, naming the flag, for characters that the vocabulary lacks.
    """
    try:
        return tokenizer.encode(prompt) or [tokenizer.start]
    except UserError as error:
        raise UserError(f"{flag} {prompt!r} cannot be continued: {error}") from None
