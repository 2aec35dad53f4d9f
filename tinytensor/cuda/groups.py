"""Groups of cases, each group in a process of its own: what `verify` and `bench` have in common.

A kernel that writes where it must not ends its process's use of the GPU ("sticky" errors), and one
that never ends has to be stopped from outside. So the parent starts a child for each group, with a
time limit for the group and for each case. A child writes a line before and after each case; where
it died or was stopped, the parent starts another behind that case. The tables are written anew
after each group, so that a run that is ended from outside leaves what it found.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

GOOD, WRONG, FAILED, ABSENT = "good", "wrong", "failed", "not run"
MOST_RESTARTS = 5
LOST = 70  # exit code of a child that cannot use the GPU any more, and has said so


class Row(NamedTuple):
    """What came of one case: `state` is one of the four above, `numbers` what was measured."""

    group: str
    case: str
    state: str
    text: str
    numbers: dict[str, Any] = {}  # noqa: RUF012 (never written)


class Journal:
    """Where a child writes what it does, a line at a time."""

    def __init__(self, path: Path, group: str, skip: int = 0) -> None:
        self.path, self.group, self.skip, self.number = path, group, skip, 0

    def case(self, name: str, run: Callable[[], tuple[str, str, dict[str, Any]]]) -> Row | None:
        """Run one case, which answers (state, text, numbers); an exception is a failure.

        Cases that an earlier child began are passed over: None.
        """
        self.number += 1
        if self.number <= self.skip:
            return None
        self._write({"begin": name})
        start = time.perf_counter()
        try:
            state, text, numbers = run()
        except Exception as error:
            state, text, numbers = FAILED, sentence(error), {}
        seconds = round(time.perf_counter() - start, 3)
        row = Row(self.group, name, state, text, {**numbers, "seconds": seconds})
        self._write({"row": row._asdict()})
        return row

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def sentence(error: BaseException) -> str:
    """An exception on one line of moderate length."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 600 else f"{text[:400]} … {text[-200:]}"


def read_journal(path: Path) -> tuple[list[Row], int, str | None]:
    """The rows of a journal, how many cases were begun, and the one that was not finished."""
    rows, begun, open_case = [], 0, None
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):  # a child may die in the middle of a line
                entry = json.loads(line)
                if "begin" in entry:
                    begun, open_case = begun + 1, entry["begin"]
                else:
                    rows.append(Row(**entry["row"]))
                    open_case = None
    return rows, begun, open_case


def run_group(
    command: Sequence[str],
    group: str,
    journal: Path,
    seconds: float,
    of_a_case: float = math.inf,
) -> list[Row]:
    """Run `command --group … --journal … --skip …` until the group is done or its time is over.

    A case that is not done after `of_a_case` seconds is ended, and the group goes on behind it.
    """
    ends = time.monotonic() + seconds
    journal.unlink(missing_ok=True)
    lost: list[Row] = []
    skip = 0
    for _ in range(MOST_RESTARTS + 1):
        left = ends - time.monotonic()
        words = [*command, "--group", group, "--journal", str(journal), "--skip", str(skip)]
        log = journal.with_suffix(".log")
        code = run_for(words, left, log, journal, of_a_case)
        output = log.read_text(encoding="utf-8", errors="replace").strip()
        rows, begun, unfinished = read_journal(journal)
        if code == 0:
            return rows + lost
        tail = " ".join(output.split())[-300:]
        if code is None and time.monotonic() > ends - 1:
            text = f"not finished after {seconds:.0f} s and ended, with the cases after it; {tail}"
            return [*rows, *lost, Row(group, unfinished or "(start)", FAILED, text)]
        if code is None:
            text = f"not finished after {of_a_case:.0f} s and ended; {tail}"
            lost.append(Row(group, unfinished or "(process)", FAILED, text))
        elif code != LOST or unfinished is not None:
            text = f"the process ended with code {code}: {tail}"
            lost.append(Row(group, unfinished or "(process)", FAILED, text))
        if begun <= skip:  # it would die at the same place again
            return rows + lost
        skip = begun
    return [*rows, *lost]


def run_for(
    command: Sequence[str],
    seconds: float,
    log: Path,
    journal: Path | None = None,
    of_a_case: float = math.inf,
) -> int | None:
    """The exit code of a command, its output in `log`; None if it had to be ended: after `seconds`,
    or `of_a_case` after it began, or wrote into `journal`, last.
    """
    ends = time.monotonic() + max(1.0, seconds)
    last = time.time()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while (code := process.poll()) is None:
                if journal is not None and journal.is_file():
                    last = max(last, journal.stat().st_mtime)
                if time.monotonic() > ends or time.time() - last > of_a_case:
                    return None
                time.sleep(0.05)
            return code
        finally:  # with whatever it started
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_groups(
    jobs: Iterable[tuple[str, Callable[[float], list[Row]]]],
    seconds: float,
    workers: int,
    say: Callable[[str], None] = print,
) -> Iterator[list[Row]]:
    """The rows of each job, a function of the seconds that are left, as soon as it is done;
    `workers` run at a time.
    """
    ends = time.monotonic() + seconds

    def work(name: str, job: Callable[[float], list[Row]]) -> list[Row]:
        left = ends - time.monotonic()
        if left < 5:
            return [Row(name, "(all)", FAILED, f"not run: the {seconds:.0f} s were over")]
        start = time.monotonic()
        try:
            rows = job(left)
        except Exception as error:  # of the parent's own: a full disk, say
            rows = [Row(name, "(all)", FAILED, sentence(error))]
        bad = sum(row.state in (WRONG, FAILED) for row in rows)
        took = time.monotonic() - start
        say(f"{name}: {len(rows)} cases, {bad} wrong or failed, {took:.0f} s")
        return rows

    with ThreadPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(work, name, job) for name, job in jobs]):
            yield future.result()


def this_program(module: str) -> list[str]:
    """The command that runs a module of this package again."""
    return [sys.executable, "-m", module]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], markdown: bool = False) -> str:
    """Columns of text, as wide as they have to be."""
    cells = [[str(cell).replace("|", "/") for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    rule = ["-" * width for width in widths]
    if markdown:
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    return "\n".join("  ".join(line).rstrip() for line in [lines[0], rule, *lines[1:]])


def write_tables(path: Path, markdown: str, content: Any) -> None:
    """`path`.md and `path`.json, each written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".md", markdown), (".json", json.dumps(content, indent=1))):
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path.with_suffix(suffix))
