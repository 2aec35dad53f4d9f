"""Where a run's fields start from: published recipes, each a `TrainConfig` with its source.

Go next to `gpt/train.py`.
"""

from __future__ import annotations

from typing import Any

from gpt.config import Preset, TrainConfig


def gpt2_size(
    preset: Preset, n_layer: int, n_head: int, n_embd: int, learning_rate: float, **changes: Any
) -> TrainConfig:
    """A size of GPT-2, by the recipe of GPT-3 (T. Brown et al., 2020, table 2.1 and appendix B).

    That is: its betas, decay, clipping and cosine to a tenth, with a warm-up of 375 million tokens;
    the batch of half a million tokens is GPT-2's. As it stands a run reads ten billion tokens.
    """
    values: dict[str, Any] = {
        "tokenizer": "gpt2",
        "block_size": 1024,
        "bias": True,
        "vocab_multiple": 64,
        "iterations": 19_073,
        "batch_size": 16,
        "total_batch": 524_288,
        "min_learning_rate": learning_rate / 10,
        "warmup": 715,
        "beta2": 0.95,
        "eval_every": 250,
        "eval_batches": 20,
        "log_every": 1,
        "checkpoint_every": 250,
        "keep_checkpoints": 2,
        "keep_best": True,
        "sample_every": 250,
        "sample_chars": 200,
    }
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    values.update(preset=preset, learning_rate=learning_rate, **sizes)
    return TrainConfig(**{**values, **changes})


PRESETS: dict[str, TrainConfig] = {
    "char": TrainConfig(),
    # nanoGPT's published recipe for a GPU (config/train_shakespeare_char.py): best validation loss
    # 1.4697. It reads the text 80 times, so it needs dropout and keeps its best evaluation; 20
    # batches of 64 x 256 are the validation text three times over.
    "shakespeare-gpu": TrainConfig(
        preset="shakespeare-gpu",
        block_size=256,
        n_layer=6,
        n_head=6,
        n_embd=384,
        dropout=0.2,
        iterations=5000,
        batch_size=64,
        eval_every=250,
        eval_batches=20,
        keep_best=True,
    ),
    # The article's listing: PyTorch's AdamW as it comes (betas, decay of 0.01 on everything), a
    # constant step size, no clipping; losses every 1,000 iterations over 200 batches of each split.
    "bigram": TrainConfig(
        preset="bigram",
        model="bigram",
        block_size=8,
        n_embd=64,
        bias=True,
        tied=False,
        activation="relu",
        iterations=5000,
        batch_size=32,
        schedule="constant",
        warmup=0,
        beta2=0.999,
        weight_decay=0.01,
        decay="all",
        clip=0.0,
        eval_every=1000,
        eval_batches=200,
        checkpoint_every=1000,
    ),
    # GPT-2's 50,257 tokens on a text of 338,025 of them, in minutes on two cores. The head is
    # nearly all of the work, so the model is narrow.
    "gpt2-shakespeare": TrainConfig(
        preset="gpt2-shakespeare",
        tokenizer="gpt2",
        n_embd=128,
        batch_size=16,
        iterations=400,
        learning_rate=3e-3,
        min_learning_rate=3e-4,
        warmup=50,
        eval_every=100,
        eval_batches=5,
        sample_every=100,
        sample_chars=150,
        checkpoint_every=100,
        keep_best=True,
    ),
    # The sizes are those of gpt/model.py, where they are explained; a test compares.
    "gpt2-124m": gpt2_size("gpt2-124m", 12, 12, 768, 6e-4),
    "gpt2-355m": gpt2_size("gpt2-355m", 24, 16, 1024, 3e-4),
    "gpt2-774m": gpt2_size("gpt2-774m", 36, 20, 1280, 2.5e-4),
    "gpt2-1558m": gpt2_size("gpt2-1558m", 48, 25, 1600, 2e-4),
    # The article's: 100 million tokens, 191 steps.
    "gpt-37m": gpt2_size(
        "gpt-37m", 10, 6, 384, 1e-3, vocab_multiple=128, iterations=191, warmup=20, eval_every=20,
        checkpoint_every=20, sample_every=20,
    ),
    # nanoGPT's published recipe for published weights (config/finetune_shakespeare.py): a small
    # constant step size, 20 steps of 32,768 tokens, and the best evaluation counts. There it is
    # gpt2-xl; here the smallest, for the memory of a laptop.
    "gpt2-finetune": TrainConfig(
        preset="gpt2-finetune",
        init_from="gpt2",
        n_layer=12,
        n_head=12,
        n_embd=768,
        bias=True,
        block_size=1024,
        iterations=20,
        batch_size=1,
        total_batch=32 * 1024,
        learning_rate=3e-5,
        min_learning_rate=3e-5,
        schedule="constant",
        warmup=0,
        beta2=0.95,
        eval_every=5,
        eval_batches=40,
        log_every=1,
        checkpoint_every=0,
        keep_best=True,
        sample_chars=200,
    ),
}  # fmt: skip
