"""What a run leaves behind: a folder with its configuration, log, pictures and checkpoints.

    runs/char/
        config.json, tokenizer.json     what was trained, on which vocabulary
        log.jsonl                       a line of JSON per record, each with its step
        loss.png, sample.txt            at the end
        samples/000500.txt              on the way, if asked for
        checkpoint-002000/              model.safetensors, optimizer.safetensors, state.json

A checkpoint is written aside, flushed to the disk and renamed into place, so that a process killed
at any moment leaves the previous one or the new one, whole. `state.json` holds the SHA-256 of the
two other files. Resuming cuts the log back to the checkpoint's step, so that the log, too, is that
of a run without a break. Go next to `gpt/train.py`, which fills the folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import tinytensor as tt
from gpt import UserError
from gpt.bigram import BigramLanguageModel
from gpt.config import CHANGEABLE, TrainConfig, from_json, to_json
from gpt.corpus import Batches
from gpt.files import (
    check_regular,
    checksums,
    flush_file,
    flush_folder,
    read,
    replace_file,
    sha256,
    write_checksums,
)
from gpt.json_files import digest, parse_json
from gpt.language_model import LanguageModel
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import Tokenizer
from gpt.tokenizers import load_tokenizer

Record = dict[str, Any]

# A checkpoint is these two files and state.json, which holds at least the following.
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
STATE = {"config", "step", "seconds", "batches", "random", "text", "vocabulary", "files"}


def model_config(config: TrainConfig, vocab_size: int) -> GPTConfig:
    """The sizes and choices of the model that a run trains.

    The article's model has them too, if not the class: two tables, biases in most places, ReLU.
    """
    article = config.model == "bigram"
    return GPTConfig(
        vocab_size=vocab_size,
        block_size=config.block_size,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        dropout=config.dropout,
        bias=config.bias or article,
        tied=config.tied and not article,
        activation="relu" if article else config.activation,
        head_bias=article,
        vocab_multiple=config.vocab_multiple,
        checkpointing=config.checkpointing,
    )


def fingerprint(config: TrainConfig) -> str:
    """A hash of all that a resumed run may not change, its place left out."""
    left_out = {*CHANGEABLE, "name", "folder"}
    chosen = {
        field.name: value
        for field in dataclasses.fields(config)
        # Not what is at its default: a field that a later version has more changes no old hash.
        if field.name not in left_out and (value := getattr(config, field.name)) != field.default
    }
    return digest(chosen)


def build_model(config: TrainConfig, vocab_size: int) -> LanguageModel:
    """The model that a configuration describes, with fresh weights from the default generator."""
    if config.model == "bigram":
        return BigramLanguageModel(
            vocab_size,
            block_size=config.block_size,
            embed_size=config.n_embd,
            num_head=config.n_head,
            num_layers=config.n_layer,
            dropout=config.dropout,
        )
    return GPT(model_config(config, vocab_size))


class RunFolder:
    """A run on the disk. Its methods raise UserError where the disk or the files are at fault."""

    def __init__(self, path: Path):
        self.path = path
        self.board: Any = None  # TensorBoard's writer, if it is wanted

    # ---- Beginning and finding ----

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """A new run's place; a run without a name gets its preset's and the first free number."""
        folder = Path(config.folder)
        run = cls(folder / (config.name or config.preset))
        if config.name and run.begun:
            raise UserError(
                f"{run} already holds a run; `{run.resume_command}` goes on with it, "
                "another --name begins another"
            )
        number = 1
        while run.begun:
            number += 1
            run = cls(folder / f"{config.preset}-{number}")
        return run

    @classmethod
    def open(cls, path: str) -> RunFolder:
        """The run at `path`. Raises UserError where none has begun."""
        run = cls(Path(path))
        if not run.begun:
            raise UserError(f"{path} is not a run folder: it has no config.json")
        return run

    def __str__(self) -> str:
        return self.path.as_posix()

    @property
    def begun(self) -> bool:
        return (self.path / "config.json").exists()

    @property
    def resume_command(self) -> str:
        return f"python -m gpt train --resume {shlex.quote(str(self))}"

    def begin(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        """Writes the configuration and the vocabulary; from here on, the run can be resumed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "log.jsonl").unlink(missing_ok=True)
            replace_file(self.path / "tokenizer.json", tokenizer.to_json())
            self.save_config(config)
        except OSError as error:
            raise UserError(f"{self} cannot be written: {error.strerror}") from None

    def save_config(self, config: TrainConfig) -> None:
        replace_file(self.path / "config.json", to_json(config))

    def config(self) -> TrainConfig:
        return from_json(read(self.path / "config.json"), f"{self}/config.json")

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path / "tokenizer.json")

    # ---- Samples ----

    def write_sample(self, step: int, text: str) -> None:
        """A text that the model wrote on the way, as samples/<step>.txt."""
        path = self.path / "samples" / f"{step:06d}.txt"
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    # ---- The log ----

    def log(self, kind: str, step: int, **values: float | str) -> None:
        """Appends a record; it reaches the disk before the checkpoint of its step does."""
        line = json.dumps({"step": step, "kind": kind, **values})
        try:
            with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(
                f"step {step} could not be logged in {self}: {error.strerror}; {self.way_on()}"
            ) from None

        if self.board is not None and kind != "start":
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def open_board(self, step: int) -> None:
        """Has the log written for TensorBoard, too, into the folder `tensorboard`."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs a package that is not installed: python -m pip install "
                "tensorboardX"
            ) from None
        self.board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def records(self, kind: str) -> list[Record]:
        return [record for record in read_log(self.path / "log.jsonl") if record["kind"] == kind]

    def cut_log(self, step: int) -> None:
        """Drops what was logged after `step`: the resumed run will log it again."""
        kept = [record for record in read_log(self.path / "log.jsonl") if record["step"] <= step]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        replace_file(self.path / "log.jsonl", lines)

    # ---- Checkpoints ----

    def checkpoint(self) -> Path | None:
        """The latest checkpoint; a folder that was not renamed into place is none."""
        return next(reversed(self.checkpoints()), None)

    def checkpoints(self) -> list[Path]:
        """All checkpoints, the latest last."""
        found = [path for path in self.path.glob("checkpoint-*") if path.name[11:].isdecimal()]
        return sorted(found, key=step_of)

    def way_on(self) -> str:
        """What is left after a failure, as the end of a sentence."""
        last = self.checkpoint()
        if last is None:
            return "there is no earlier checkpoint"
        return f"{last.name} is whole, and `{self.resume_command}` goes on from it"

    def save_checkpoint(
        self,
        step: int,
        model: LanguageModel,
        optimizer: tt.optim.Optimizer,
        batches: Batches,
        text: str,
        seconds: float,
        processes: int = 1,
        keep: int = 1,
        keep_best: bool = False,
    ) -> None:
        """All that the next step depends on, with the SHA-256 of the text and the time it took.

        Its last bits depend on the number of `processes` that share a batch, too.
        Of the others, the last `keep - 1` stay, and with `keep_best` that of the best evaluation.
        """
        place = self.path / f"checkpoint-{step:06d}"
        if place.exists():
            return  # the same step of the same run
        unfinished = place.with_name(place.name + ".new")
        try:
            flush_file(self.path / "log.jsonl")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            tt.save_file(model.state_dict(), unfinished / MODEL)
            tt.save(optimizer.state_dict(), unfinished / OPTIMIZER)
            state = {
                "config": fingerprint(self.config()),
                "step": step,
                "batches": batches.state_dict(),
                "random": tt.get_rng_state(),
                "vocabulary": sha256(self.path / "tokenizer.json"),
                "files": {name: sha256(unfinished / name) for name in (MODEL, OPTIMIZER)},
                "text": text,
                "seconds": seconds,
                "processes": processes,
            }
            replace_file(unfinished / "state.json", json.dumps(state, indent=2) + "\n")
            write_checksums(unfinished, ["state.json"])
            os.rename(unfinished, place)
            flush_folder(self.path)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise UserError(
                f"the checkpoint of step {step} could not be written to {self}: {error.strerror}; "
                f"{self.way_on()}"
            ) from None
        self.drop_checkpoints(keep, keep_best)

    def drop_checkpoints(self, keep: int, keep_best: bool) -> None:
        """Deletes all but the last ones and the best, and what a kill left half done."""
        whole = self.checkpoints()
        kept = set(whole[-keep:])
        if keep_best:
            kept.add(self.path / f"checkpoint-{self.best_evaluation()[0]:06d}")
        for other in self.path.glob("checkpoint-*"):
            if other not in kept:
                shutil.rmtree(other, ignore_errors=True)

    def best_evaluation(self) -> tuple[int, float]:
        """The step with the lowest validation loss so far, and the loss; 0 and inf before any."""
        losses = [(loss, step) for step, loss in self.validation_losses().items() if step]
        loss, step = min(losses, default=(math.inf, 0))
        return step, loss

    def validation_losses(self) -> dict[int, float]:
        """By step, of the evaluations that were finite."""
        found = [(r["step"], r.get("validation_loss")) for r in self.records("evaluation")]
        return {step: loss for step, loss in found if type(loss) is float and math.isfinite(loss)}

    def find_checkpoint(self, which: str) -> Path:
        """`best`, `last`, or the checkpoint with this path or, in this run, with this name.

        The best of those that are kept has the lowest validation loss; where none was evaluated at
        its step, it is the last. Raises UserError where there is no such checkpoint.
        """
        last = self.last_checkpoint()
        if which == "last":
            return last
        whole = self.checkpoints()
        if which == "best":
            losses = self.validation_losses() if len(whole) > 1 else {}
            scored = [place for place in whole if step_of(place) in losses]
            return min(scored, key=lambda place: losses[step_of(place)], default=last)
        for place in (Path(which), self.path / which):
            if which and (place / "state.json").exists():
                return place
        raise UserError(
            f"--checkpoint {which}: there is no such checkpoint; {self} has "
            f"{', '.join(place.name for place in whole)} (best and last choose among them)"
        )

    def last_checkpoint(self) -> Path:
        """The latest checkpoint, which something needs. Raises UserError where there is none."""
        place = self.checkpoint()
        if place is None:
            raise UserError(f"{self} has no checkpoint yet; `{self.resume_command}` trains it")
        return place

    def load_state(self, *needed: str, place: Path | None = None) -> Record:
        """state.json of a checkpoint (the latest), the needed files checked by their hashes."""
        place = place or self.last_checkpoint()
        path = place / "state.json"
        try:
            state = parse_json(read(path), str(path))
            whole = checksums(place).get("state.json") == sha256(path)
        except UserError:
            if not path.exists():
                raise
            whole = False
        if not whole or not isinstance(state, dict) or not state.keys() >= STATE:
            raise UserError(f"{path.as_posix()} is damaged or incomplete")
        if fingerprint(self.config()) != state["config"]:
            raise UserError(
                f"{place.as_posix()} does not fit config.json, which was another when it was saved"
            )
        for name in needed:
            if sha256(place / name) != state["files"].get(name):
                raise UserError(
                    f"{place.as_posix()}/{name} is damaged or incomplete: its SHA-256 is not the "
                    "one that state.json keeps"
                )
        if sha256(self.path / "tokenizer.json") != state["vocabulary"]:
            raise UserError(
                f"{self}/tokenizer.json is another vocabulary than the one that {place.name} was "
                "trained with"
            )
        return state

    def load_model(self, model: LanguageModel, place: Path | None = None) -> None:
        """Fills `model` with a checkpoint's weights (the latest's); call `load_state` first."""
        place = place or self.last_checkpoint()
        try:
            model.load_state_dict(tt.load_file(place / MODEL))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{place.as_posix()} does not fit config.json: {error}") from None

    def load_checkpoint(
        self,
        state: Record,
        model: LanguageModel,
        optimizer: tt.optim.Optimizer,
        batches: Batches,
    ) -> None:
        """Puts everything back to where the latest checkpoint was taken; `state` is its state."""
        self.load_model(model)
        optimizer.load_state_dict(tt.load(self.last_checkpoint() / OPTIMIZER))
        batches.load_state_dict(state["batches"])
        tt.set_rng_state(state["random"])
        self.cut_log(state["step"])


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])


def load_run(path: str, checkpoint: str = "best") -> tuple[LanguageModel, Tokenizer]:
    """The trained model of a run folder, in evaluation mode, and its tokenizer.

    `checkpoint` is what `RunFolder.find_checkpoint` takes.
    """
    run = RunFolder.open(path)
    config, tokenizer = run.config(), run.tokenizer()
    place = run.find_checkpoint(checkpoint)
    run.load_state(MODEL, place=place)  # the optimizer's state is not needed to write text
    model = build_model(config, tokenizer.vocab_size)
    run.load_model(model, place)
    model.eval()
    return model, tokenizer


def read_log(path: Path) -> list[Record]:
    """The records of a log; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    try:
        check_regular(path)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path.as_posix()} cannot be read: {error.strerror}") from None
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if isinstance(record, dict) and "kind" in record and type(record.get("step")) is int:
            records.append(record)
    return records
