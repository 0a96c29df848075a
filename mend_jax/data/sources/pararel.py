"""Facts of ParaRel (Elazar et al. 2021) as statements whose end a model may know.

Reads `pararel/facts.jsonl` (relation_id, sub_label, obj_label: LAMA's T-REx facts, CC BY-NC 4.0)
and `pararel/patterns.jsonl` (relation_id, pattern), plain or gzipped.
"""

from __future__ import annotations

import collections
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from mend_jax.data import raw_files
from mend_jax.data.keyed_random import key_hash
from mend_jax.errors import DataError

_OBJECT_LAST = re.compile(r"([^\[\]]*\[X\][^\[\]]*)\[Y\]\s*\.?\s*")
_PATTERN_FIELDS = {"relation_id": "text", "pattern": "text"}
_FACT_FIELDS = {"relation_id": "text", "sub_label": "text", "obj_label": "text"}


class Statement(NamedTuple):
    """A fact: the beginning of a statement, and the answer that ends it."""

    relation: str
    prompt: str
    answer: str


def statements(root: Path | None, seed: int = 0) -> list[Statement]:
    """Return every fact whose subject has one answer, in its relation's first usable pattern.

    A pattern is usable if it ends in the answer. Relations alternate, so that the first few facts
    are of as many relations as possible; within a relation the order depends on `seed` and the
    subject alone.

    Raises:
      DataError: a file is missing or cannot be used, or no pattern ends in the answer.
    """
    fact_file = raw_files.require_file(root, "pararel", "pararel/facts.jsonl")
    pattern_file = raw_files.require_file(root, "pararel", "pararel/patterns.jsonl")
    patterns: dict[str, str] = {}
    for _, p in raw_files.iter_records(pattern_file, _PATTERN_FIELDS):
        if match := _OBJECT_LAST.fullmatch(p["pattern"]):
            patterns.setdefault(p["relation_id"], match[1].rstrip())
    answers: dict[str, dict[str, set[str]]] = collections.defaultdict(dict)
    for _, fact in raw_files.iter_records(fact_file, _FACT_FIELDS):
        of_subject = answers[fact["relation_id"]].setdefault(fact["sub_label"], set())
        of_subject.add(fact["obj_label"])
    by_relation = [
        [
            Statement(relation, patterns[relation].replace("[X]", subject), *objects)
            for subject, objects in sorted(
                answers[relation].items(), key=lambda item: key_hash("pararel", seed, item[0])
            )
            if len(objects) == 1
        ]
        for relation in sorted(set(patterns) & set(answers))
    ]
    rounds = itertools.zip_longest(*by_relation)
    found = [statement for one in rounds for statement in one if statement is not None]
    if not found:
        raise DataError(
            f"{pattern_file}: no pattern in it ends in [Y] and has facts in {fact_file}; get the "
            "files again"
        )
    return found
