"""Do all ranks train the same thing? Hashes of it are compared, and who differs is named.

A rank with other code, another configuration or other weights does not fail: it spoils the run, and
nothing shows it. `check_agreement` is for the start of a run; `DistributedDataParallel` repeats the
check of the parameters every so many steps where it is told to.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..tensor import Tensor
from .group import current


def check_agreement(
    parameters: Iterable[Tensor] | None = None,
    configuration: Mapping[str, Any] | None = None,
    code: Iterable[str] = ("tinytensor",),
    when: str = "at the start",
) -> None:
    """Raises RuntimeError on every rank if one of them differs, with the same sentence.

    Compared are the numbers of `parameters`, each entry of `configuration` (by its repr) and the
    source files of the packages `code`, besides the Python program that was started.
    """
    mine = {"the code": code_hash(code)}
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
