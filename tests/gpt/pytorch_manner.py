"""A small GPT in the manner of code that people write for PyTorch.

Nothing here knows of tinytensor. `test_pytorch_manner.py` runs this file twice, once as it stands
and once with the word `torch` in its import lines replaced, from the same weights on the same
batches, and compares the losses. So it is written as such scripts are, with global settings and a
wide choice of the usual calls, and not as the rest of this repository is.
"""
# ruff: noqa: C416, RUF059

import math

import torch
import torch.nn as nn
from torch.nn import functional as F

CORPUS = "the cat sat on the mat. the dog sat on the log. the bird ate the cat's hat. " * 4

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
batch_size = 4
context = 8
width = 24
heads = 3
layers = 2
dropout = 0.0
learning_rate = 3e-3

chars = sorted(set(CORPUS))
stoi = {c: i for i, c in enumerate(chars)}
itos = {i: c for i, c in enumerate(chars)}
data = torch.tensor([stoi[c] for c in CORPUS], dtype=torch.long)
split = int(0.9 * len(data))
train_data, val_data = data[:split], data[split:]


def get_batch(ix, source=train_data):
    x = torch.stack([source[i : i + context] for i in ix])
    y = torch.stack([source[i + 1 : i + context + 1] for i in ix])
    return x.to(device), y.to(device)


class AttentionHead(nn.Module):
    """Masked attention written out: a buffer, masked_fill, softmax."""

    def __init__(self, size):
        super().__init__()
        self.q = nn.Linear(width, size, bias=False)
        self.k = nn.Linear(width, size, bias=False)
        self.v = nn.Linear(width, size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(context, context)))
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        scores = scores.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        return self.drop(F.softmax(scores, dim=-1)) @ v


class ManyHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([AttentionHead(width // heads) for _ in range(heads)])
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        return self.mix(torch.cat([head(x) for head in self.heads], dim=-1))


class FusedHeads(nn.Module):
    """The same with one projection for all heads, cut by split, view and transpose."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        mask = torch.triu(torch.ones(context, context, dtype=torch.bool), diagonal=1)
        self.register_buffer("mask", mask.view(1, 1, context, context))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).split(width, dim=2)
        q = q.view(B, T, heads, C // heads).transpose(1, 2)
        k = k.view(B, T, heads, C // heads).transpose(1, 2)
        v = v.view(B, T, heads, C // heads).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        scores = scores.masked_fill(self.mask[:, :, :T, :T], float("-inf"))
        y = scores.softmax(dim=-1) @ v
        return self.mix(y.transpose(1, 2).contiguous().view(B, T, C))


class Layer(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TinyGPT(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        stack = [Layer(ManyHeads() if i % 2 == 0 else FusedHeads()) for i in range(layers)]
        self.layers = nn.Sequential(*stack)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)
        self.apply(self.init_weights)

    def init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            torch.nn.init.zeros_(module.bias)

    def forward(self, idx, targets=None):
        B, T = idx.shape
        x = self.tokens(idx) + self.positions(torch.arange(T, device=device))
        logits = self.head(self.norm(self.layers(x)))
        if targets is None:
            return logits, None
        B, T, C = logits.shape
        loss = F.cross_entropy(logits.view(B * T, C), targets.view(B * T))
        return logits, loss

    @torch.no_grad()
    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -context:])
            probs = F.softmax(logits[:, -1, :], dim=-1)
            nxt = torch.multinomial(probs, num_samples=1)
            idx = torch.cat((idx, nxt), dim=1)
        return idx


@torch.no_grad()
def estimate_loss(model, starts):
    model.eval()
    losses = torch.zeros(len(starts))
    for k, ix in enumerate(starts):
        _, loss = model(*get_batch(ix, val_data))
        losses[k] = loss.item()
    model.train()
    return losses.mean().item()


def run(weights, starts, val_starts):
    """Train from `weights` (name to array, or None for fresh ones), one step per row of `starts`.

    Returns the losses by step, the validation loss after them, the trained weights and a sample.
    """
    torch.manual_seed(1337)
    model = TinyGPT(len(chars)).to(device)
    if weights is not None:
        model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    print(f"{sum(p.numel() for p in model.parameters())} parameters on {device}")

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for step, row in enumerate(starts):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 5)
        xb, yb = get_batch(torch.tensor(row))
        logits, loss = model(xb, yb)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())

    val_loss = estimate_loss(model, torch.tensor(val_starts))
    start = torch.zeros((1, 1), dtype=torch.long, device=device)
    sample = "".join(itos[i] for i in model.generate(start, 40)[0].tolist())
    trained = {name: w.detach().cpu().numpy().copy() for name, w in model.state_dict().items()}
    return losses, val_loss, trained, sample


if __name__ == "__main__":
    steps = [torch.randint(len(train_data) - context, (batch_size,)).tolist() for _ in range(200)]
    losses, val_loss, _, sample = run(None, steps, [[0, 8, 16]])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, validation {val_loss:.3f}\n{sample}")
