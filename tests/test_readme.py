"""Runs what the README shows: its Python in order, its commands as far as a test can take them.

A Python block prints what its `# prints …` comments say, or what the `text` block right after it
shows (`...` stands for anything, and line breaks are spaces); a block with neither prints nothing.
The two main commands run in full elsewhere: the second is the one that `.ci/run` calls, the first
takes minutes. Here they must be the commands they claim to be, with flags that exist.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

from tinytensor.tensor import OPERATIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the line of the README where the text starts."""

    language: str
    text: str
    line: int
    follows_directly: bool  # nothing but white space between it and the block before


def blocks() -> list[Block]:
    found = []
    end_of_last = None
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        between = README[end_of_last : match.start()] if end_of_last is not None else "start"
        line = README.count("\n", 0, match.start(2)) + 1
        found.append(Block(match[1], match[2], line, not between.strip()))
        end_of_last = match.end()
    return found


BLOCKS = blocks()
BASH = [block for block in BLOCKS if block.language == "bash"]


def promised_output(number: int) -> str:
    comments = re.findall(r"# prints (.*)$", BLOCKS[number].text, re.MULTILINE)
    if comments:
        return "\n".join(comments) + "\n"
    if number + 1 < len(BLOCKS):
        after = BLOCKS[number + 1]
        if after.language == "text" and after.follows_directly:
            return after.text
    return ""


@mock.patch.dict(OPERATIONS)  # what a reader defines is not left for the tests of the engine's own
def test_python_blocks_print_what_they_promise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    ran = 0
    for number, block in enumerate(BLOCKS):
        if block.language != "python":
            continue
        printed = io.StringIO()
        # Blank lines in front give errors and tracebacks the README's own line numbers.
        code = compile("\n" * (block.line - 1) + block.text, "README.md", "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        wanted, given = promised_output(number), printed.getvalue()
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(wanted, given, flags)
        assert same, f"README.md:{block.line} promises\n{wanted}\nbut prints\n{given}"
        ran += 1
    assert ran >= 5


def test_every_block_has_a_language_that_is_checked():
    assert {block.language for block in BLOCKS} <= {"python", "bash", "text"}


# ---- the commands ----


def steps(block: Block) -> list[list[str]]:
    """The simple commands of a bash block, as words."""
    joined = block.text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if not line.lstrip().startswith("#")]
    return [
        shlex.split(part, comments=True)
        for line in lines
        for part in line.split("&&")
        if part.strip()
    ]


def test_first_command_sets_up_and_trains():
    venv, install, train = steps(BASH[0])
    assert venv[1:] == ["-m", "venv", ".venv"]
    assert install[1:] == ["-m", "pip", "install", "-e", "."]
    assert train[1:] == ["-m", "gpt", "train"]
    assert install[0] == train[0] == ".venv/bin/python"


def test_second_command_sets_up_and_tests():
    venv, install, tests = steps(BASH[1])
    assert venv[1:] == ["-m", "venv", ".venv"]
    assert install[1:] == ["-m", "pip", "install", "-e", ".[test]"]
    assert tests[1:3] == ["-m", "pytest"]
    assert install[0] == tests[0] == ".venv/bin/python"


@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("awk")), reason="no bash or no awk")
def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    function = re.search(r"^readme_command\(\) \{.*?^\}$", script, re.MULTILINE | re.DOTALL)
    assert function
    assert 'bash -euo pipefail -c "$(readme_command 2)"' in script
    for number in (1, 2):
        program = f"root={shlex.quote(str(ROOT))}\n{function[0]}\nreadme_command {number}"
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == BASH[number - 1].text


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize("block", BASH, ids=lambda block: f"line {block.line}")
def test_bash_block_parses(block):
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@cache
def help_text(*command: str) -> str:
    """What `python -m gpt COMMAND --help` prints, wide enough to break no flag."""
    environment = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command, "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_documented_flags_exist():
    checked = 0
    for block in BASH:
        for words in steps(block):
            if words[1:3] != ["-m", "gpt"]:
                continue
            known = re.findall(r"--[\w-]+", help_text("gpt", words[3]))
            for flag in (word.split("=")[0] for word in words[4:] if word.startswith("--")):
                assert flag in known, f"README.md:{block.line}: gpt {words[3]} has no {flag}"
                checked += 1
    assert checked >= 3


# ---- links ----


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+?)\)", README))))
def test_link_leads_somewhere(target):
    if "://" not in target:
        assert (ROOT / target).exists(), f"README.md links to {target}, which is not there"
