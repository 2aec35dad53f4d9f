"""Words, as GPT-2 cuts a text into them before any token is made.

An English contraction; letters, digits or other signs, each with the one space before them; white
space, whose last character is left to the word that follows. Every character is in a word, so the
words joined are the text. Go next to `gpt/bpe.py`, which makes tokens inside words.
"""

from __future__ import annotations

import regex

from gpt import UserError

# The rule as GPT-2 published it; tiktoken takes it as it is.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Which characters are letters is a matter of the year. These ranges became letters or digits after
# Unicode 16, the version that tiktoken goes by: newer editions of `regex` know them already, and a
# text must not get other tokens for that.
NEWER = (
    "558 58B-58C 88F C5C CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD-A7F1 AB6C-AB6D 107BB-107BF "
    "10940-10959 10EC5-10EC7 10ED9-10EEE 11B0A 11DB0-11DE9 11DF1 1246F 12475-1247F 12550-12686 "
    "16EA0-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-191D2 1B123-1B128 1B168 1D6A6 "
    "1DF1F-1DF24 1DF2B-1DFFF 1E6C0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 1E6FE-1E6FF "
    "2B73A-2B73F 2B81E 2CEA2-2CEAD 323B0-3FC3F"
)
SIGNS = "".join(regex.sub("[0-9A-F]+", lambda code: f"\\U{int(code[0], 16):08X}", NEWER).split())

WORD = regex.compile(
    WORDS.replace(r" ?\p{L}", rf" ?[\p{{L}}--[{SIGNS}]]")
    .replace(r" ?\p{N}", rf" ?[\p{{N}}--[{SIGNS}]]")
    .replace(r"[^\s\p{L}\p{N}]", rf"[[^\s\p{{L}}\p{{N}}]||[{SIGNS}]]"),
    regex.V1,  # sets can be subtracted and joined
)


def check_unicode(text: str) -> None:
    """Raises UserError for half of a surrogate pair, which no encoding of Unicode can write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start} of the text is a lone surrogate "
            f"(U+{ord(text[error.start]):04X}), which is no character"
        ) from None
