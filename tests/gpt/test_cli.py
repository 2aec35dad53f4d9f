"""The command line: what it accepts, what it prints, and one clear sentence for what it refuses."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gpt
from gpt import cli
from gpt.data import load_text
from gpt.runs import RunFolder


def words_of(line):
    return line.split()


TINY = words_of(
    "--data text.txt --block-size 8 --n-layer 1 --n-head 2 --n-embd 16 --batch-size 4 "
    "--iterations 20 --warmup 2 --eval-every 10 --eval-batches 2 --sample-chars 20"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a text in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(load_text("python").content[:3000], encoding="utf-8")
    return tmp_path


def run(*arguments):
    """The exit code, from wherever it comes: tyro exits by itself."""
    try:
        return cli.main(list(arguments))
    except SystemExit as leaving:
        return leaving.code


def start(*arguments, code=None):
    """The same in a process of its own; output and errors apart."""
    command = (
        [sys.executable, "-m", "gpt", *arguments] if code is None else [sys.executable, "-c", code]
    )
    paths = [os.environ.get("PYTHONPATH", ""), str(Path(gpt.__file__).parents[1])]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


# ---- From training to text ----


def test_train_then_generate(folder, capsys):
    assert run("train", *TINY) == 0
    trained = capsys.readouterr()
    assert "validation" in trained.out and "\r" not in trained.out
    assert trained.err == ""  # no progress bar where nobody looks
    assert "python -m gpt generate --run runs/char --prompt" in trained.out

    options = words_of(
        "--max-new-tokens 30 --temperature 0.9 --top-k 20 --top-p 0.9 --num-samples 2"
    )
    texts = []
    for seed in ("5", "5", "6"):
        assert (
            run("generate", "--run", "runs/char", "--prompt", "The", *options, "--seed", seed) == 0
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    first, second = texts[0].split("\n" + "-" * 72 + "\n")
    assert first != second.removesuffix("\n")
    for sample in (first, second.removesuffix("\n")):
        assert sample.startswith("The") and len(sample) == 33

    assert run("generate", "--run", "runs/char", "--max-new-tokens", "4") == 0
    assert len(capsys.readouterr().out) == 5  # without a prompt, only what the model wrote


def test_text_streams_as_it_is_made(folder, capsys, monkeypatch):
    assert run("train", *TINY) == 0
    capsys.readouterr()
    seen = []

    class Watch:
        def __call__(self, *text, end="\n", flush=False, file=None):
            seen.append((*text, end, flush))

    monkeypatch.setattr(cli, "print", Watch(), raising=False)
    assert run("generate", "--run", "runs/char", "--max-new-tokens", "5", "--prompt", "a") == 0
    assert [entry[1:] for entry in seen[:-1]] == [("", True)] * 6
    assert all(len(entry[0]) == 1 for entry in seen[:-1])


def test_a_preset_is_where_fields_start_from(folder, capsys):
    assert run("train", *TINY, "--preset=bigram", "--name", "b", "--lr", "2e-3") == 0
    kept = RunFolder.open("runs/b").config()
    assert (kept.model, kept.decay, kept.beta2, kept.learning_rate) == (
        "bigram",
        "all",
        0.999,
        2e-3,
    )


def test_the_last_of_a_repeated_flag_counts():
    assert cli.value_of("--preset", ["--preset", "char", "--preset=bigram"]) == "bigram"
    assert cli.value_of("--preset", ["--name", "x", "--preset"]) == ""
    assert cli.value_of("--preset", []) == ""


def test_ctrl_c_saves_and_says_how_to_go_on(folder):
    process = start("train", *TINY, "--iterations", "100000", "--eval-every", "100000")
    for line in process.stdout:
        if "step" in line:
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "to go on:  python -m gpt train --resume runs/char" in output
    assert "Traceback" not in errors
    [checkpoint] = Path("runs/char").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert run("train", "--resume", "runs/char", "--iterations", str(step + 10)) == 0


def test_a_reader_who_leaves_is_no_error(folder):
    process = start("train", *TINY, "--iterations", "2000")
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) != 0
    assert "Traceback" not in errors


# ---- Help ----


def test_help_is_quick(folder):
    heavy = "{'matplotlib', 'tinytensor', 'pooch', 'numpy'}"
    for words in ("['--help']", "['train', '--help']", "['generate', '--help']"):
        code = (
            f"import sys, gpt.cli\ntry: gpt.cli.main({words})\nexcept SystemExit: pass\n"
            f"print('loaded:', sorted({heavy} & set(sys.modules)))"
        )
        output, errors = start(code=code).communicate(timeout=60)
        assert output.endswith("loaded: []\n"), (output[-300:], errors)


def test_help_tells_what_there_is(capsys):
    assert run("--help") == 0
    overview = capsys.readouterr().out
    assert all(command in overview for command in cli.COMMANDS)
    assert run("train", "--help", "--preset", "bigram") == 0
    help_text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--n-head INT How many things each position can look for at once" in help_text
    assert "Steps between two evaluations. (default: 1000)" in help_text  # the preset's


# ---- What is refused ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --lerning-rate 1", ["Unrecognized options", "--learning-rate"]),
        ("train --layers 2", ["Unrecognized options", "--n-layer"]),
        ("train --n-layer two", ["--n-layer", "'two'"]),
        ("train --n-layer 2.5", ["--n-layer", "'2.5'"]),
        ("train --preset bigrm", ["--preset", "'char'", "'bigram'"]),
        ("train --resume", ["--resume"]),
        ("train surprise", ["Unrecognized options", "surprise"]),
        ("generate", ["--run"]),
        ("generate --run runs/char --temprature 1", ["--temperature"]),
    ],
)
def test_unknown_and_ill_typed_flags_are_refused_with_the_nearest(folder, capsys, arguments, words):
    assert run(*arguments.split()) == 2
    errors = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert all(word in errors for word in words), errors
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "no command is given; the commands are train, generate, check"),
        ("trian", "there is no command 'trian' (nearest: train)"),
        ("train --data empty.txt", "empty.txt is empty"),
        ("train --data short.txt", "short.txt has 100 tokens, too few for a context of 64"),
        ("train --data latin.txt", "latin.txt is not UTF-8 text: byte 3 (0xe9)"),
        ("train --data absent.txt", "there is no file or folder absent.txt"),
        ("train --data=", "--data needs shakespeare, python, or a path"),
        ("train --data folder", "folder has no shards"),
        ("train --init-from short.txt", "short.txt is a file; give the folder with config.json"),
        ("tokenizer train empty.txt", "no pair of bytes occurs twice in these texts"),
        ("train --learning-rate -1", "--learning-rate must be greater than 0, but it is -1.0"),
        ("train --lr=-1", "--learning-rate must be greater than 0, but it is -1.0"),
        ("train --n-head 3", "--n-head 3 does not divide --n-embd 128"),
        ("train --resume absent", "absent is not a run folder: it has no config.json"),
        ("generate --run absent", "absent is not a run folder: it has no config.json"),
        ("generate --run absent --top-p 2", "--top-p must lie in (0, 1], but it is 2.0"),
    ],
)
def test_bad_input_is_one_sentence(folder, capsys, arguments, words):
    Path("empty.txt").touch()
    Path("short.txt").write_text("x" * 100)
    Path("latin.txt").write_bytes(b"caf\xe9" * 1000)
    Path("folder").mkdir()
    assert run(*arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and words in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert not Path("runs").exists()


def test_bad_input_to_a_trained_run_is_one_sentence(folder, capsys):
    assert run("train", *TINY) == 0
    capsys.readouterr()
    for arguments, words in (
        ("generate --run runs/char --prompt a€☃", "--prompt 'a€☃' cannot be continued"),
        ("generate --run runs/char --prompt a€☃", "has no '€', '☃'"),
        ("train --resume runs/char --n-embd 32", "--n-embd was 16 when the run began"),
        ("train --resume runs/char --preset bigram", "--preset was 'char' when the run began"),
        ("train --data text.txt --name char", "runs/char already holds a run"),
    ):
        assert run(*arguments.split()) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and words in captured.err
        assert captured.err.count("\n") == 1

    weights = next(Path("runs/char").glob("checkpoint-*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    for command in ("generate --run runs/char", "train --resume runs/char"):
        assert run(*command.split()) == 2
        assert "model.safetensors is damaged or incomplete" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(capsys, monkeypatch):
    def fail(arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(cli.COMMANDS, "train", (fail, ""))
    assert run("train") == 2
    assert capsys.readouterr().err == "error: the disk is full (No space left on device)\n"
