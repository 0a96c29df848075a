"""Where a word ends, also in scripts that write no blanks between words."""

from __future__ import annotations

import re

_NO_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003134f]"
)
"""Thai, Lao, Burmese, Khmer, Chinese and Japanese letters."""


def in_one_word(before: str, after: str) -> bool:
    """Return whether a word goes on from one character to the next.

    Where a letter is of a script without blanks nothing shows where a word ends: it may end there.
    """
    return (
        before.isalnum()
        and after.isalnum()
        and not (_NO_BLANKS.match(before) or _NO_BLANKS.match(after))
    )


def find_words(text: str, words: str) -> list[re.Match[str]]:
    """Return where some words stand in a text as whole words, in any case."""
    words = words.strip()
    matches = re.finditer(re.escape(words), text, re.IGNORECASE) if words else ()
    return [
        match
        for match in matches
        if not in_one_word(text[match.start() - 1 : match.start()], match[0][:1])
        and not in_one_word(match[0][-1:], text[match.end() : match.end() + 1])
    ]
