"""The curves of a run as a picture, drawn from its log alone: loss, step size, gradient norm.

Matplotlib is imported here and only when a picture is drawn: it takes longer to load than all else.
"""

from __future__ import annotations

import math
from pathlib import Path

from gpt.runs import RunFolder

TRAIN, VALIDATION, REFERENCE = "#4477aa", "#cc3311", "#666666"
WORDS = {"train": "text that it learns from", "validation": "text that it never saw"}


def plot_losses(run: RunFolder, path: Path) -> None:
    """Both losses over the steps, beside what a model reaches that knows less (see `Entropies`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = run.records("train")
    evaluations = run.records("evaluation")
    known = run.records("start")[-1]

    unit = known.get("unit", "character")
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes, *below = figure.subplots(3, 1, sharex=True, height_ratios=(5, 1, 1))
    axes.plot(
        [record["step"] for record in steps],
        [record["loss"] for record in steps],
        color=TRAIN,
        alpha=0.3,
        linewidth=0.9,
        label="one training batch",
    )
    for name, color in (("train", TRAIN), ("validation", VALIDATION)):
        losses = [record[f"{name}_loss"] for record in evaluations]
        axes.plot(
            [record["step"] for record in evaluations],
            losses,
            color=color,
            linewidth=2,
            marker="o",
            markersize=4.5,
            label=f"{WORDS[name]}, ends at {losses[-1]:.3f}",
        )
    for name, words in (
        ("uniform", f"guesses among {known['vocab_size']:,}"),
        ("unigram", "knows what is frequent"),
        ("bigram", "knows what follows what"),
    ):
        axes.axhline(known[name], color=REFERENCE, linestyle=(0, (5, 4)), linewidth=1, zorder=1)
        axes.annotate(
            f"{name} {known[name]:.3f}\n{words}",
            xy=(1, known[name]),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            verticalalignment="center",
            color=REFERENCE,
            fontsize=9,
        )
    axes.set_title(f"{run.path.name}: how well each next {unit} is foreseen", loc="left")
    axes.set_ylabel(f"loss (nats per {unit})")
    for panel, name in zip(below, ("learning_rate", "gradient_norm"), strict=True):
        panel.plot(
            [record["step"] for record in steps],
            [record.get(name, math.nan) for record in steps],
            color=TRAIN,
            linewidth=1.2,
        )
        panel.set_ylabel(name.replace("_", "\n"))
    below[-1].set_xlabel("step")
    for panel in (axes, *below):
        panel.margins(x=0.02)
        panel.grid(alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    axes.legend(framealpha=0.9, edgecolor="none", loc="upper right", bbox_to_anchor=(0.98, 0.93))
    figure.savefig(path, dpi=150)
