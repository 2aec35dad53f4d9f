"""A model of ours as a folder that Hugging Face's `transformers` loads: `python -m gpt export`.

    python -m gpt export --run runs/char --out char-hf
    transformers.AutoModelForCausalLM.from_pretrained("char-hf")

Rows that pad the vocabulary stay behind. Biases that our model does without are written as zeros,
which is the same model. Go back to `gpt/weights.py`, which reads such folders.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tinytensor as tt
from gpt import UserError
from gpt.bpe import END_OF_TEXT, BytePairTokenizer
from gpt.fields import with_help
from gpt.files import flush_file, flush_folder, replace_file, write_checksums
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import CharTokenizer, Tokenizer
from gpt.tokenizers import describe_characters, write_gpt2_files
from gpt.weights import ACTIVATION_NAMES, CONFIG, DROPOUTS, FIXED, TRANSPOSED, WEIGHTS


@with_help
@dataclass(frozen=True)
class ExportConfig:
    """A trained run as a folder that `transformers` loads."""

    run: str
    """The folder of the run, such as runs/char."""
    out: str
    """The folder to write; it must be new or empty."""
    checkpoint: str = "best"
    """Which of its checkpoints: `best` has the lowest validation loss of those that are kept,
    `last` is where training ended, and a folder such as checkpoint-000500 is itself."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How numbers are written. The two halves take half the room and keep 8 or 11 bits of the 24;
    float16 cannot hold numbers above 65,504."""


def export(config: ExportConfig) -> Path:
    """Writes the folder and returns it. Raises UserError for a run that cannot be written so."""
    from gpt.runs import load_run

    model, tokenizer = load_run(config.run, config.checkpoint)
    if not isinstance(model, GPT):
        raise UserError(
            f"{config.run} is a {type(model).__name__}, which `transformers` does not have; only a "
            "run of the model gpt can be exported"
        )
    folder = Path(config.out)
    save_pretrained(model, folder, tokenizer, config.dtype)
    return folder


def save_pretrained(
    model: GPT, folder: Path, tokenizer: Tokenizer | None = None, dtype: str = "float32"
) -> None:
    """Writes the model, and the tokenizer if given, as `transformers` writes a GPT-2.

    The folder appears when it is complete. Raises UserError for a folder that has files already, a
    model with a bias in its head, and a number that the dtype cannot hold.
    """
    if model.config.head_bias:
        raise UserError("this model has a bias in its head, which a GPT-2 has no place for")
    if tokenizer is not None and tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(
            f"the model has {model.config.vocab_size:,} tokens, the tokenizer "
            f"{tokenizer.vocab_size:,}"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} already has something in it; give a new folder")
    tensors = weights(model, dtype)
    aside = folder.with_name(folder.name + ".new")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of an export that was killed
        aside.mkdir(parents=True)
        replace_file(aside / CONFIG, as_json(describe(model.config, tokenizer, dtype)))
        tt.save_file(tensors, aside / WEIGHTS, {"format": "pt"})
        if tokenizer is not None:
            write_tokenizer(tokenizer, aside, model.block_size)
        write_checksums(aside, sorted(path.name for path in aside.iterdir()))
        for path in aside.iterdir():
            flush_file(path)
        if folder.exists():
            folder.rmdir()  # empty; Windows does not rename onto it
        os.rename(aside, folder)
        flush_folder(folder.parent)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def weights(model: GPT, dtype: str) -> dict[str, tt.Tensor]:
    """The numbers by the names of `transformers`, un-padded, a tied head left out."""
    config, wanted = model.config, getattr(tt, dtype)
    state = model.state_dict()
    if config.tied:
        del state["lm_head.weight"]
    for name in ("transformer.wte.weight", "lm_head.weight"):
        if name in state:
            state[name] = state[name][: config.vocab_size]
    if not config.bias:
        for name, weight in list(state.items()):
            if ".h." in name or "ln_f" in name:  # a bias for each row of a matrix, or of a gain
                state[name.removesuffix("weight") + "bias"] = tt.zeros(weight.shape[0])
    written = {}
    for name, tensor in state.items():
        turned = tensor.transpose(0, 1) if TRANSPOSED.search(name) else tensor
        written[name] = turned.to(wanted)
        if not bool(tt.isfinite(written[name]).all()):
            raise UserError(f"{name} has numbers that are not finite in {dtype}")
    return written


def describe(config: GPTConfig, tokenizer: Tokenizer | None, dtype: str) -> dict[str, Any]:
    """config.json: what `gpt.weights.read_config` reads, in the other direction."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATION_NAMES.items())}
    end = tokenizer.end_of_text if isinstance(tokenizer, BytePairTokenizer) else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{field: value for field, value in FIXED.items() if value is not None},
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": names[config.activation],
        **dict.fromkeys(DROPOUTS, config.dropout),
        "tie_word_embeddings": config.tied,
        "bos_token_id": end,
        "eos_token_id": end,
        "initializer_range": 0.02,
        "dtype": dtype,
    }


# ---- Tokenizers ----


def write_tokenizer(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """The files from which `transformers` makes the same tokenizer."""
    settings: dict[str, Any] = {"model_max_length": block_size}
    if isinstance(tokenizer, BytePairTokenizer):
        write_gpt2_files(tokenizer, folder)
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        if END_OF_TEXT not in tokenizer.special_tokens:
            special = {}
        settings |= {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **special}
        replace_file(folder / "special_tokens_map.json", as_json(special))
    elif isinstance(tokenizer, CharTokenizer):
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        replace_file(folder / "tokenizer.json", as_json(describe_characters(tokenizer)))
    else:
        raise UserError(f"a {type(tokenizer).__name__} cannot be written for `transformers`")
    settings["clean_up_tokenization_spaces"] = False
    replace_file(folder / "tokenizer_config.json", as_json(settings))


def as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
