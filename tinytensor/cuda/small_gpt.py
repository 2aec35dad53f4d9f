"""GPT-2's architecture in the words that this engine and PyTorch share, to compare the two.

`model_class(tt.nn, tt.nn.functional, tt.arange)` and `model_class(torch.nn, …)` run the same lines.
The engine knows nothing of the package `gpt`, whose model is the one to read; this one is as much
as the verification and the benchmark need: tied weights, dropout on request, a loss.

Shapes: B batch, T time, C channels, H heads, D = C / H head size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["GPT2", "TINY", "Sizes", "model_class", "parameter_groups"]


class Sizes(NamedTuple):
    """What makes one model."""

    V: int
    T: int
    layers: int
    H: int
    C: int
    dropout: float = 0.0


GPT2 = Sizes(V=50_304, T=1024, layers=12, H=12, C=768)  # 50,257 tokens, padded as usual
TINY = Sizes(V=37, T=12, layers=2, H=2, C=16)


def model_class(nn: Any, F: Any, arange: Any) -> Any:
    """The class of the model, made of the modules `nn` and the functions `F` of one library."""

    def add_norm(x: Any, residual: Any, norm: Any) -> tuple[Any, Any]:
        """(residual + x, its norm): one operation here, and two that PyTorch compiles into one."""
        if hasattr(F, "add_layer_norm"):
            return F.add_layer_norm(x, residual, norm.weight, norm.bias)  # type: ignore[no-any-return]
        total = x if residual is None else residual + x
        return total, norm(total)

    class Block(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, sizes: Sizes) -> None:
            super().__init__()
            C = sizes.C
            self.H, self.dropout = sizes.H, sizes.dropout
            self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.c_attn, self.c_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.c_fc, self.c_out = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x: Any, residual: Any) -> tuple[Any, Any]:
            B, T, C = x.shape
            residual, x = add_norm(x, residual, self.ln_1)
            q, k, v = (
                part.view(B, T, self.H, C // self.H).transpose(1, 2)
                for part in self.c_attn(x).split(C, dim=2)
            )
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, is_causal=True)
            x = self.dropped(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))
            residual, x = add_norm(x, residual, self.ln_2)
            h = F.gelu(self.c_fc(x), approximate="tanh")
            return self.dropped(self.c_out(h)), residual

        def dropped(self, x: Any) -> Any:
            return F.dropout(x, self.dropout) if self.dropout else x

    class SmallGPT(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, sizes: Sizes) -> None:
            super().__init__()
            self.wte = nn.Embedding(sizes.V, sizes.C)
            self.wpe = nn.Embedding(sizes.T, sizes.C)
            self.h = nn.ModuleList([Block(sizes) for _ in range(sizes.layers)])
            self.ln_f = nn.LayerNorm(sizes.C)
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    deep = name.endswith(("c_proj.weight", "c_out.weight"))
                    std = 0.02 / (2 * sizes.layers) ** 0.5 if deep else 0.02
                    nn.init.normal_(parameter, std=std)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)

        def forward(self, ids: Any, targets: Any) -> Any:
            x = self.wte(ids) + self.wpe(arange(ids.shape[1], device=ids.device))
            residual = None
            for block in self.h:
                x, residual = block(x, residual)
            logits = F.linear(add_norm(x, residual, self.ln_f)[1], self.wte.weight)
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    return SmallGPT


def parameter_groups(model: Any, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
