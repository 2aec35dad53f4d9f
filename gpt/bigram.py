"""The model of the article "Let's Build our own GPT Model from Scratch", every step in sight.

(Shubh Mishra, after Andrej Karpathy's lecture.) Attention is written out head by head, with its
mask and its softmax: read from top to bottom. Go next to `gpt/model.py`, the same mathematics in
the shape of GPT-2; `tests/gpt/test_model.py` copies weights from the one to the other and gets the
same logits.

Shapes: B batch, T time, C channels (the width), H heads, D = C / H head size, V vocabulary.
"""

from __future__ import annotations

import tinytensor as tt
from gpt.language_model import LanguageModel, check_dropout, check_heads, check_sizes
from tinytensor import Tensor, nn
from tinytensor.nn import functional as F


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
