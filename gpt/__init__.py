"""gpt: language models on tinytensor, from a character vocabulary to a command line.

`bigram.py` and `model.py` say what is trained, `data.py` and `tokenizer.py` what on, `train.py`
how, `runs.py` what is left behind, `generate.py` what comes out, `config.py` and `presets.py` which
numbers it all depends on, and `cli.py` turns `python -m gpt …` into calls. Only public names of
tinytensor are used here.
"""

from __future__ import annotations


class UserError(Exception):
    """Something that the person at the keyboard can put right; its text is one clear sentence.

    The command line prints the sentence without a traceback and exits with status 2.
    """
