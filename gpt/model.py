"""Two language models, from the one that shows every step to the one that trains fast.

Read from top to bottom. `BigramLanguageModel` is the model of the article "Let's Build our own GPT
Model from Scratch" (Shubh Mishra, after Andrej Karpathy's lecture): attention written out head by
head, with its mask and its softmax in sight. `GPT` is the same mathematics in the shape of GPT-2:
one projection makes the queries, keys and values of all heads, one fused operation attends, and the
names of the parameters are GPT-2's, so that weights move both ways. `tests/gpt/test_model.py`
copies weights from the one to the other and gets the same logits.

This file knows tensors and token numbers; it knows nothing of text, files or training. Go next to
`gpt/train.py`, which trains what is built here.

Shapes: B batch, T time, C channels (the width), H heads, D = C / H head size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tinytensor as tt
from tinytensor import Tensor, nn
from tinytensor.nn import functional as F
from tinytensor.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from gpt.cache import KeyValueCache, LayerCache


class LanguageModel(nn.Module):
    """What both models are to the rest of the package: token numbers in, logits and a loss out.

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

    @tt.no_grad()
    def generate(
        self, idx: Tensor, max_new_tokens: int, generator: tt.Generator | None = None
    ) -> Tensor:
        """Continues `idx` (B, T) by `max_new_tokens` sampled tokens; returns all (B, T + new).

        Each token is drawn from the model's own distribution, given the last `block_size` tokens.
        Dropout is off meanwhile. For temperature, top-k and streaming see `gpt/generate.py`, where
        a full context drops a quarter at once: with a cache that saves reading it again for each
        token, as here. With `slide=1` the two draw the same tokens.
        """
        was_training = self.training
        self.eval()
        for _ in range(max_new_tokens):
            context = idx[:, -self.block_size :]
            logits, _ = self(context)
            probabilities = F.softmax(logits[:, -1, :], dim=-1)  # (B, V)
            next_token = tt.multinomial(probabilities, num_samples=1, generator=generator)  # (B, 1)
            idx = tt.cat((idx, next_token), dim=1)
        self.train(was_training)
        return idx


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


# ---- The article's model: attention with every step in sight ----


class Head(nn.Module):
    """One head of causal self-attention: each position mixes the values of those before it.

    out = softmax(mask(q kᵀ / √D)) v, where mask writes -inf wherever a key lies in the future.
    """

    tril: Tensor

    def __init__(self, embed_size: int, head_size: int, block_size: int, dropout: float = 0.0):
        super().__init__()
        self.head_size = head_size
        self.key = nn.Linear(embed_size, head_size, bias=False)
        self.query = nn.Linear(embed_size, head_size, bias=False)
        self.value = nn.Linear(embed_size, head_size, bias=False)
        # A constant, so it moves with the module and stays out of its saved weights.
        self.register_buffer("tril", tt.tril(tt.ones(block_size, block_size)), persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        k = self.key(x)  # (B, T, D): what each position offers
        q = self.query(x)  # (B, T, D): what each position looks for
        v = self.value(x)  # (B, T, D): what it hands over when found
        weights = q @ k.transpose(-2, -1) * self.head_size**-0.5  # (B, T, T)
        weights = weights.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        weights = self.dropout(F.softmax(weights, dim=-1))  # e^-inf = 0: no weight on the future
        return weights @ v  # (B, T, D)


class MultiHeadAttention(nn.Module):
    """H heads side by side, each D wide, concatenated to C = H·D and mixed by one projection.

    It computes `tt.cat([head(x) for head in self.sa_head], dim=-1)`, for all heads at once: the
    rows of their weights under each other make one product of many small ones. A test compares.
    """

    def __init__(self, embed_size: int, num_head: int, block_size: int, dropout: float = 0.0):
        super().__init__()
        head_size = embed_size // num_head
        self.sa_head = nn.ModuleList(
            [Head(embed_size, head_size, block_size, dropout) for _ in range(num_head)]
        )
        self.proj = nn.Linear(embed_size, embed_size)
        self.attention_dropout = dropout
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        H, D = len(self.sa_head), C // len(self.sa_head)
        weights = [head.query.weight for head in self.sa_head]
        weights += [head.key.weight for head in self.sa_head]
        weights += [head.value.weight for head in self.sa_head]
        q, k, v = F.linear(x, tt.cat(weights)).split(H * D, dim=2)  # (B, T, H·D) each
        q = q.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)
        k = k.view(B, T, H, D).transpose(1, 2)
        v = v.view(B, T, H, D).transpose(1, 2)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, H * D)  # heads side by side again
        return self.dropout(self.proj(y))


class FeedForward(nn.Module):
    """Each position by itself: widen fourfold, ReLU, narrow again."""

    def __init__(self, embed_size: int, dropout: float = 0.0):
        super().__init__()
        self.ff = nn.Sequential(
            nn.Linear(embed_size, 4 * embed_size),
            nn.ReLU(),
            nn.Linear(4 * embed_size, embed_size),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class Block(nn.Module):
    """Communication, then computation; each normalises its input and adds to what it was given."""

    def __init__(self, embed_size: int, num_head: int, block_size: int, dropout: float = 0.0):
        super().__init__()
        self.multihead = MultiHeadAttention(embed_size, num_head, block_size, dropout)
        self.ff = FeedForward(embed_size, dropout)
        self.ll1 = nn.LayerNorm(embed_size)
        self.ll2 = nn.LayerNorm(embed_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.multihead(self.ll1(x))
        x = x + self.ff(self.ll2(x))
        return x


class BigramLanguageModel(LanguageModel):
    """The article's model: embeddings, four blocks, a norm and an untied linear head.

    It keeps the name that the article gives it, after the lookup table which the lecture starts
    from; with its blocks it reads `block_size` tokens, not two. The parameters have the article's
    names too, but for its spelling of `positional_embedding`. Where the article reads sizes from
    global variables, they are arguments here, with its values as defaults.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 8,
        embed_size: int = 64,
        num_head: int = 4,
        num_layers: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_sizes(
            vocab_size=vocab_size,
            block_size=block_size,
            embed_size=embed_size,
            num_head=num_head,
            num_layers=num_layers,
        )
        check_heads(embed_size, num_head)
        check_dropout(dropout)
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.token_embedding_table = nn.Embedding(vocab_size, embed_size)
        self.positional_embedding = nn.Embedding(block_size, embed_size)
        self.block = nn.Sequential(
            *[Block(embed_size, num_head, block_size, dropout) for _ in range(num_layers)]
        )
        self.layer_norm = nn.LayerNorm(embed_size)
        self.linear = nn.Linear(embed_size, vocab_size)

    def logits(self, idx: Tensor) -> Tensor:
        T = idx.shape[1]
        tokens = self.token_embedding_table(idx)  # (B, T, C)
        positions = self.positional_embedding(tt.arange(T, device=idx.device))  # (T, C)
        x = self.block(tokens + positions)  # (B, T, C)
        return self.linear(self.layer_norm(x))  # (B, T, V)


# ---- GPT: the same mathematics in the shape of GPT-2 ----

ACTIVATIONS = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),  # what GPT-2 was trained with
    "gelu": F.gelu,
    "relu": F.relu,
}


@dataclass(frozen=True)
class GPTConfig:
    """The sizes and the choices that make one GPT; raises a sentence where they contradict."""

    vocab_size: int
    block_size: int  # the longest context, and the number of learned positions
    n_layer: int
    n_head: int
    n_embd: int  # the width C; each head has n_embd / n_head of it
    dropout: float = 0.0
    bias: bool = True  # in the linear layers and the norms of the blocks, as in GPT-2
    tied: bool = True  # one table both reads tokens in and scores them at the end
    activation: str = "gelu_tanh"
    head_bias: bool = False  # GPT-2's head has none; the article's has one
    vocab_multiple: int = 1  # the token table is padded to a multiple of this; GPUs like 64 or 128
    checkpointing: bool = False  # keep only what goes into each block, and run it again backwards

    def __post_init__(self) -> None:
        check_sizes(
            vocab_size=self.vocab_size,
            block_size=self.block_size,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            vocab_multiple=self.vocab_multiple,
        )
        check_heads(self.n_embd, self.n_head)
        check_dropout(self.dropout)
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is {self.activation!r}; known are {', '.join(ACTIVATIONS)}"
            )

    @property
    def padded_vocab_size(self) -> int:
        """The rows of the token table: 50,304 for GPT-2's 50,257 tokens in multiples of 64 or 128.

        (50,304 is no power of two, as one may read; it is 393 · 128, so its tiles are all full.)
        """
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def parameter_count(self) -> int:
        """How many numbers are learned, from the sizes alone: nothing is allocated.

        A tied head is the token table, counted once; rows of padding are counted, though they never
        learn. GPT-2's smallest has 124,439,808.
        """
        C, V = self.n_embd, self.padded_vocab_size
        norm = C + C * self.bias
        attention = 4 * C * C + (3 * C + C) * self.bias  # c_attn (3C, C) and c_proj (C, C)
        mlp = 8 * C * C + (4 * C + C) * self.bias  # c_fc (4C, C) and c_proj (C, 4C)
        head = V * C * (not self.tied) + V * self.head_bias
        blocks = self.n_layer * (2 * norm + attention + mlp)
        return V * C + self.block_size * C + blocks + norm + head


class CausalSelfAttention(nn.Module):
    """All heads at once: one projection in, one fused attention, one projection out.

    Position i reads positions 0, …, i: itself too, so no softmax is empty. What it may not read is
    taken out before the softmax; zeroed after it, the rest would no longer sum to 1 and the future
    would still be in the denominator.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.attention_dropout = config.dropout
        self.c_attn = nn.Linear(C, 3 * C, bias=config.bias)  # weight (3C, C): q, k, v stacked
        self.c_proj = nn.Linear(C, C, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        q = q.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)
        k = k.view(B, T, H, D).transpose(1, 2)
        v = v.view(B, T, H, D).transpose(1, 2)
        dropout = self.attention_dropout if self.training else 0.0
        mask, is_causal = None, True
        if cache is not None:  # behind the keys and values of the tokens before, which it keeps
            k, v, mask, is_causal = cache.extend(k, v)
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=is_causal)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Each position by itself: widen fourfold, activate, narrow again."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        C = config.n_embd
        self.c_fc = nn.Linear(C, 4 * C, bias=config.bias)
        self.c_proj = nn.Linear(4 * C, C, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class GPTBlock(nn.Module):
    """`Block` with fused attention and GPT-2's names.

    In `Block` each layer's output is added to the stream, and the next norm reads the sum. One
    operation does both here, `nn.AddLayerNorm`, so a block hands on the last of these sums as its
    two terms: x, what its last layer adds, and `residual`, the stream up to there.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.AddLayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.AddLayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        residual, x = self.ln_1(x, residual)  # residual + x, and its norm
        x = self.attn(x, cache)
        residual, x = self.ln_2(x, residual)
        return self.mlp(x), residual


class Transformer(nn.Module):
    """Everything between the token numbers and the head: embeddings, blocks, the final norm."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([GPTBlock(config) for _ in range(config.n_layer)])
        self.ln_f = nn.AddLayerNorm(config.n_embd, bias=config.bias)
        self.checkpointing = config.checkpointing

    def forward(self, idx: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        T = idx.shape[1]
        positions = tt.arange(T, device=idx.device) if cache is None else cache.advance(T)
        x = self.drop(self.wte(idx) + self.wpe(positions))  # (B, T, C)
        residual = None
        for i, block in enumerate(self.h):
            if cache is not None:
                x, residual = block(x, residual, cache.layers[i])
            elif self.checkpointing:  # of one term, that is one array to keep and not two
                x, residual = checkpoint(block, x if residual is None else residual + x)
            else:
                x, residual = block(x, residual)
        return self.ln_f(x, residual)[1]


class TokenHead(nn.Linear):
    """From the channels of a position to the score of every token that may come next.

    Rows that pad the vocabulary score PADDING_SCORE, whatever their weights: their probability is 0
    and so is every gradient through them. Not −∞, so that whoever looks for numbers that are not
    finite finds only those that should not be there.
    """

    padding: Tensor | None

    def __init__(self, config: GPTConfig):
        super().__init__(config.n_embd, config.padded_vocab_size, bias=config.head_bias)
        padding = None
        if config.padded_vocab_size > config.vocab_size:
            padding = tt.zeros(config.padded_vocab_size)
            padding[config.vocab_size :] = PADDING_SCORE
        self.register_buffer("padding", padding, persistent=False)

    def scores_bias(self) -> Tensor | None:
        """What is added to the scores: the bias, the mark of the padding, both or neither."""
        if self.padding is None or self.bias is None:
            return self.bias if self.padding is None else self.padding
        return self.bias + self.padding

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.scores_bias())


PADDING_SCORE = -1e9
# The parameters that have one row for each token.
TOKEN_ROWS = {"transformer.wte.weight", "lm_head.weight", "lm_head.bias"}


class GPT(LanguageModel):
    """GPT-2's architecture, in any size, with its names, initialisation and tied head."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.block_size = config.block_size
        self.transformer = Transformer(config)
        self.lm_head = TokenHead(config)
        if config.tied:
            # One object under two names: the optimizer sees it once, and its gradient is the sum of
            # both uses. (A copy of the numbers would be tied until the first step only.)
            self.lm_head.weight = self.transformer.wte.weight
        self.initialize()

    @staticmethod
    def from_pretrained(path_or_name: str | Path, **changes: Any) -> GPT:
        """Published weights, for evaluation: `GPT.from_pretrained("gpt2", dropout=0.1).train()`.

        It is `gpt.weights.load_gpt2`: a folder as `transformers` has it, or gpt2, gpt2-medium,
        gpt2-large or gpt2-xl, which `python -m gpt download` fetches.
        """
        from gpt.weights import load_gpt2

        return load_gpt2(path_or_name, **changes)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`LanguageModel.forward`; with a cache, `idx` goes on where the cache ends.

        Only the new tokens are computed, and join the cache (`gpt/cache.py`).
        """
        if cache is None:
            return super().forward(idx, targets)
        if targets is not None:
            raise ValueError("a cache is for writing text: it goes with no targets")
        check_token_ids(idx, self.block_size)
        check_vocabulary("input", idx, self.vocab_size)
        return self._unpadded(self.logits(idx, cache)), None

    def logits(self, idx: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        return self.lm_head(self.transformer(idx, cache))  # (B, T, V)

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """The loss of `forward`, but the logits of all positions are never in memory together."""
        check_token_ids(idx, self.block_size)
        check_vocabulary("input", idx, self.vocab_size)
        check_targets(targets, idx, self.vocab_size)
        head = self.lm_head
        return F.linear_cross_entropy(
            self.transformer(idx), head.weight, targets, linear_bias=head.scores_bias()
        )

    def initialize(self) -> None:
        """GPT-2's starting point; each block adds to the stream twice. Rows of padding are 0."""
        initialize_weights(self, residual_terms=2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name in TOKEN_ROWS:
                # Padding has no gradient: where it starts it stays, and decay has nothing to pull.
                parameter.data[self.config.vocab_size :] = 0.0


def initialize_weights(module: nn.Module, residual_terms: int) -> None:
    """GPT-2's starting point: weights N(0, 0.02), biases 0, norms 1.

    The projections that write into the residual stream (`c_proj`) start smaller by
    1/√residual_terms: the stream is a sum of that many such terms, and its variance should not grow
    with the depth. Embeddings are small too, not N(0, 1) as elsewhere: with a head that is tied to
    them the first loss would be many times ln V. (The article "GPT2 From Scratch" has no such
    initialisation, and says so.)
    """
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith("c_proj.weight"):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(residual_terms))
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)


def without_padding(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """A GPT's state dict with one row for each token and no more: what other programs read."""
    return {
        name: tensor[: config.vocab_size] if name in TOKEN_ROWS else tensor
        for name, tensor in state.items()
    }


def with_padding(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """A state dict without padding as a GPT of this configuration loads it: rows of zeros added."""

    def padded(rows: Tensor) -> Tensor:
        missing = config.padded_vocab_size - config.vocab_size
        zeros = tt.zeros(missing, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
        return tt.cat((rows, zeros)) if missing else rows

    return {name: padded(t) if name in TOKEN_ROWS else t for name, t in state.items()}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """The model's parameters in two optimizer groups: matrices decay, vectors do not.

    A matrix (an embedding table or the weight of a linear layer) multiplies what flows through it,
    and decay keeps that product small. Biases and the gains of norms are offsets and scales: pulled
    towards zero, they would only be wrong.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


# ---- What both models refuse ----


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


# ---- Sizes that have a name ----


def _gpt2(n_layer: int, n_head: int, n_embd: int) -> GPTConfig:
    return GPTConfig(50_257, 1024, n_layer, n_head, n_embd)


# The four published sizes: 124,439,808, 354,823,168, 774,030,080 and 1,557,611,200 parameters. Each
# head is 64 wide in all of them. GPT-2 drops a tenth of the activations in training: after the
# embeddings, of the attention weights, and of what each block adds to the stream. That is where
# `dropout` acts here; it is 0 in this table, because a run that sees each text once needs none
# (dataclasses.replace(GPT2["gpt2"], dropout=0.1) is the published one).
GPT2 = {
    "gpt2": _gpt2(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": _gpt2(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": _gpt2(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": _gpt2(n_layer=48, n_head=25, n_embd=1600),
}

# The size that the article "GPT2 From Scratch" (Gianluca Turcatel) trained first: "only 37M
# parameters", with GPT-2's tokens and context. It does not say how they are spread, and the tokens
# decide: 50,304 rows of 384 are 19.3M already, 1,024 positions 0.4M, so ten blocks of 1.77M
# (12 · 384² and a little) make 37.5M. The article's head is a second table, which at this width
# would cost another 19.3M; ours is tied to the first, as GPT-2's is.
GPT_37M = GPTConfig(50_257, 1024, n_layer=10, n_head=6, n_embd=384, vocab_multiple=128)
