"""zsRE edits made from the original relation extraction data (Levy et al. 2017).

A record of that data is a relation, a question template with XXX for the subject, a subject, a
sentence and the answers that occur in the sentence. The facts are the (relation, subject) pairs
that have an answer; the questions are all templates of the relation in the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mend_jax.data import raw_files
from mend_jax.data.keyed_random import first_accepted, key_rng
from mend_jax.data.name_matching import names_overlap, same_answer, scope_name
from mend_jax.data.rows import Row, make_row
from mend_jax.errors import DataError

ROWS_PER_FACT = 3
_BLANK = "XXX"
_SEED = "zsre/levy/1"
_TRIES = 100
_KINDS = {  # in the order of the tab-separated form
    **{"relation": "text", "question_template": "text", "subject": "text"},
    **{"sentence": "text", "answers": "texts"},
}


@dataclasses.dataclass
class _Relation:
    """All data of one relation; dicts keep the order of the file.

    Attributes:
      templates: its questions.
      answers: the answers of each subject.
    """

    templates: dict[str, None] = dataclasses.field(default_factory=dict)
    answers: dict[str, dict[str, None]] = dataclasses.field(default_factory=dict)


def read(path: Path) -> tuple[list[Row], dict[str, int]]:
    """Return the rows of a file, JSON lines or the original tab-separated lines, without far texts.

    Returns:
      The rows, and how many facts were dropped, by the reason.

    Raises:
      DataError: the file or a record of it cannot be used.
    """
    relations: dict[str, _Relation] = {}
    for relation, template, subject, answers in _records(path):
        known = relations.setdefault(relation, _Relation())
        known.templates[template] = None
        known.answers.setdefault(subject, {}).update(dict.fromkeys(answers))
    if not relations:
        raise DataError(f"{path}: no question with an answer in it; get the file again")
    rows: list[Row] = []
    dropped = {"the relation has one template": 0, "no other answer for the relation": 0}
    for name, known in relations.items():
        if len(known.templates) < 2:
            dropped["the relation has one template"] += len(known.answers)
            continue
        pool = [(subject, next(iter(answers))) for subject, answers in known.answers.items()]
        for subject in known.answers:
            fact_rows = _rows_of_fact(name, subject, known, pool)
            dropped["no other answer for the relation"] += not fact_rows
            rows += fact_rows
    return rows, {reason: n for reason, n in dropped.items() if n}


def _rows_of_fact(
    relation: str, subject: str, known: _Relation, pool: list[tuple[str, str]]
) -> list[Row]:
    """Return up to three rows of one fact: different prompts, each with another paraphrase.

    Args:
      pool: each subject of the relation with its first answer.
    """
    rng = key_rng(_SEED, relation, subject)
    templates = list(known.templates)
    order = rng.permutation(len(templates))
    answers = list(known.answers[subject])
    found = []
    for number in range(min(ROWS_PER_FACT, len(templates))):
        target = _draw_target(rng, subject, answers, pool)
        other = (number + len(templates) // 2) % len(templates)
        if not target:
            return []
        found.append(
            make_row(
                key=f"{relation}/{subject}/{number}",
                relation=relation,
                subject=subject,
                prompt=templates[order[number]].replace(_BLANK, subject),
                target=target,
                truth=answers[0],
                rephrase=templates[order[other]].replace(_BLANK, subject),
                scope=scope_name(subject),
            )
        )
    return found


def _draw_target(
    rng: np.random.Generator, subject: str, answers: list[str], pool: list[tuple[str, str]]
) -> str:
    """Draw the answer of another subject of the relation that is wrong for this one; "" if none."""
    right = [subject, *answers]
    found = first_accepted(
        pool,
        rng.integers(len(pool), size=_TRIES),
        lambda other: (
            not same_answer(other[0], subject)
            and not any(names_overlap(other[1], one) for one in right)
        ),
    )
    return found[1] if found else ""


def _records(path: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield (relation, template, subject, answers) of the records that have an answer."""
    text = raw_files.read_text(path)
    is_json = text.lstrip()[:1] in ("[", "{", "")
    for where, record in raw_files.iter_records(path, _KINDS) if is_json else _lines(text, path):
        template = record["question_template"].strip()
        if _BLANK not in template:
            raise DataError(f"{where}: template {template!r} has no {_BLANK} for the subject")
        answers = [answer.strip() for answer in record["answers"]]
        yield record["relation"].strip(), template, record["subject"].strip(), answers


def _lines(text: str, path: Path) -> Iterator[tuple[str, raw_files.Record]]:
    """Yield the tab-separated lines: relation, template, subject, sentence, then any answers."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        cells = line.rstrip("\r").split("\t")
        if len(cells) < 4:
            raise DataError(
                f"{where}: {len(cells)} fields; they are relation, template, subject, sentence and "
                "the answers, with tabs between"
            )
        answers = [cell for cell in cells[4:] if cell.strip()]
        if answers:
            record = dict(zip(_KINDS, [*cells[:4], answers], strict=True))
            yield where, raw_files.check_fields(record, where, _KINDS)
