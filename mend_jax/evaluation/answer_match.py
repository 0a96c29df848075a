"""What counts as an answer: the rule by which a generated text gives a target.

1. The text begins with the target, in its own spelling.
2. The target is all of the answer. It does not go on as a word ("Nigeria" for Niger), a number
   ("5,000", "5 million" or "19.5" for 5 and 19) or a name ("New York" for New, "Bank of England"
   for Bank), and no second name is added by "and" or "or".
3. The text does not take it back: "Lyon is not", "Lyon isn't", "Lyon is wrong", "Lyon. No, ...".
4. The text does not loop: no one to four words come three times in a row.

The rule reads letters alone: "Lyon, not Paris" gives Lyon, and so does "Lyon is far from Paris".
Ordinary words may follow without punctuation ("5 people", "Lyon in France"). In scripts without
blanks between words nothing shows where a word ends: it may end anywhere.
"""

from __future__ import annotations

import re

from mend_jax.core.word_boundary import in_one_word

_LOOP_WORDS, _LOOP_TIMES = 4, 3
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_NAME_SIGNS = tuple("-'’/&@_")  # with which a word goes on
_NUMBER_GOES_ON = re.compile(
    r"[.,:/]\d|\s?%|\s\d|\s(?:hundred|thousand|[mb]illion|trillion|dozen|percent)\b", re.IGNORECASE
)
_NAME_GOES_ON = re.compile(
    r"[ ](?:(?:of(?:[ ]the)?|de|du|des|del|della|der|von|van|and|or|&)[ ])*"
    r"(?P<word>[^\W\d_]\w*|\d+)"
)
_STARTS = frozenset(
    "the it he she they we i you this that these those there in on at its his her their but so as "
    "if when what where who which how is was".split()
)
"""Words that a model writes with a capital where it leaves out the full stop."""
_DENIED = re.compile(
    r"[ ]\w+n['’]t\b"
    r"|[ ]\w+[ ](?:not|never|no[ ]longer|wrong|false|incorrect|untrue)\b"
    r"|\s*[.,;:?!]+\s*(?:no|wrong|false|incorrect)\s*(?:[.,;:!]|$)",
    re.IGNORECASE,
)


def begins_with_answer(text: str, answer: str) -> bool:
    """Return whether a generated text begins with this answer, and the word ends there.

    Point 1 and the first part of 2 of the rule, in any sense: also in a denial or a loop. By this a
    text leaks an answer that it should not give.
    """
    rest = _after(text, answer)
    return rest is not None and not _word_goes_on(answer.strip(), rest)


def answer_matches(text: str, answer: str) -> bool:
    """Return whether a generated text gives exactly this answer; the module states the rule."""
    return not answer_fault(text, answer)


def answer_fault(text: str, answer: str) -> str:
    """Return why a text does not give the answer, as the end of a sentence; "" if it does."""
    rest = _after(text, answer)
    if rest is None:
        return f"not {answer.strip()!r}"
    if _goes_on(answer.strip(), rest):
        return "which goes on after the target"
    if _DENIED.match(rest):
        return "which denies it"
    return "which repeats itself" if is_looping(text) else ""


def is_looping(text: str) -> bool:
    """Return whether one to four words come three times in a row, in any case and punctuation."""
    words = [word.casefold() for word in _WORD.findall(text)]
    for size in range(1, _LOOP_WORDS + 1):
        same = 0  # words in a row that are those of `size` words before
        for now, before in zip(words[size:], words, strict=False):
            same = same + 1 if now == before else 0
            if same == size * (_LOOP_TIMES - 1):
                return True
    return False


def _after(text: str, answer: str) -> str | None:
    """Return what follows the answer at the start of a text; None if it is not there."""
    text, answer = text.strip(), answer.strip()
    return text[len(answer) :] if text.startswith(answer) else None


def _word_goes_on(answer: str, rest: str) -> bool:
    return in_one_word(answer[-1:], rest[:1]) or rest.startswith(_NAME_SIGNS)


def _goes_on(answer: str, rest: str) -> bool:
    if _word_goes_on(answer, rest):
        return True
    if answer[-1:].isdigit():
        return bool(_NUMBER_GOES_ON.match(rest))
    following = _NAME_GOES_ON.match(rest)
    if following is None:
        return False
    word = following["word"]
    return (word[0].isupper() or word[0].isdigit()) and word.casefold() not in _STARTS
