"""`python -m gpt`: see `gpt/cli.py`."""

from __future__ import annotations

import sys

from gpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
