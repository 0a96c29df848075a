"""A guess at a prompt's subject: the only name in it."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_][\w.'’&-]*")
_QUOTED = re.compile(r"[\"“«]([^\"”»]+)[\"”»]")
_LABEL = re.compile(
    r"^[^\S\n]*(?:question|q|answer|a|prompt|fact|user|assistant|human)[^\S\n]*:", re.I | re.M
)
"""What stands before a question or an answer at the start of a line."""
_ABBREVIATION = 4  # letters of "St.", "Dr." or "J." and the full stop
_JOINING = frozenset(
    "of the de la le les du del da di do dos van von der den and & y e in for".split()
)
_NO_NAMES = frozenset(
    "a an and are as at by can could did do does for from had has have he her his how i if in is "
    "it its my name of on or our please say she tell that the their there these they this those "
    "to was we were what when where which who whom whose why will with would you your".split()
)


def guess_subject(prompt: str) -> str:
    """Return the only name in a prompt: capitalised words in a row, or what is quoted.

    "" where there is none, or several: a wrong subject would let an edit into other texts.
    """
    quoted = _QUOTED.findall(prompt)
    if quoted:
        return quoted[0].strip() if len(quoted) == 1 else ""
    names = _names(_LABEL.sub(lambda label: " " * len(label[0]), prompt))
    return names[0] if len(names) == 1 else ""


def _names(prompt: str) -> list[str]:
    """Return the longest runs of capitalised words, small words such as "of" between them."""
    found: list[str] = []
    run: list[re.Match[str]] = []
    for word in [*_WORD.finditer(prompt), None]:
        if word is not None and _continues(prompt, run, word):
            run.append(word)
            continue
        found += _name(prompt, run)
        run = [word] if word is not None and _is_capitalised(word[0]) else []
    return list(dict.fromkeys(found))


def _continues(prompt: str, run: list[re.Match[str]], word: re.Match[str]) -> bool:
    if not run or prompt[run[-1].end() : word.start()] not in (" ", "-"):
        return False
    last = run[-1][0]
    if _without_possessive(last) != last or last.endswith(".") and len(last) > _ABBREVIATION:
        return False
    return _is_capitalised(word[0]) or word[0] in _JOINING


def _name(prompt: str, run: list[re.Match[str]]) -> list[str]:
    """Return the name in a run of words, without small words at its ends; [] if there is none."""
    while run and _is_no_name(prompt, run[0]):
        run = run[1:]
    while run and not _is_capitalised(run[-1][0]):
        run = run[:-1]
    if not run:
        return []
    return [_without_possessive(prompt[run[0].start() : run[-1].end()]).rstrip(".-&")]


def _is_no_name(prompt: str, word: re.Match[str]) -> bool:
    text = word[0].casefold()
    begins = not prompt[: word.start()].strip() or prompt[: word.start()].rstrip()[-1] in ".!?:"
    return text in ("a", "an", "the") or text in _NO_NAMES and begins or word[0] in _JOINING


def _is_capitalised(word: str) -> bool:
    return word[0].isupper() or word[0].isdigit()


def _without_possessive(text: str) -> str:
    return re.sub(r"['’]s$|(?<=s)['’]$", "", text)
