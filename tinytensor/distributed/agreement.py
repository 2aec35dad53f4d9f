"""Do all ranks train the same thing? Hashes of it are compared, and who differs is named.

A rank with other code, another configuration or other weights does not fail: it spoils the run, and
nothing shows it. `check_agreement` is for the start of a run; `DistributedDataParallel` repeats the
check of the parameters every so many steps where it is told to. `last_words` is for a program that
refuses its work, which all ranks do alike: then one of them may say so.
"""

from __future__ import annotations

import hashlib
import importlib
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..tensor import Tensor
from . import mpi
from .group import current, is_initialized

LONGEST_SENTENCE = 4096  # bytes


def check_agreement(
    parameters: Iterable[Tensor] | None = None,
    configuration: Mapping[str, Any] | None = None,
    code: Iterable[str] = ("tinytensor",),
    when: str = "at the start",
) -> None:
    """Raises RuntimeError on every rank if one of them differs, with the same sentence.

    Compared are the numbers of `parameters`, each entry of `configuration` (by its repr), the
    source files of the packages `code`, the Python program that was started, and the versions of
    Python and NumPy.
    """
    mine = {"the code": code_hash(code), "the versions of Python and NumPy": versions()}
    for name, value in (configuration or {}).items():
        mine[f"the configuration's {name}"] = repr(value)
    if parameters is not None:
        mine["the parameters"] = parameters_hash(parameters)
    everyone = current().gather_objects(mine, "comparison of the ranks")
    differences = disagreements(everyone)
    if differences:
        raise RuntimeError(f"distributed: the ranks do not agree {when}: {'; '.join(differences)}")


def disagreements(everyone: list[dict[str, str]]) -> list[str]:
    """A clause for each thing that some ranks have otherwise than most (rank 0 decides a tie).

    >>> disagreements([{"lr": "0.1"}, {"lr": "0.2"}, {"lr": "0.1"}])
    ['rank 1 differs in lr (0.2 there, 0.1 on rank 0)']
    """
    found = []
    for name in dict.fromkeys(name for one in everyone for name in one):
        values = [one.get(name, "absent") for one in everyone]
        common = max(values, key=lambda value: (values.count(value), value == values[0]))
        others = [rank for rank, value in enumerate(values) if value != common]
        if others:
            ranks = ", ".join(map(str, others))
            verb = f"rank {ranks} differs" if len(others) == 1 else f"ranks {ranks} differ"
            theirs, witness = values[others[0]], values.index(common)
            found.append(
                f"{verb} in {name} ({shortened(theirs)} there, {shortened(common)} on rank "
                f"{witness})"
            )
    return found


def shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}…"


def parameters_hash(parameters: Iterable[Tensor]) -> str:
    """A hash of all the numbers, with their shapes and dtypes."""
    total = hashlib.blake2b(digest_size=8)
    for parameter in parameters:
        array = np.ascontiguousarray(to_numpy(parameter.array))
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def versions() -> str:
    return f"{platform.python_version()} and {np.__version__}"


def code_hash(packages: Iterable[str]) -> str:
    """A hash of the packages' Python files and of the program that this process runs."""
    total = hashlib.blake2b(digest_size=8)
    for package in sorted(packages):
        source = getattr(sys.modules.get(package), "__file__", None)
        if source is not None:
            folder = Path(source).parent
            for path in sorted(folder.rglob("*.py")):
                total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    if program is not None and Path(program).is_file():
        total.update(Path(program).read_bytes())
    return total.hexdigest()


_unanswered: list[Any] = []  # MPI may still write to its arrays while the process ends


def last_words(sentence: str, patience: float = 5.0) -> list[str] | None:
    """What each rank says before it ends, in their order; None if one of them says nothing.

    The ranks need not be joined yet. They are waited for `patience` seconds: who gets None ends
    alone, and if it is not joined either, it must leave by `os._exit`, because the others will not
    meet it in MPI_Finalize.
    """
    size = mpi.launched_size()
    if size == 1:
        return [sentence]
    try:
        MPI = importlib.import_module("mpi4py.MPI")
    except ImportError:
        return [sentence] * size  # all of them lack it
    world = MPI.COMM_WORLD
    if world.Get_size() != size:
        return [sentence] * size  # it is not the launcher's MPI, on any rank
    if is_initialized() and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return None  # another thread may be in MPI now
    own, everyone = (
        np.zeros(LONGEST_SENTENCE, np.uint8),
        np.zeros((size, LONGEST_SENTENCE), np.uint8),
    )
    said = sentence.encode()[:LONGEST_SENTENCE]
    own[: len(said)] = np.frombuffer(said, np.uint8)
    request = world.Iallgather([own, MPI.BYTE], [everyone, MPI.BYTE])
    _unanswered.append((request, own, everyone))
    ends = time.monotonic() + patience
    while not request.Test():
        if time.monotonic() > ends:
            return None
        time.sleep(0.01)
    _unanswered.clear()
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in everyone]
