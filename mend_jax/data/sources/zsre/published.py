"""zsRE's published forms, each read into rows: MEND's, ours after MEND's, and KnowEdit's."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files
from mend_jax.data.name_matching import same_answer, scope_name
from mend_jax.data.rows import Row, make_row
from mend_jax.errors import DataError

Left = collections.Counter[str]  # how many records were left out, by the reason

# `alt`, `rephrase` and `loc` of some published records are empty: such records are left out.
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


def read(form: str, path: Path) -> tuple[list[Row], Left]:
    """The rows of a file and how many records were left out.

    Args:
      form: `mend`, `derived` or `knowedit`.

    Raises:
      DataError: the file or a record of it cannot be used.
    """
    left: Left = collections.Counter()
    stem = path.name.split(".")[0]
    found = []
    for number, fields in enumerate(_FORMS[form](path), start=1):
        answers = fields.pop("answers")
        if reason := _unusable(fields, answers):
            left[reason] += 1
            continue
        found.append(
            make_row(
                **{k: v.strip() if isinstance(v, str) else v for k, v in fields.items()},
                key=f"{stem}-{number}",
                truth=answers[0].strip(),
                scope=scope_name(fields["subject"]),
            )
        )
    return found, left


def _unusable(fields: dict[str, Any], answers: list[str]) -> str:
    """Why a record cannot be an edit, or ""."""
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
            asked = raw_files.check_fields(record["portability"], where, _PORTABILITY)
            hops = {"hop_prompts": [asked["New Question"]], "hop_answers": [asked["New Answer"]]}
        yield _of_mend(record) | hops


def _derived(path: Path) -> Iterator[dict[str, Any]]:
    for _, record in raw_files.iter_records(path, _DERIVED):
        yield _of_mend(record) | {"relation": record["relation"]}


def _of_mend(record: raw_files.Record) -> dict[str, Any]:
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
            "more_near_prompts": [prompt for prompt, _ in near],
            "more_near_answers": [answer for _, answer in near],
            "hop_prompts": [prompt for prompt, _ in hops],
            "hop_answers": [answer for _, answer in hops],
        }


def _questions(kinds: raw_files.Record, where: str) -> list[tuple[str, str]]:
    """Prompts with their first answer, of all kinds of questions of a KnowEdit record."""
    found = []
    for kind, asked in kinds.items():
        for item in asked if isinstance(asked, list) else [asked]:
            raw_files.check_fields({kind: item}, where, {kind: "object"})
            raw_files.check_fields(item, where, {"prompt": "text", "ground_truth": "any"})
            answer = _answers(item["ground_truth"], "ground_truth", where)[0]
            found.append((item["prompt"].strip(), answer.strip()))
    return found


def _answers(value: Any, name: str, where: str) -> list[str]:
    """The answers in a text or a list of them, lists in it included."""
    if not isinstance(value, list):
        return [raw_files.check_text(value, name, where)]
    if not value:
        raise DataError(f"{where}: field {name!r} is an empty list; it needs at least one text")
    return [answer for item in value for answer in _answers(item, name, where)]


_FORMS = {"mend": _mend, "derived": _derived, "knowedit": _knowedit}
