"""A small GPT-2 as a folder of Hugging Face's, made by none of the code that is tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

SIZES = {"vocab_size": 97, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
CONFIG: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.0,
    "bos_token_id": 0,
    "embd_pdrop": 0.0,
    "eos_token_id": 0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 16,
    **SIZES,
    "resid_pdrop": 0.0,
    "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}


def numbers(seed: int = 0, config: dict[str, Any] = CONFIG) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights by the names, and in the layout, of GPT-2's published file."""
    rng = np.random.default_rng(seed)
    C, V, P = config["n_embd"], config["vocab_size"], config["n_positions"]

    def normal(*shape: int, mean: float = 0.0) -> np.ndarray[Any, Any]:
        return (mean + 0.15 * rng.standard_normal(shape)).astype(np.float32)

    tensors = {"wte.weight": normal(V, C), "wpe.weight": normal(P, C)}
    for i in range(config["n_layer"]):
        block = {
            "ln_1.weight": normal(C, mean=1.0),
            "ln_1.bias": normal(C),
            "attn.c_attn.weight": normal(C, 3 * C),
            "attn.c_attn.bias": normal(3 * C),
            "attn.c_proj.weight": normal(C, C),
            "attn.c_proj.bias": normal(C),
            "ln_2.weight": normal(C, mean=1.0),
            "ln_2.bias": normal(C),
            "mlp.c_fc.weight": normal(C, 4 * C),
            "mlp.c_fc.bias": normal(4 * C),
            "mlp.c_proj.weight": normal(4 * C, C),
            "mlp.c_proj.bias": normal(C),
        }
        tensors |= {f"h.{i}.{name}": array for name, array in block.items()}
    return tensors | {"ln_f.weight": normal(C, mean=1.0), "ln_f.bias": normal(C)}


def write(
    folder: Path,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    files: int = 1,
    **changes: Any,
) -> Path:
    """The folder with these weights, in one file or several with an index, and config.json."""
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = numbers() if tensors is None else tensors
    if files == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    placed = {}
    for i in range(files):
        name = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[i::files]}
        safetensors.numpy.save_file(part, folder / name, {"format": "pt"})
        placed |= dict.fromkeys(part, name)
    total = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def batch(seed: int = 0, shape: tuple[int, int] = (4, 17)) -> np.ndarray[Any, Any]:
    return np.random.default_rng([1, seed]).integers(0, SIZES["vocab_size"], shape)
