"""Training that goes on with weights that are there already: `--init-from gpt2`, or a folder.

The sizes of the model are those of the weights and stand in the run's config.json like any others,
so a resumed run needs the weights no more. What a run may choose by itself: dropout, checkpointing,
padding of the vocabulary, and a shorter context, which keeps the first positions. Go back to
`gpt/weights.py`, which reads the numbers, or on to `gpt/train.py`.
"""

from __future__ import annotations

import dataclasses

from gpt.config import SCRATCH, TrainConfig
from gpt.fields import flag, require
from gpt.language_model import LanguageModel
from gpt.model import GPT, GPTConfig
from gpt.runs import build_model
from gpt.weights import CONFIG, find_weights, load_gpt2, read_config

# What the weights decide.
SIZES = ("n_layer", "n_head", "n_embd", "bias", "tied", "activation")


def with_sizes(config: TrainConfig, init_from: str) -> TrainConfig:
    """`config` with these weights, their sizes, and no longer context than they have.

    A step stays as many batches as it was. Raises UserError where there are no such weights.
    """
    sizes = sizes_of(init_from)
    block_size = min(config.block_size, sizes.block_size)
    total = config.accumulation * config.batch_size * block_size if config.total_batch else 0
    return dataclasses.replace(
        config,
        init_from=init_from,
        model="gpt",
        block_size=block_size,
        total_batch=total,
        **{field: getattr(sizes, field) for field in SIZES},
    )


def check_start(config: TrainConfig, vocab_size: int) -> None:
    """Raises UserError, with the flag, where a run's model is not that of its weights."""
    if config.init_from == SCRATCH:
        return
    sizes = sizes_of(config.init_from)
    require(config.model == "gpt", f"--init-from {config.init_from} is for --model gpt")
    for field in SIZES:
        asked, found = getattr(config, field), getattr(sizes, field)
        require(
            asked == found,
            f"{flag(field)} {asked} does not fit --init-from {config.init_from}, where it is "
            f"{found}; leave it out",
        )
    require(
        config.block_size <= sizes.block_size,
        f"--block-size {config.block_size:,} is beyond the {sizes.block_size:,} positions of "
        f"--init-from {config.init_from}",
    )
    require(
        vocab_size == sizes.vocab_size,
        f"--init-from {config.init_from} has weights for {sizes.vocab_size:,} tokens, but the "
        f"tokenizer has {vocab_size:,}: they belong to another one",
    )


def sizes_of(init_from: str) -> GPTConfig:
    """The sizes of weights, from their config.json; the weights must lie beside it."""
    folder, _ = find_weights(init_from)
    return read_config(folder / CONFIG, {"dropout": 0.0})


def starting_model(config: TrainConfig, vocab_size: int) -> LanguageModel:
    """The model that a run begins with, for training: fresh weights, or those of `init_from`.

    `check_start` comes first.
    """
    if config.init_from == SCRATCH:
        return build_model(config, vocab_size)
    model: GPT = load_gpt2(
        config.init_from,
        dropout=config.dropout,
        checkpointing=config.checkpointing,
        block_size=config.block_size,
        vocab_multiple=config.vocab_multiple,
    )
    return model.train()
