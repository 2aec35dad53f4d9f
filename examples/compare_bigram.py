"""The article's recipe in tinytensor and in PyTorch: do they end at the same validation loss?

Both libraries train the same model, `gpt/bigram.py` (its source is executed a second time with the
import lines changed to PyTorch's), with AdamW on the same Shakespeare. For each seed they begin
with the same weights and see the same batches, so what remains is the rounding of float32, which
5,000 steps make grow. Then each is evaluated on the same 200 batches of both splits.

Runs for about 8 minutes (`--iterations` and `--seeds` shorten it); needs PyTorch. The last line is
the largest difference, as in "validation losses differ by at most 0.0101 over 3 seeds".
"""

from __future__ import annotations

import argparse
import importlib.util

import numpy as np
from arguments import at_least, text_to_read
from benchmark_bigram import torch_model_module

import tinytensor as tt
from gpt.data import Windows, load_text, split
from gpt.model import BigramLanguageModel
from gpt.tokenizer import CharTokenizer

BLOCK_SIZE, BATCH_SIZE, LEARNING_RATE = 8, 32, 1e-3


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=at_least(0), default=5000)
    parser.add_argument("--eval-batches", type=at_least(1), default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data", type=text_to_read, default="shakespeare")
    return parser.parse_args()


def train(model, optimizer, batches) -> None:
    for x, y in batches:
        _, loss = model(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def evaluate(model, batches) -> float:
    model.eval()
    losses = [model(x, y)[1].item() for x, y in batches]
    model.train()
    return float(np.mean(losses))


def main() -> None:
    arguments = parse_arguments()
    if not importlib.util.find_spec("torch"):
        raise SystemExit("this compares with PyTorch, which is not installed: pip install torch")
    import torch

    torch_models = torch_model_module()
    text = load_text(arguments.data)
    print(text.note or f"{text.source}: {len(text.content):,} characters")
    tokenizer = CharTokenizer.of(text.content)
    tokens = np.array(tokenizer.encode(text.content), np.int64)
    train_tokens, validation_tokens = split(tokens, BLOCK_SIZE, text.source)

    def windows(tokens, seed, count, convert):
        drawn = Windows(tokens, BLOCK_SIZE, BATCH_SIZE, tt.Generator(seed))
        for _ in range(count):
            yield tuple(convert(t.numpy()) for t in drawn.next_batch())

    print(f"{'seed':>4}  {'tinytensor':>20}  {'PyTorch':>20}   (training, validation)")
    differences = []
    for seed in arguments.seeds:
        tt.manual_seed(seed)
        ours = BigramLanguageModel(tokenizer.vocab_size)
        theirs = torch_models.BigramLanguageModel(tokenizer.vocab_size)
        weights = {name: torch.from_numpy(w.numpy()) for name, w in ours.state_dict().items()}
        theirs.load_state_dict(weights)
        found = []
        for library, model, convert in (
            (tt, ours, tt.from_numpy),
            (torch, theirs, torch.from_numpy),
        ):
            optimizer = library.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
            train(model, optimizer, windows(train_tokens, seed, arguments.iterations, convert))
            with library.no_grad():
                found += [
                    evaluate(model, windows(tokens, seed + 1000, arguments.eval_batches, convert))
                    for tokens in (train_tokens, validation_tokens)
                ]
        differences.append(abs(found[1] - found[3]))
        print(f"{seed:>4}  {found[0]:>10.4f}{found[1]:>10.4f}  {found[2]:>10.4f}{found[3]:>10.4f}")
    count = len(arguments.seeds)
    print(f"validation losses differ by at most {max(differences):.4f} over {count} seeds")


if __name__ == "__main__":
    main()
