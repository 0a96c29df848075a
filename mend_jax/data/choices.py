"""Questions with several options, of which one is right: small sets of general ability.

Files below the root of raw data, one JSON object a line: `query`, `choices` and `gold`, the number
of the right one. ARC (Clark et al. 2018, CC BY-SA 4.0), OpenBookQA (Mihaylov et al. 2018,
Apache-2.0), PIQA (Bisk et al. 2020, AFL 3.0), HellaSwag (Zellers et al. 2019, MIT; WikiHow texts CC
BY-NC-SA).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mend_jax.data import raw_files
from mend_jax.data.keyed_random import key_hash
from mend_jax.errors import DataError

CHOICE_SETS = {
    "arc_easy": "general/arc_easy.jsonl",
    "arc_challenge": "general/arc_challenge.jsonl",
    "openbook_qa": "general/openbook_qa.jsonl",
    "piqa": "general/piqa.jsonl",
    "hellaswag": "general/hellaswag_1k.jsonl",
}
_FIELDS = {"query": "text", "choices": "texts", "gold": "any"}
_QUESTION, _ANSWER = "Question:", "\nAnswer:"


@dataclasses.dataclass(frozen=True)
class ChoiceQuestion:
    """A text and several continuations.

    Attributes:
      query: the text; an option follows it after a space.
      options: at least two.
      gold: which of them is right.
    """

    query: str
    options: tuple[str, ...]
    gold: int


def choice_questions(root: Path | None, name: str, seed: int = 0) -> list[ChoiceQuestion]:
    """Return the questions of one of `CHOICE_SETS`, in an order that the seed chooses.

    Raises:
      DataError: an unknown set, a missing file, or a malformed record.
    """
    if name not in CHOICE_SETS:
        raise DataError(f"no set of questions {name!r}: use one of {', '.join(CHOICE_SETS)}")
    path = raw_files.require_file(root, name, CHOICE_SETS[name])
    found = []
    for where, record in raw_files.iter_records(path, _FIELDS):
        options, gold = tuple(text.strip() for text in record["choices"]), record["gold"]
        if len(options) < 2 or type(gold) is not int or not 0 <= gold < len(options):
            raise DataError(
                f"{where}: gold is {gold!r} and there are {len(options)} choices; give at least "
                "two, and the number of one of them, from 0 on"
            )
        query = record["query"].strip()
        query += _ANSWER if query.startswith(_QUESTION) else ""
        found.append(ChoiceQuestion(query, options, gold))
    return sorted(found, key=lambda q: key_hash("choices", seed, q.query, *q.options))
