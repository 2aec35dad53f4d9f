"""The keys and values of the tokens before, so that one token more costs one token's work.

Without a cache every new token runs the whole text through the model again, though attention needs
of the earlier tokens only their keys and values, and these do not change. `KeyValueCache` keeps
them. A batch of texts of different lengths ends in the same column: the shorter ones begin later.

        column   0  1  2  3  4
        row 0    t  h  e  r  e      starts[0] = 0
        row 1    .  .  h  i  s      starts[1] = 2: positions 0, 1, 2 are columns 2, 3, 4

What lies before a row's start is hidden from it by a mask, and its positions count from there. This
file knows tensors and `GPT`'s sizes. Go next to `gpt/contexts.py`, which decides what is kept.

Shapes: B batch (rows), H heads, T new tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import tinytensor as tt
from gpt.model import GPTConfig
from tinytensor import Tensor


class LayerCache:
    """The keys and values (B, H, capacity, D) of one block."""

    def __init__(self, cache: KeyValueCache, keys: Tensor, values: Tensor):
        self.cache, self.keys, self.values = cache, keys, values

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None, bool]:
        """Keeps the new k and v (B, H, T, D); returns all that the new tokens may attend to.

        That is: keys and values (B, H, S, D), and which of them a query sees, as `attn_mask` and
        `is_causal` of `F.scaled_dot_product_attention`.
        """
        cache = self.cache
        first, last = min(cache.starts), cache.length
        self.keys[:, :, last - k.shape[2] : last] = k
        self.values[:, :, last - k.shape[2] : last] = v
        seen = self.keys[:, :, first:last], self.values[:, :, first:last]
        return *seen, cache.mask, cache.is_causal


class KeyValueCache:
    """Room for `capacity` columns of tokens in each of `rows` texts, allocated at once.

    `length` columns are filled, and the text of row b begins in column `starts[b]`. Hand it to a
    `GPT` with the next tokens; under `no_grad`, for it keeps numbers and no gradients:

        cache = KeyValueCache(model.config, rows=1, capacity=100)
        logits, _ = model(prompt, cache=cache)  # (1, T, V)
        logits, _ = model(next_token, cache=cache)  # (1, 1, V)
    """

    def __init__(
        self,
        config: GPTConfig,
        rows: int,
        capacity: int,
        dtype: object = tt.float32,
        device: object = "cpu",
    ):
        if rows < 1 or not 1 <= capacity <= config.block_size:
            raise ValueError(
                f"a cache of {rows} rows for {capacity} tokens: there is at least one row, and the "
                f"model has positions for 1 to {config.block_size} tokens"
            )
        shape = rows, config.n_head, capacity, config.n_embd // config.n_head
        self.layers = [
            LayerCache(
                self,
                tt.zeros(shape, dtype=dtype, device=device),
                tt.zeros(shape, dtype=dtype, device=device),
            )
            for _ in range(config.n_layer)
        ]
        self.capacity = capacity
        self.length = 0
        self.starts = [0] * rows
        self.mask: Tensor | None = None
        self.is_causal = True

    @property
    def device(self) -> tt.device:
        return self.layers[0].keys.device

    @property
    def nbytes(self) -> int:
        """Bytes of memory: 73,728 a token and row for GPT-2's smallest in float32."""
        keys = self.layers[0].keys
        return 2 * len(self.layers) * keys.numel() * keys.dtype.itemsize

    def advance(self, T: int) -> Tensor:
        """Makes T columns more; returns the positions of their tokens, (T,) or (B, T).

        Padding before a row's start counts as position 0. Raises ValueError where there is no room.
        """
        if tt.is_grad_enabled():
            raise RuntimeError("a cache keeps numbers and no gradients: use it in tt.no_grad()")
        old, self.length = self.length, self.length + T
        if self.length > self.capacity:
            self.length = old
            raise ValueError(
                f"the cache has room for {self.capacity} tokens: {old} are in it, and {T} more came"
            )
        columns = tt.arange(old, self.length, device=self.device)  # of the new tokens
        first = min(self.starts)
        alike = max(self.starts) == first
        self.mask, self.is_causal = None, alike and old == first
        if not (self.is_causal or (alike and T == 1)):
            seen = tt.arange(first, self.length, device=self.device)
            self.mask = seen <= columns.view(1, 1, T, 1)
            if not alike:
                self.mask = self.mask & (seen >= self.column_of_starts())
        if alike:
            return columns - first
        return (columns - self.column_of_starts().view(-1, 1)).clamp(min=0)

    def column_of_starts(self) -> Tensor:
        return tt.tensor(self.starts, dtype=tt.long, device=self.device).view(-1, 1, 1, 1)

    def drop_columns(self, count: int) -> None:
        """Forgets the first columns; no text may begin in them."""
        kept = self.length - count
        for layer in self.layers:
            for numbers in (layer.keys, layer.values):
                numbers[:, :, :kept] = numbers[:, :, count : self.length].clone()
        self.length = kept
        self.starts = [start - count for start in self.starts]

    def rows(self, rows: Sequence[int]) -> KeyValueCache:
        """A cache of its own with these rows, in this order; one may come more than once."""
        return self._like(
            [
                (layer.keys[list(rows)], layer.values[list(rows)])  # a list of rows makes a copy
                for layer in self.layers
            ],
            self.length,
            [self.starts[row] for row in rows],
        )

    def view(self, row: int, first: int, last: int) -> KeyValueCache:
        """An empty cache whose memory is the columns first, …, last - 1 of one row of this one."""
        return self._like(
            [
                (
                    layer.keys[row : row + 1, :, first:last],
                    layer.values[row : row + 1, :, first:last],
                )
                for layer in self.layers
            ],
            0,
            [0],
        )

    def _like(
        self, numbers: list[tuple[Tensor, Tensor]], length: int, starts: list[int]
    ) -> KeyValueCache:
        made = object.__new__(KeyValueCache)
        made.layers = [LayerCache(made, keys, values) for keys, values in numbers]
        made.capacity = numbers[0][0].shape[2]
        made.length, made.starts = length, starts
        made.mask, made.is_causal = None, True
        return made
