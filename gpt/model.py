"""GPT: the mathematics of `gpt/bigram.py` in the shape of GPT-2, which trains fast.

One projection makes the queries, keys and values of all heads, one fused operation attends, and the
names of the parameters are GPT-2's, so that weights move both ways. Read from top to bottom; where
`gpt/bigram.py` shows a step, this does it.

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
from gpt.bigram import (  # noqa: F401 (the article's model is found here, too)
    BigramLanguageModel,
    Block,
    FeedForward,
    Head,
    MultiHeadAttention,
)
from gpt.language_model import (
    LanguageModel,
    check_dropout,
    check_heads,
    check_sizes,
    check_targets,
    check_token_ids,
    check_vocabulary,
)
from tinytensor import Tensor, nn
from tinytensor.nn import functional as F
from tinytensor.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from gpt.cache import KeyValueCache, LayerCache

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
