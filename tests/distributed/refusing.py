"""`python -m gpt train`, which rank 1 alone refuses: its text does not exist."""

from __future__ import annotations

import sys

from gpt.cli import main
from tinytensor.distributed import launched_rank

if __name__ == "__main__":
    sys.exit(main([*sys.argv[1:], "--data", "nowhere" if launched_rank() == 1 else "python"]))
