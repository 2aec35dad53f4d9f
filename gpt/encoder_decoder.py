"""A GPT that reads one sequence and writes another: the Transformer as it began, for translation.

GPT-2 is the right half of this model with the middle left out. The encoder reads the source, every
position all others, before and after it; the decoder writes the target, each position reading the
target before it (GPT's own attention) and, in the middle of each block, all of the source: that is
cross-attention, queries from the one sequence, keys and values from the other (A. Vaswani et al.,
"Attention is all you need", 2017; with GPT-2's pre-norm blocks). The parameters have the names that
`transformers` gives to GPT-2 with cross-attention.

Three masks, and each has one place:
- a target token reads no later one: `CausalSelfAttention`, as in GPT;
- nobody reads the padding of the source: `Memory.mask`, made once, used by the encoder's attention
  and by cross-attention alike;
- padding of the target is no task: the loss leaves it out. (It stands at the end, where causality
  keeps it out of everybody's sight already.)

Go next to `examples/07_dates.py`, which teaches one to read dates.

Shapes: B batch, S source length, T target length, C channels, H heads, D = C / H, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tinytensor as tt
from gpt.language_model import check_targets, check_token_ids, check_vocabulary, evaluating
from gpt.model import MLP, CausalSelfAttention, GPTConfig, TokenHead, initialize_weights
from tinytensor import Tensor, nn
from tinytensor.nn import functional as F
from tinytensor.utils.checkpoint import checkpoint


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """(B, T, C) -> (B, H, T, D)."""
    B, T, C = x.shape
    return x.view(B, T, n_head, C // n_head).transpose(1, 2)


def join_heads(y: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, C)."""
    B, H, T, D = y.shape
    return y.transpose(1, 2).reshape(B, T, H * D)


class SelfAttention(CausalSelfAttention):
    """GPT's attention without its direction: every position reads all that `mask` allows."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.n_head) for part in self.c_attn(x).chunk(3, dim=2))
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout)
        return self.resid_dropout(self.c_proj(join_heads(y)))


class CrossAttention(nn.Module):
    """Positions of the target read the source: their queries against its keys and values."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.attention_dropout = config.dropout
        self.q_attn = nn.Linear(C, C, bias=config.bias)
        self.c_attn = nn.Linear(C, 2 * C, bias=config.bias)  # weight (2C, C): k, v stacked
        self.c_proj = nn.Linear(C, C, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """What this layer offers of an encoded source (B, S, C): two of (B, H, S, D)."""
        k, v = self.c_attn(source).chunk(2, dim=2)
        return split_heads(k, self.n_head), split_heads(v, self.n_head)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        q = split_heads(self.q_attn(x), self.n_head)  # (B, H, T, D)
        dropout = self.attention_dropout if self.training else 0.0
        # No is_causal: the source is known as a whole before the first target token is written.
        y = F.scaled_dot_product_attention(q, keys, values, mask, dropout_p=dropout)
        return self.resid_dropout(self.c_proj(join_heads(y)))


class EncoderBlock(nn.Module):
    """`GPTBlock` that looks both ways."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = SelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class DecoderBlock(nn.Module):
    """`GPTBlock` with a look at the source between its two halves."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_cross_attn = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.crossattention = CrossAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        x = x + self.crossattention(self.ln_cross_attn(x), keys, values, mask)
        return x + self.mlp(self.ln_2(x))


class Stack(nn.Module):
    """Embeddings, blocks and the final norm of either half."""

    def __init__(self, config: GPTConfig, block: type[nn.Module]):
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.checkpointing = config.checkpointing

    def forward(self, idx: Tensor, read: Callable[[int], tuple[Tensor, ...]]) -> Tensor:
        """(B, T) tokens to (B, T, C); `read(layer)` is what a block is given beside the stream."""
        positions = tt.arange(idx.shape[1], device=idx.device)
        x = self.drop(self.wte(idx) + self.wpe(positions))  # (B, T, C)
        for layer, block in enumerate(self.h):
            given = read(layer)
            x = checkpoint(block, x, *given) if self.checkpointing else block(x, *given)
        return self.ln_f(x)


class Memory(NamedTuple):
    """What a decoder keeps of its sources: made once by `encode`, read for every token written."""

    keys_and_values: list[tuple[Tensor, Tensor]]  # of each of its layers, (B, H, S, D) each
    mask: Tensor  # (B, 1, 1, S): True where the source has a token, False at its padding


class EncoderDecoder(nn.Module):
    """Reads a source, writes a target; both are token numbers, `padding` fills up their ends.

    `source` and `target` describe the two halves, each as a GPT; their widths must agree. The head
    is tied to the target's table if `target.tied`. With `shared_table` the two languages have one
    vocabulary, and one table reads both. `padding` is a token of both vocabularies and means
    nothing else.
    """

    def __init__(
        self, source: GPTConfig, target: GPTConfig, padding: int = 0, shared_table: bool = False
    ):
        super().__init__()
        check_halves(source, target, padding, shared_table)
        self.source, self.target, self.padding = source, target, padding
        self.encoder = Stack(source, EncoderBlock)
        self.decoder = Stack(target, DecoderBlock)
        if shared_table:
            self.encoder.wte = self.decoder.wte
        self.lm_head = TokenHead(target)
        if target.tied:
            self.lm_head.weight = self.decoder.wte.weight
        initialize_weights(self.encoder, residual_terms=2 * source.n_layer)
        initialize_weights(self.decoder, residual_terms=3 * target.n_layer)
        if not target.tied:
            initialize_weights(self.lm_head, residual_terms=1)

    def encode(self, source: Tensor) -> Memory:
        """Reads sources (B, S): all that the decoder will ever look at of them."""
        check_token_ids(source, self.source.block_size)
        check_vocabulary("source", source, self.source.vocab_size)
        mask = (source != self.padding)[:, None, None, :]  # (B, 1, 1, S): the same for every query
        x = self.encoder(source, lambda _: (mask,))
        return Memory([block.crossattention.keys_and_values(x) for block in self.decoder.h], mask)

    def decode(self, idx: Tensor, memory: Memory) -> Tensor:
        """Scores (B, T, V) of the token after each of `idx` (B, T), which begins the target."""
        check_token_ids(idx, self.target.block_size)
        check_vocabulary("target", idx, self.target.vocab_size)
        x = self.decoder(idx, lambda layer: (*memory.keys_and_values[layer], memory.mask))
        return self.lm_head(x)

    def forward(
        self, source: Tensor, idx: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The logits (B, T, V) and, where `targets` (B, T) are given, their mean cross-entropy.

        Teacher forcing: `idx` is the right target up to each position, not what the model would
        have written, so all positions are learned at once. From a target that begins with a start
        token and ends with an end token, idx = target[:, :-1] and targets = target[:, 1:]. Targets
        that are padding count for nothing, and the mean is over the others.
        """
        if source.shape[0] != idx.shape[0]:
            raise ValueError(
                f"each source needs its target, but there are {source.shape[0]} sources and "
                f"{idx.shape[0]} targets"
            )
        logits = self.decode(idx, self.encode(source))
        V = self.target.vocab_size
        loss = None
        if targets is not None:
            check_targets(targets, idx, V)
            loss = F.cross_entropy(
                logits.view(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=self.padding
            )
        return (logits if logits.shape[-1] == V else logits[..., :V]), loss

    def greedy(self, source: Tensor, start: int, end: int, max_new_tokens: int) -> Tensor:
        """The likeliest next token, again and again: (B, S) sources to (B, up to max_new_tokens).

        The source is encoded once. A row that has written `end` is filled up with padding; writing
        ends when all have. Each token re-reads the target so far, which is short here; for long
        ones see `gpt/cache.py`.
        """
        if not 1 <= max_new_tokens <= self.target.block_size:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}, but the target's context (block_size) is "
                f"{self.target.block_size}"
            )
        B, V = source.shape[0], self.target.vocab_size
        idx = tt.full((B, 1), start, dtype=tt.long, device=source.device)
        done = tt.zeros(B, dtype=tt.bool, device=source.device)
        with evaluating(self):
            memory = self.encode(source)
            for _ in range(max_new_tokens):
                token = self.decode(idx, memory)[:, -1, :V].argmax(dim=-1)  # (B,)
                token = token.masked_fill(done, self.padding)
                idx = tt.cat((idx, token[:, None]), dim=1)
                done = done | (token == end)
                if bool(done.all()):
                    break
        return idx[:, 1:]


def check_halves(source: GPTConfig, target: GPTConfig, padding: int, shared_table: bool) -> None:
    """Says in one sentence why these two do not fit together, if they do not."""
    if source.n_embd != target.n_embd:
        raise ValueError(
            f"the decoder reads what the encoder writes, so both have one width, but the source's "
            f"n_embd is {source.n_embd} and the target's {target.n_embd}"
        )
    smaller = min(source.vocab_size, target.vocab_size)
    if not 0 <= padding < smaller:
        raise ValueError(
            f"padding is a token of both vocabularies, at most {smaller - 1}, but it is {padding}"
        )
    if shared_table and (
        (source.vocab_size, source.vocab_multiple) != (target.vocab_size, target.vocab_multiple)
    ):
        raise ValueError(
            "a shared table needs one vocabulary, but the source has "
            f"{source.vocab_size} tokens in multiples of {source.vocab_multiple} and the target "
            f"{target.vocab_size} in multiples of {target.vocab_multiple}"
        )
