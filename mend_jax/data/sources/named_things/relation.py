"""A relation of `named_things`: what it is about, and its wordings."""

from __future__ import annotations

from typing import NamedTuple


class Relation(NamedTuple):
    """One kind of fact.

    In a wording `{s}` is the subject, and the answer follows after one space.

    Attributes:
      subjects, answers: their kinds, see `names`.
      held_out: a wording that is used only for paraphrases of validation and test.
      wordings: the others.
    """

    subjects: tuple[str, ...]
    answers: str
    held_out: str
    wordings: tuple[str, ...]
