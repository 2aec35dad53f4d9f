"""What a language model is to the rest of the package: token numbers in, logits and a loss out.

`LanguageModel` is what training, sampling and evaluation ask of a model; below it stands what every
model refuses, in a sentence each. This file knows tensors and token numbers; it knows nothing of
text, files or training. Go next to `gpt/bigram.py`, the first model, which shows every step.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tinytensor as tt
from tinytensor import Tensor, nn
from tinytensor.nn import functional as F


class LanguageModel(nn.Module):
    """A model that scores every possible next token.

    A subclass sets `vocab_size` and `block_size`, the longest context that it can read, and
    defines `logits`.
    """

    vocab_size: int
    block_size: int

    def logits(self, idx: Tensor) -> Tensor:
        """Scores (B, T, V) of every possible next token, after each position of `idx` (B, T).

        Columns beyond `vocab_size`, if there are any, are padding: softmax makes them 0.
        """
        raise NotImplementedError

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The logits (B, T, V) and, where `targets` (B, T) are given, their mean cross-entropy.

        `targets` are the tokens that come next: `idx` moved by one place (the data moves it, see
        `gpt/data.py`; nothing is moved here, so it cannot be moved twice). The loss is in nats per
        token. Raises ValueError for a shape and TypeError for a dtype that cannot be token numbers.
        """
        check_token_ids(idx, self.block_size)
        check_vocabulary("input", idx, self.vocab_size)
        logits = self.logits(idx)
        if targets is None:
            return self._unpadded(logits), None
        check_targets(targets, idx, self.vocab_size)
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))
        return self._unpadded(logits), loss

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """The loss of `forward` alone: what training needs, and a model may find it with less."""
        loss = self(idx, targets)[1]
        assert loss is not None
        return loss

    def _unpadded(self, logits: Tensor) -> Tensor:
        V = self.vocab_size
        return logits if logits.shape[-1] == V else logits[..., :V]

    def generate(
        self, idx: Tensor, max_new_tokens: int, generator: tt.Generator | None = None
    ) -> Tensor:
        """Continues `idx` (B, T) by `max_new_tokens` sampled tokens; returns all (B, T + new).

        Each token is drawn from the model's own distribution, given the last `block_size` tokens.
        Dropout is off meanwhile. For temperature, top-k and streaming see `gpt/generate.py`, where
        a full context drops a quarter at once: with a cache that saves reading it again for each
        token, as here. With `slide=1` the two draw the same tokens.
        """
        with evaluating(self):
            for _ in range(max_new_tokens):
                context = idx[:, -self.block_size :]
                logits, _ = self(context)
                probabilities = F.softmax(logits[:, -1, :], dim=-1)  # (B, V)
                next_token = tt.multinomial(probabilities, 1, generator=generator)  # (B, 1)
                idx = tt.cat((idx, next_token), dim=1)
        return idx


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; the switches are back afterwards."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with tt.no_grad():
            yield
    finally:
        if was_training:
            model.train()


# ---- What a model refuses ----


def check_token_ids(idx: Tensor, block_size: int) -> None:
    """Says in one sentence why `idx` cannot be read by a model with this context, if it cannot."""
    if idx.is_floating_point() or idx.dtype == tt.bool:
        raise TypeError(
            f"token ids are integers, but the input is {idx.dtype}; the model looks them up in a "
            "table (x.long() converts)"
        )
    if idx.ndim != 2 or idx.shape[1] == 0:
        raise ValueError(
            f"token ids are (batch, time) with at least one token, but the input is "
            f"{tuple(idx.shape)}"
        )
    if idx.shape[1] > block_size:
        raise ValueError(
            f"the input has {idx.shape[1]} tokens but the model's context (block_size) is "
            f"{block_size}; keep the last ones, idx[:, -{block_size}:]"
        )


def check_targets(targets: Tensor, idx: Tensor, vocab_size: int) -> None:
    """Says why these cannot be the tokens that follow those of `idx`, if they cannot."""
    if targets.shape != idx.shape:
        raise ValueError(
            f"targets are {tuple(targets.shape)} but the input is {tuple(idx.shape)}; "
            "they are the input moved by one token and have its shape"
        )
    check_vocabulary("targets", targets, vocab_size)


def check_vocabulary(what: str, ids: Tensor, vocab_size: int) -> None:
    """Names a token that is none: a row of padding would be looked up as if it were one.

    Numbers on a GPU are not looked at: the answer would have to be waited for.
    """
    if ids.device.type == "cpu" and (largest := int(ids.numpy().max())) >= vocab_size:
        raise IndexError(
            f"the {what}: token {largest} is out of range: there are {vocab_size:,} tokens, "
            "numbered from 0"
        )


def check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} is a whole number, but it is {size!r}")
        if size < 1:
            raise ValueError(f"{name} is at least 1, but it is {size}")


def check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(
            f"the number of heads must divide the width: {width} channels do not split into "
            f"{heads} heads of equal size"
        )


def check_dropout(dropout: float) -> None:
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is a probability in [0, 1), but it is {dropout}")
