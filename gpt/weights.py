"""GPT-2's published weights, read from the folders that Hugging Face's `transformers` writes.

    config.json                     sizes and choices; what `GPT` cannot be is refused
    model.safetensors               the numbers, or several files and model.safetensors.index.json
    vocab.json, merges.txt          the tokenizer (`gpt/tokenizers.py` reads it)
    SHA256SUMS                      where `gpt/download.py` or `gpt/export.py` wrote the folder

Two things differ from our own names. The prefix `transformer.` may be missing. And the four weights
of a block's projections lie the other way round: GPT-2 multiplies x W with W (in, out), a linear
layer x Wᵀ with W (out, in). The files are mapped, not read: their numbers go straight into the
model's memory, one tensor at a time. Nothing here unpickles. Go next to `gpt/export.py`, the way
back.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import tinytensor as tt
from gpt import UserError
from gpt.files import checksums, sha256
from gpt.json_files import brief, read_json
from gpt.model import GPT, GPT2, GPTConfig
from gpt.tokenizer import Tokenizer
from tinytensor import nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = WEIGHTS + ".index.json"
TOKENIZER = ("merges.txt", "vocab.json", "tokenizer.json")
PREFIX = "transformer."

# Stored (in, out): `transformers` kept the layout of GPT-2's first files, its class Conv1D.
TRANSPOSED = re.compile(r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
# Constants of the attention mask, which old files hold.
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")

ACTIVATION_NAMES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
# What else a GPT-2 of `transformers` may be, and we are not: the one value that we can take.
FIXED = {
    "model_type": "gpt2",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "quantization_config": None,
}
DTYPES = (tt.float32, tt.bfloat16, tt.float16)
SHOWN_NAMES = 8


def load_gpt2(path_or_name: str | Path, **changes: Any) -> GPT:
    """The model in a folder (or a .safetensors file beside its config.json), for evaluation.

    A name (gpt2, gpt2-medium, gpt2-large, gpt2-xl) stands for the folder that `python -m gpt
    download` made, or for the cache of `transformers`. Numbers become float32. `changes` are fields
    of GPTConfig: `dropout`, `checkpointing`, a smaller `block_size`, a larger `vocab_multiple`.
    Raises UserError where files are missing or damaged, or do not fit each other.

        model = load_gpt2("gpt2", dropout=0.0)
    """
    folder, index = find_weights(path_or_name)
    verify(folder, [CONFIG])
    config = read_config(folder / CONFIG, changes)
    with weight_files(folder, index) as stored:
        return fill(config, stored, str(index), changes)


def load_pretrained(path_or_name: str | Path, **changes: Any) -> tuple[GPT, Tokenizer]:
    """`load_gpt2` and the tokenizer beside it, or GPT-2's own where none lies there."""
    model = load_gpt2(path_or_name, **changes)
    return model, pretrained_tokenizer(path_or_name)


def pretrained_tokenizer(path_or_name: str | Path) -> Tokenizer:
    """The tokenizer in a folder of weights, or GPT-2's own where none lies there.

    Raises UserError where it has another number of tokens than the config.json beside it.
    """
    from gpt.tokenizers import load_tokenizer

    folder, _ = find_weights(path_or_name)
    names = [name for name in TOKENIZER if (folder / name).exists()]
    verify(folder, names)
    tokenizer = load_tokenizer(folder if names else "gpt2")
    config = read_config(folder / CONFIG, {"dropout": 0.0})
    if tokenizer.vocab_size != config.vocab_size:
        own = "its tokenizer" if names else "it has no tokenizer, and GPT-2's"
        raise UserError(
            f"{folder} has weights for {config.vocab_size:,} tokens, but {own} has "
            f"{tokenizer.vocab_size:,}"
        )
    return tokenizer


# ---- Finding the files ----


def find_weights(path_or_name: str | Path) -> tuple[Path, Path]:
    """The folder that a path or a name means, and its file of weights or its index of several."""
    path = Path(path_or_name)
    if path.suffix == ".safetensors" and not path.is_dir():
        if not path.exists():
            raise UserError(f"there is no file {path}")
        return path.parent, path
    folders = [path, *(known_folders(str(path_or_name)) if not path.is_dir() else ())]
    for folder in folders:
        for name in (WEIGHTS, INDEX):
            if (folder / name).exists():
                return folder, folder / name
    if path.is_dir() and (path / "pytorch_model.bin").exists():
        raise UserError(
            f"{path} has its weights as pytorch_model.bin only, a pickle, and a pickle can run "
            "any program; get model.safetensors instead, or convert it with `transformers`"
        )
    if path.is_dir():
        run = (path / "tokenizer.json").exists() and any(path.glob("checkpoint-*"))
        way = (
            f"; it is a run, and `python -m gpt export --run {path} --out FOLDER` makes such a one"
        )
        raise UserError(f"{path} has no weights: neither {WEIGHTS} nor {INDEX}{way if run else ''}")
    name = str(path_or_name).removeprefix("openai-community/")
    if name in GPT2:
        raise UserError(
            f"{name} is not on this machine; `python -m gpt download {name}` fetches it, and a "
            f"folder with its {CONFIG} and {WEIGHTS} does as well"
        )
    if path.exists():
        raise UserError(f"{path} is a file; give the folder with {CONFIG} and {WEIGHTS}")
    raise UserError(
        f"there is no folder {path}; give one with {CONFIG} and {WEIGHTS}, or a name: "
        f"{', '.join(GPT2)}"
    )


def known_folders(name: str) -> Iterator[Path]:
    """Where the weights of this name may lie: our cache, then that of `transformers`."""
    short = name.removeprefix("openai-community/")
    if short not in GPT2:
        return
    yield cache_folder(short)
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    for repository in (f"models--{short}", f"models--openai-community--{short}"):
        reference = hub / repository / "refs" / "main"
        if reference.is_file() and re.fullmatch(
            r"[0-9a-f]{40}", commit := reference.read_text().strip()
        ):
            yield hub / repository / "snapshots" / commit


def cache_folder(name: str) -> Path:
    """Where `python -m gpt download` puts the weights of this name."""
    import pooch

    return Path(pooch.os_cache("tinytensor")) / name


def verify(folder: Path, names: Iterable[str]) -> None:
    """Raises UserError if a file is not the one that the folder's SHA256SUMS, if any, lists."""
    expected = checksums(folder)
    for name in names:
        if name in expected and sha256(folder / name) != expected[name]:
            raise UserError(f"{folder / name} is damaged: its SHA-256 is not the one in SHA256SUMS")


# ---- config.json ----


def read_config(path: Path, changes: Mapping[str, Any] | None = None) -> GPTConfig:
    """The GPTConfig that a config.json of `transformers` describes, with `changes`.

    Raises UserError, a sentence, for a model that `GPT` cannot be.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} describes no model: it is a {type(content).__name__}")
    for field, value in FIXED.items():
        found = content.get(field, value)
        if type(found) is not type(value) or found != value:
            raise UserError(f"{path}: {field} is {brief(found)}, but this GPT has {value!r}")
    sizes = {
        "vocab_size": size(path, content, "vocab_size"),
        "block_size": size(path, content, "n_positions", "n_ctx"),
        **{field: size(path, content, field) for field in ("n_layer", "n_head", "n_embd")},
    }
    inner = content.get("n_inner")
    if inner is not None and inner != 4 * sizes["n_embd"]:
        raise UserError(
            f"{path}: n_inner is {brief(inner)}, but this GPT widens fourfold, from "
            f"{sizes['n_embd']:,} to {4 * sizes['n_embd']:,}"
        )
    activation = content.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATION_NAMES:
        raise UserError(
            f"{path}: activation_function is {brief(activation)}; known are "
            f"{', '.join(ACTIVATION_NAMES)}"
        )
    tied = content.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise UserError(f"{path}: tie_word_embeddings is {brief(tied)}, neither true nor false")
    changes = dict(changes or {})
    check_changes(path, sizes, changes)
    if "dropout" not in changes:
        changes["dropout"] = one_dropout(path, content)
    try:
        return GPTConfig(
            **{**sizes, "tied": tied, "activation": ACTIVATION_NAMES[activation], **changes}
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def size(path: Path, content: Mapping[str, Any], *fields: str) -> int:
    """The first of these fields that is there, a whole number of at least 1."""
    for field in fields:
        if field in content:
            value = content[field]
            if type(value) is not int or not 1 <= value < 1 << 31:
                raise UserError(f"{path}: {field} is {brief(value)}, not a number from 1 to 2^31")
            return value
    raise UserError(f"{path} has no {fields[0]}; is it the configuration of a GPT-2?")


def one_dropout(path: Path, content: Mapping[str, Any]) -> float:
    rates = [content.get(field, 0.1) for field in DROPOUTS]
    if not all(type(rate) in (int, float) for rate in rates) or len(set(rates)) > 1:
        raise UserError(
            f"{path}: {', '.join(DROPOUTS)} are {', '.join(map(brief, rates))}, but there is one "
            "rate for all three here; load_gpt2(..., dropout=0.1) chooses it"
        )
    return float(rates[0])


def check_changes(path: Path, sizes: Mapping[str, int], changes: Mapping[str, Any]) -> None:
    allowed = ("dropout", "checkpointing", "block_size", "vocab_multiple")
    for field, value in changes.items():
        if field not in allowed:
            raise ValueError(f"{field} belongs to the weights; one can change {', '.join(allowed)}")
        if field == "block_size" and value > sizes["block_size"]:
            raise ValueError(
                f"block_size cannot be {value}: {path} has {sizes['block_size']:,} positions"
            )


# ---- The numbers ----

Stored = dict[str, tuple[Mapping[str, tt.Tensor], str]]  # our name: the file, the name in it


@contextmanager
def weight_files(folder: Path, index: Path) -> Iterator[Stored]:
    """Every tensor of a file, or of the files that an index lists, by our names."""
    if index.name.endswith(".index.json"):
        listed = read_index(index)
        names = sorted(set(listed.values()))
    else:
        listed, names = None, [index.name]
    verify(folder, [*names, *([index.name] if listed else [])])
    stored: Stored = {}
    files: list[Mapping[str, tt.Tensor]] = []
    for file_name in names:
        path = folder / file_name
        try:
            tensors = tt.load_file(path, mmap=True)
        except (OSError, ValueError) as error:
            text = str(error).removeprefix(f"load_file: {path}: ")
            why = getattr(error, "strerror", None) or text
            raise UserError(f"{path} cannot be read: {why}") from None
        files.append(tensors)
        for name in tensors:
            if listed is not None and listed.get(name) != file_name:
                where = brief(listed[name]) if name in listed else "nowhere"
                raise UserError(f"{path} holds {brief(name)}, which {index.name} puts {where}")
            plain = name.removeprefix(PREFIX)
            if MASKS.fullmatch(plain):
                continue
            ours = plain if plain.startswith("lm_head.") else PREFIX + plain
            if ours in stored:
                raise UserError(f"{path} holds {plain[:100]} twice, with and without {PREFIX!r}")
            stored[ours] = tensors, name
    if listed is not None and (lost := sorted(set(listed).difference(*files))):
        raise UserError(f"{index} lists {shown(lost)}, which its files do not hold")
    try:
        yield stored
    finally:
        stored.clear()  # closes the files


def read_index(path: Path) -> dict[str, str]:
    """Which tensor lies in which file; the files must lie beside the index."""
    content = read_json(path)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{path} is no index of weights: it has no weight_map")
    for name, file in listed.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise UserError(
                f"{path} puts {brief(name)} into {brief(file)}, which is no file name beside it"
            )
    return listed


def fill(config: GPTConfig, stored: Stored, where: str, changes: Mapping[str, Any]) -> GPT:
    """A GPT of this configuration with these numbers."""
    numbers = sum(tensors[name].numel() for tensors, name in stored.values())
    plain = dataclasses.replace(config, vocab_multiple=1)
    if plain.parameter_count() > 2 * numbers + 1:  # nothing is built that the file cannot fill
        raise UserError(
            f"{where} holds {numbers:,} numbers, but config.json beside it describes a model of "
            f"{plain.parameter_count():,}"
        )
    with uninitialized():
        model = GPT(config)
    parameters = dict(model.named_parameters())  # a tied head is its first name, the table
    head = stored.pop("lm_head.weight", None) if config.tied else None
    check_names(parameters, stored, config, where, changes)
    for ours, parameter in parameters.items():
        tensors, name = stored.pop(ours)
        source = tensors[name].numpy()
        target = parameter.data.numpy()
        source = source.T if TRANSPOSED.search(ours) else source
        rows = min(len(source), len(target))
        target[:rows] = source[:rows]
        target[rows:] = 0  # rows that pad the vocabulary
        if not np.isfinite(target.min()) or not np.isfinite(target.max()):
            wrong = target.size - int(np.isfinite(target).sum())
            raise UserError(f"{where}: {wrong:,} numbers of {name} are not finite")
        if ours.endswith("wte.weight") and head is not None:
            check_head(head[0][head[1]], target[:rows], where)
    return model.eval()


def check_head(head: tt.Tensor, table: np.ndarray[Any, Any], where: str) -> None:
    if tuple(head.shape) != table.shape or not np.array_equal(head.numpy(), table):
        raise UserError(
            f"{where}: lm_head.weight is not the token table, though config.json ties the two"
        )


def check_names(
    parameters: Mapping[str, Any],
    stored: Stored,
    config: GPTConfig,
    where: str,
    changes: Mapping[str, Any],
) -> None:
    """Names that are missing, that nobody knows, and shapes that differ: all of them at once."""
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "misshapen": []}
    for name, parameter in parameters.items():
        expected = tuple(parameter.shape)
        if TRANSPOSED.search(name):
            expected = expected[::-1]
        if name.endswith(("wte.weight", "lm_head.weight")):
            expected = config.vocab_size, config.n_embd
        if name not in stored:
            problems["missing"].append(f"{name} {expected}")
            continue
        tensors, own = stored[name]
        tensor = tensors[own]
        found = tuple(tensor.shape)
        longer = name.endswith("wpe.weight") and "block_size" in changes
        if longer and found[1:] == expected[1:] and found[0] >= expected[0]:
            found = expected  # the first positions of a longer context
        if found != expected:
            problems["misshapen"].append(f"{own} is {found}, not {expected}")
        elif tensor.dtype not in DTYPES:
            raise UserError(
                f"{where}: {own} is {tensor.dtype}; weights are float32, bfloat16 or float16"
            )
    problems["unexpected"] = [own for name, (_, own) in stored.items() if name not in parameters]
    lists = [f"{len(names)} {kind}: {shown(names)}" for kind, names in problems.items() if names]
    if lists:
        raise UserError(f"{where} does not fit the config.json beside it: {'; '.join(lists)}")


def shown(names: list[str]) -> str:
    more = [f"and {len(names) - SHOWN_NAMES} more"] if len(names) > SHOWN_NAMES else []
    return ", ".join([name[:100] for name in names[:SHOWN_NAMES]] + more)


@contextmanager
def uninitialized() -> Iterator[None]:
    """Layers that are made inside keep what their memory held: it is about to be overwritten.

    Drawing the starting weights of GPT-2's smallest size would take longer than reading it.
    """
    places: list[tuple[Any, str]] = [
        (nn.Linear, "reset_parameters"),
        (nn.Embedding, "reset_parameters"),
        (GPT, "initialize"),
    ]
    methods = [getattr(kind, name) for kind, name in places]
    try:
        for kind, name in places:
            setattr(kind, name, lambda self: None)
        yield
    finally:
        for (kind, name), method in zip(places, methods, strict=True):
            setattr(kind, name, method)
