"""The language model of "Let's Build our own GPT Model from Scratch", from a text to a new one.

That is the article that this project began with; `gpt/bigram.py` has its model. The loop that
`python -m gpt train --preset bigram` runs, without its conveniences (run folder, checkpoints,
resuming, progress bar): the parts of `gpt` put together by hand, on one page.

Runs for about a minute and a half on two cores with its 5,000 iterations. It prints both losses
every 1,000 of them, then what the model wrote. The last line is the loss on the tenth of the text
that was never trained on, as in "validation loss 1.979 after 5000 iterations (uniform 4.174, bigram
2.452)".
"""

from __future__ import annotations

import argparse

import numpy as np
from arguments import at_least, text_to_read

import tinytensor as tt
from gpt.data import Windows, entropies, load_text, split
from gpt.model import BigramLanguageModel
from gpt.tokenizer import CharTokenizer

BLOCK_SIZE = 8  # characters that the model sees at once
BATCH_SIZE = 32
LEARNING_RATE = 1e-3


def mean_loss(model: BigramLanguageModel, windows: Windows, batches: int) -> float:
    """The loss averaged over this many random batches, with dropout off and nothing recorded."""
    model.eval()
    with tt.no_grad():
        losses = [model(*windows.next_batch())[1].item() for _ in range(batches)]
    model.train()
    return sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=at_least(0), default=5000)
    parser.add_argument("--eval-batches", type=at_least(1), default=200)
    parser.add_argument(
        "--characters", type=at_least(0), default=2000, help="to generate at the end"
    )
    parser.add_argument(
        "--data", type=text_to_read, default="shakespeare", help="or python, or the path of a text"
    )
    parser.add_argument("--seed", type=int, default=1337)
    arguments = parser.parse_args()
    tt.manual_seed(arguments.seed)

    text = load_text(arguments.data)
    if text.note:
        print(text.note)
    tokenizer = CharTokenizer.of(text.content)
    tokens = np.array(tokenizer.encode(text.content))
    train_tokens, validation_tokens = split(tokens, BLOCK_SIZE, text.source)
    known = entropies(train_tokens, tokenizer.vocab_size)

    def windows(part: np.ndarray, seed: int) -> Windows:
        return Windows(part, BLOCK_SIZE, BATCH_SIZE, tt.Generator(seed))

    train_windows = windows(train_tokens, arguments.seed)
    # Evaluating draws from generators of its own, so it does not change what is trained on.
    evaluated = {
        "train": windows(train_tokens, arguments.seed + 1),
        "validation": windows(validation_tokens, arguments.seed + 2),
    }

    model = BigramLanguageModel(tokenizer.vocab_size, BLOCK_SIZE)
    optimizer = tt.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for iteration in range(arguments.iterations + 1):
        if iteration % 1000 == 0 or iteration == arguments.iterations:
            losses = {
                part: mean_loss(model, source, arguments.eval_batches)
                for part, source in evaluated.items()
            }
            print(
                f"iteration {iteration:5d}: training loss {losses['train']:.3f}, "
                f"validation loss {losses['validation']:.3f}",
                flush=True,
            )
        if iteration == arguments.iterations:
            break
        x, y = train_windows.next_batch()  # (B, T) each; y is x moved by one character
        _, loss = model(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    start = tt.tensor([[tokenizer.start]])
    written = model.generate(start, arguments.characters, generator=tt.Generator(arguments.seed))
    print("-" * 72)
    print(tokenizer.decode(written[0, 1:].tolist()))
    print("-" * 72)
    print(
        f"validation loss {losses['validation']:.3f} after {arguments.iterations} iterations "
        f"(uniform {known.uniform:.3f}, bigram {known.bigram:.3f})"
    )


if __name__ == "__main__":
    main()
