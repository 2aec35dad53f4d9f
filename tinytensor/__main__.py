"""`python -m tinytensor`: the engine's commands, and `python -m tinytensor doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMANDS = {
    "python -m tinytensor doctor": "what this machine has, what falls back, what mends it",
    "python -m tinytensor.cuda.study": "why the next rung of the matmul ladder is faster",
    "python -m tinytensor.cuda.offline": "compile the CUDA kernels for every architecture",
    "python -m tinytensor.cuda.verify": "is everything right on this GPU?",
    "python -m tinytensor.cuda.bench": "how fast the kernels are on this GPU",
    "python -m gpt": "GPTs on the engine",
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["doctor"]:
        from . import doctor

        return doctor.main()
    wrong = given not in ([], ["-h"], ["--help"])
    if wrong:
        print(f"python -m tinytensor: there is no command {' '.join(given)!r}\n", file=sys.stderr)
    width = max(map(len, COMMANDS))
    for command, does in COMMANDS.items():
        print(f"{command.ljust(width)}  {does}", file=sys.stderr if wrong else sys.stdout)
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
