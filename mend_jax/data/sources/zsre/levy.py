"""zsRE edits of our own from the relation extraction data that zsRE began as (Levy et al. 2017).

A record of that data is a relation, a question template with XXX for the subject, a subject, a
sentence and the answers that stand in the sentence. The facts here are the (relation, subject)
pairs that have an answer; the questions are all templates that the file has for the relation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from mend_jax.data import raw_files
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.name_matching import names_overlap, same_answer, scope_name
from mend_jax.data.rows import Row, make_row
from mend_jax.errors import DataError

ROWS_A_FACT = 3
_BLANK = "XXX"
_SEED = "zsre/levy/1"
_TRIES = 100
_KINDS = {  # in the order of the tab-separated form
    **{"relation": "text", "question_template": "text", "subject": "text"},
    **{"sentence": "text", "answers": "texts"},
}


@dataclasses.dataclass
class _Relation:
    """All that a file says of one relation; dicts keep the order of the file.

    Attributes:
      templates: its questions.
      answers: the answers of each subject.
    """

    templates: dict[str, None] = dataclasses.field(default_factory=dict)
    answers: dict[str, dict[str, None]] = dataclasses.field(default_factory=dict)


def read(path: Path) -> tuple[list[Row], dict[str, int]]:
    """The rows of a file, JSON lines or the original tab-separated lines, without far texts.

    Returns:
      The rows, and how many facts were left out, by the reason.

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
    left = {"the relation has one template": 0, "no other answer for the relation": 0}
    for name, known in relations.items():
        if len(known.templates) < 2:
            left["the relation has one template"] += len(known.answers)
            continue
        pool = list(known.answers.items())
        for subject in known.answers:
            made = _rows_of_fact(name, subject, known, pool)
            left["no other answer for the relation"] += not made
            rows += made
    return rows, {reason: n for reason, n in left.items() if n}


def _rows_of_fact(
    relation: str, subject: str, known: _Relation, pool: list[tuple[str, dict[str, None]]]
) -> list[Row]:
    """Up to three rows of one fact: no two have the same prompt, none its prompt as rephrase."""
    rng = key_rng(_SEED, relation, subject)
    templates = list(known.templates)
    order = rng.permutation(len(templates))
    answers = list(known.answers[subject])
    found = []
    for number in range(min(ROWS_A_FACT, len(templates))):
        target = _target(rng, subject, answers, pool)
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


def _target(rng, subject: str, answers: list[str], pool: list[tuple[str, dict[str, None]]]) -> str:
    """The first answer of another subject of the relation that is not right for this one, or ""."""
    right = [subject, *answers]
    for pick in rng.integers(len(pool), size=_TRIES):
        other, found = pool[pick]
        target = next(iter(found))
        if not same_answer(other, subject) and not any(names_overlap(target, one) for one in right):
            return target
    return ""


def _records(path: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """(relation, template, subject, answers) of the records that have an answer."""
    text = raw_files.read_text(path)
    is_json = text.lstrip()[:1] in ("[", "{", "")
    for where, record in raw_files.iter_records(path, _KINDS) if is_json else _lines(text, path):
        template = record["question_template"].strip()
        if _BLANK not in template:
            raise DataError(f"{where}: template {template!r} has no {_BLANK} for the subject")
        answers = [answer.strip() for answer in record["answers"]]
        yield record["relation"].strip(), template, record["subject"].strip(), answers


def _lines(text: str, path: Path) -> Iterator[tuple[str, raw_files.Record]]:
    """The tab-separated lines: relation, template, subject, sentence, then any answers."""
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
