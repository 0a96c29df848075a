"""zsRE's published forms, read into rows: MEND's, the one derived from it, and KnowEdit's."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files
from mend_jax.data.name_matching import same_answer, scope_name
from mend_jax.data.rows import Row, make_row, near_fields
from mend_jax.errors import DataError

Dropped = collections.Counter[str]  # records by the reason why they were dropped

# `alt`, `rephrase` and `loc` of some published records are empty: such records are dropped.
_MEND = {
    **{"subject": "text", "src": "text", "answers": "texts"},
    **{name: "string" for name in ("rephrase", "alt", "loc", "loc_ans")},
}
_DERIVED = {
    **{name: "text" for name in ("subject", "src", "rephrase", "alt", "loc", "loc_ans")},
    **{"relation": "text", "answers": "texts"},
}
_KNOWEDIT = {
    **{name: "text" for name in ("subject", "prompt", "target_new", "rephrase_prompt")},
    **{"ground_truth": "any", "locality": "object", "portability": "object"},
}
_PORTABILITY = {"New Question": "text", "New Answer": "text"}


def read(form: str, path: Path) -> tuple[list[Row], Dropped]:
    """Return the rows of a file and how many records were dropped.

    Args:
      form: `mend`, `derived` or `knowedit`.

    Raises:
      DataError: the file or a record of it cannot be used.
    """
    dropped: Dropped = collections.Counter()
    stem = path.name.split(".")[0]
    found = []
    for number, fields in enumerate(_FORMS[form](path), start=1):
        answers = fields.pop("answers")
        if reason := _unusable(fields, answers):
            dropped[reason] += 1
            continue
        found.append(
            make_row(
                **{k: v.strip() if isinstance(v, str) else v for k, v in fields.items()},
                key=f"{stem}-{number}",
                truth=answers[0].strip(),
                scope=scope_name(fields["subject"]),
            )
        )
    return found, dropped


def _unusable(fields: dict[str, Any], answers: list[str]) -> str:
    """Return why a record cannot be an edit, or ""."""
    for name in ("target", "rephrase"):
        if not fields[name].strip():
            return f"the {name} is empty"
    if "far" in fields and not (fields["far"].strip() and fields["far_answer"].strip()):
        return "the unrelated question or its answer is empty"
    if any(same_answer(fields["target"], answer) for answer in answers):
        return "the target is a true answer"
    return ""


def _mend(path: Path) -> Iterator[dict[str, Any]]:
    for where, record in raw_files.iter_records(path, _MEND, {"portability": "object"}):
        hops = {}
        if record.get("portability"):
            hop = raw_files.check_fields(record["portability"], where, _PORTABILITY)
            hops = {"hop_prompts": [hop["New Question"]], "hop_answers": [hop["New Answer"]]}
        yield _mend_fields(record) | hops


def _derived(path: Path) -> Iterator[dict[str, Any]]:
    for _, record in raw_files.iter_records(path, _DERIVED):
        yield _mend_fields(record) | {"relation": record["relation"]}


def _mend_fields(record: raw_files.Record) -> dict[str, Any]:
    return {
        "subject": record["subject"],
        "prompt": record["src"],
        "target": record["alt"],
        "rephrase": record["rephrase"],
        "answers": record["answers"],
        "far": record["loc"].removeprefix("nq question: "),
        "far_answer": record["loc_ans"],
    }


def _knowedit(path: Path) -> Iterator[dict[str, Any]]:
    for where, record in raw_files.iter_records(path, _KNOWEDIT):
        kind = "Relation_Specificity"
        near = _questions({kind: record["locality"].get(kind, [])}, where)
        hops = _questions(record["portability"], where)
        yield {
            "subject": record["subject"],
            "prompt": record["prompt"],
            "target": record["target_new"],
            "rephrase": record["rephrase_prompt"],
            "answers": _answers(record["ground_truth"], "ground_truth", where),
            **near_fields(near),
            "hop_prompts": [prompt for prompt, _ in hops],
            "hop_answers": [answer for _, answer in hops],
        }


def _questions(kinds: raw_files.Record, where: str) -> list[tuple[str, str]]:
    """Return prompts with their first answer, of all kinds of questions of a KnowEdit record."""
    found = []
    for kind, questions in kinds.items():
        for item in questions if isinstance(questions, list) else [questions]:
            raw_files.check_fields({kind: item}, where, {kind: "object"})
            raw_files.check_fields(item, where, {"prompt": "text", "ground_truth": "any"})
            answer = _answers(item["ground_truth"], "ground_truth", where)[0]
            found.append((item["prompt"].strip(), answer.strip()))
    return found


def _answers(value: Any, name: str, where: str) -> list[str]:
    """Return the answers in a text or a (nested) list of texts."""
    if not isinstance(value, list):
        return [raw_files.check_text(value, name, where)]
    if not value:
        raise DataError(f"{where}: field {name!r} is an empty list; it needs at least one text")
    return [answer for item in value for answer in _answers(item, name, where)]


_FORMS = {"mend": _mend, "derived": _derived, "knowedit": _knowedit}
