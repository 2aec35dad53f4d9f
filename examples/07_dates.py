"""Dates in many spellings, English and Italian, to ISO 8601: an encoder-decoder that translates.

"Wednesday, 3 March 2021", "3 marzo 2021", "Mar 3rd 2021" and "03/03/21" are one day, 2021-03-03.
No rule for reading them is written down here. A small Transformer sees pairs, letter by letter: its
encoder reads a spelling, its decoder writes the answer, and cross-attention is how the one looks
into the other. At the end the last layer of it is drawn: which letters of the source it read for
each digit that it wrote.

The days of the test are never trained on, in any spelling. Their spellings are unambiguous by
convention: with slashes the month comes first, with dots the day, and two digits of a year mean
1950 to 2049.

Runs for about a minute on two cores. The last line counts the answers that are right to the last
digit, as in "1000 of 1000 spellings of unseen days read without an error".
"""

from __future__ import annotations

import argparse
import datetime
import math
import time

import numpy as np
from arguments import above_zero, at_least

import tinytensor as tt
from gpt.encoder_decoder import EncoderDecoder
from gpt.model import GPTConfig, parameter_groups
from tinytensor.optim.lr_scheduler import WarmupCosineLR

MONTHS, WEEKDAYS, MESI, GIORNI = (
    names.split()
    for names in (
        "January February March April May June July August September October November December",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre "
        "dicembre",
        "lunedì martedì mercoledì giovedì venerdì sabato domenica",
    )
)

SPELLINGS = [
    "{d} {month} {y}",
    "{d}{th} of {month} {y}",
    "{month} {d}, {y}",
    "{month} {d}{th}, {y}",
    "{mon} {d}{th} {y}",
    "{d}-{mon}-{yy:02}",
    "{weekday}, {d} {month} {y}",
    "{weekday} {month} {d}, {y}",
    "{d}.{m}.{y}",
    "{d:02}.{m:02}.{yy:02}",
    "{m}/{d}/{y}",
    "{m:02}/{d:02}/{yy:02}",
    "{y}/{m:02}/{d:02}",
    "{d} {mese} {y}",
    "{il}{d} {mese} {y}",
    "{giorno} {d} {mese} {y}",
]

FIRST, LAST = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)

# Tokens: three of our own, then every letter that occurs.
PADDING, START, END = range(3)
LETTERS = sorted(set("".join(MONTHS + WEEKDAYS + MESI + GIORNI) + "0123456789 ,.-/'thstndrdil"))
NUMBER = {letter: number for number, letter in enumerate(LETTERS, start=3)}
LONGEST = len("Wednesday September 30, 2021")


def spell(day: datetime.date, spelling: str) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    return spelling.format(
        d=day.day,
        m=day.month,
        y=day.year,
        yy=day.year % 100,
        th="th" if 10 < day.day < 14 else ending,
        month=MONTHS[day.month - 1],
        mon=MONTHS[day.month - 1][:3],
        weekday=WEEKDAYS[day.weekday()],
        mese=MESI[day.month - 1],
        giorno=GIORNI[day.weekday()],
        il="l'" if day.day in (1, 8, 11) else "il ",
    )


def is_for_testing(day: datetime.date) -> bool:
    """One day in ten, scattered: 7919 is prime, so all days of months and years take part."""
    return day.toordinal() * 7919 % 1000 < 100


def pairs(rng: np.random.Generator, count: int, testing: bool) -> list[tuple[str, str]]:
    """So many (spelling, ISO date) pairs of random days, from one side of the fence."""
    found: list[tuple[str, str]] = []
    while len(found) < count:
        day = FIRST + datetime.timedelta(days=int(rng.integers((LAST - FIRST).days + 1)))
        if is_for_testing(day) == testing:
            found.append((spell(day, SPELLINGS[rng.integers(len(SPELLINGS))]), day.isoformat()))
    return found


def padded(rows: list[list[int]]) -> tt.Tensor:
    """Rows of different length as one (B, longest) tensor, filled up with padding."""
    longest = max(map(len, rows))
    return tt.tensor([row + [PADDING] * (longest - len(row)) for row in rows])


def sources(batch: list[tuple[str, str]]) -> tt.Tensor:
    return padded([[NUMBER[letter] for letter in spelling] for spelling, _ in batch])


def targets(batch: list[tuple[str, str]]) -> tt.Tensor:
    return padded([[START, *(NUMBER[letter] for letter in iso), END] for _, iso in batch])


def read(row: list[int]) -> str:
    """Token numbers as text, up to the end token."""
    return "".join(LETTERS[n - 3] if n > END else "" for n in row[: (row + [END]).index(END)])


def answers(model: EncoderDecoder, batch: list[tuple[str, str]]) -> list[str]:
    return [read(row) for row in model.greedy(sources(batch), START, END, 11).tolist()]


def draw_attention(model: EncoderDecoder, pair: tuple[str, str]) -> None:
    """For each character written, how much the last block's heads together read each letter."""
    seen: list[tuple[tt.Tensor, ...]] = []
    layer = model.decoder.h[-1].crossattention
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with tt.no_grad():
        model(sources([pair]), targets([pair])[:, :-1])
        handle.remove()
        x, keys, _, _ = seen[0]
        H, D = keys.shape[1], keys.shape[3]
        q = layer.q_attn(x).view(1, -1, H, D).transpose(1, 2)
        weights = tt.softmax(q @ keys.transpose(-2, -1) / math.sqrt(D), dim=-1)  # (1, H, T, S)
    shades = " .:-=+*#%@"
    print(f"    {pair[0]}")
    for character, row in zip(pair[1], weights[0].mean(dim=0).tolist(), strict=False):
        print(f"  {character} " + "".join(shades[min(9, int(20 * weight))] for weight in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=at_least(0), default=1200)
    parser.add_argument("--batch-size", type=at_least(1), default=64)
    parser.add_argument("--lr", type=above_zero, default=2e-3)
    parser.add_argument(
        "--test", type=at_least(1), default=1000, help="spellings to be tested with"
    )
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tt.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)

    V = 3 + len(LETTERS)
    size = {"n_layer": 2, "n_head": 4, "n_embd": 64}
    model = EncoderDecoder(
        GPTConfig(V, LONGEST + 4, **size), GPTConfig(V, 11, **size), padding=PADDING
    )
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters; {len(SPELLINGS)} spellings of {(LAST - FIRST).days + 1:,} days")

    optimizer = tt.optim.AdamW(parameter_groups(model, 0.01), lr=arguments.lr, betas=(0.9, 0.98))
    warmup = min(100, arguments.steps // 10)
    scheduler = WarmupCosineLR(optimizer, warmup, arguments.steps, arguments.lr / 20)
    began = time.perf_counter()
    for step in range(arguments.steps):
        batch = pairs(rng, arguments.batch_size, testing=False)
        # Teacher forcing: the decoder is given the right date and predicts it moved by one.
        target = targets(batch)
        _, loss = model(sources(batch), target[:, :-1], target[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        tt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 200 == 0 or step == arguments.steps - 1:
            seconds = time.perf_counter() - began
            print(f"step {step:5d}  loss {loss.item():.4f}  {seconds:4.0f} s", flush=True)

    test = pairs(rng, arguments.test, testing=True)
    written = [
        answer for i in range(0, len(test), 250) for answer in answers(model, test[i : i + 250])
    ]
    right = sum(answer == iso for answer, (_, iso) in zip(written, test, strict=True))
    print()
    for answer, (spelling, iso) in list(zip(written, test, strict=True))[:8]:
        print(f"{spelling:>{LONGEST}} -> {answer}{'' if answer == iso else f'  (is {iso})'}")
    print()
    draw_attention(model, test[0])
    print()
    print(f"{right} of {len(test)} spellings of unseen days read without an error")


if __name__ == "__main__":
    main()
