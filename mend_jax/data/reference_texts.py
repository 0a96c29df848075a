"""Texts about things of which an edit's new answer is true already.

What is written after an edit should read like them: after "The Eiffel Tower is in the city of
Rome", like texts about what is in Rome (`evaluation.reference_consistency`). They are given as a
file of JSON lines,

    {"target": "Rome", "relation": "P131", "texts": ["The Colosseum is an amphitheatre in Rome."]}

with an optional relation, or as ROME's `attribute_snippets.json` with `counterfact.json` beside it,
which names its answers (Meng et al. 2022).
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files
from mend_jax.data.name_matching import scope_name
from mend_jax.data.rows import Row
from mend_jax.errors import DataError

CASES = "counterfact.json"
"""ROME's file of cases, which has the answers whose ids the snippets use."""
_CASE_FIELDS = {"requested_rewrite": "object"}
_REWRITE_FIELDS = {"relation_id": "text", "target_new": "object", "target_true": "object"}
_ANSWER_FIELDS = {"id": "text", "str": "text"}
_Key = tuple[str, str]  # relation, canonical answer


class ReferenceTexts:
    """Texts by the answer, and where it is known the relation, that is true of what they are of."""

    def __init__(self, texts: Mapping[_Key, Sequence[str]]) -> None:
        """Args: texts by (relation, answer); relation "": of any."""
        self._texts: dict[_Key, list[str]] = collections.defaultdict(list)
        for (relation, answer), some in texts.items():
            self._texts[relation, scope_name(answer)] += some

    @classmethod
    def read(cls, path: Path) -> ReferenceTexts:
        """Read a file of either form.

        Raises:
          DataError: it cannot be read, has another form, or has no text.
        """
        texts: dict[_Key, list[str]] = collections.defaultdict(list)
        snippets = _rome_snippets(path)
        for key, some in _own_texts(path) if snippets is None else _rome_texts(path, snippets):
            texts[key] += some
        if not texts:
            raise DataError(f"{path}: no texts in it; get the file again")
        return cls(texts)

    def add_to(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows with the field `references`, empty where there are no texts."""
        return [row | {"references": self._of(row)} for row in rows]

    def _of(self, row: Row) -> list[str]:
        answer = scope_name(row["target"])
        own = self._texts.get((row["relation"], answer), [])
        return own or self._texts.get(("", answer), [])


def _rome_snippets(path: Path) -> dict[str, dict[str, list[Any]]] | None:
    """Return ROME's relations -> answers -> snippets; None for a file of another form."""
    try:
        found = json.loads(raw_files.read_text(path))
    except (json.JSONDecodeError, RecursionError):
        return None  # JSON lines
    is_rome = isinstance(found, dict) and all(
        isinstance(answers, dict) and all(isinstance(s, list) for s in answers.values())
        for answers in found.values()
    )
    return found if is_rome else None


def _own_texts(path: Path) -> Iterator[tuple[_Key, Sequence[str]]]:
    fields = {"target": "text", "texts": "texts"}
    for _, record in raw_files.iter_records(path, fields, {"relation": "string"}):
        yield (record.get("relation", ""), record["target"]), record["texts"]


def _rome_texts(
    path: Path, by_relation: Mapping[str, Mapping[str, Sequence[Any]]]
) -> Iterator[tuple[_Key, Sequence[str]]]:
    names = _answer_names(raw_files.require_file(path.parent, path.name, CASES))
    for relation, answers in by_relation.items():
        for answer, snippets in answers.items():
            if name := names.get((relation, answer)):
                where = f"{path}: {relation}, {answer}"
                yield (relation, name), [_snippet_text(s, where) for s in snippets]


def _snippet_text(snippet: Any, where: str) -> str:
    if not isinstance(snippet, dict):
        kind = raw_files.json_type_name(snippet)
        raise DataError(f"{where}: a snippet is a {kind}; it must be an object with a text")
    return str(raw_files.check_fields(snippet, where, {"text": "text"})["text"])


def _answer_names(path: Path) -> dict[_Key, str]:
    """Return the text of each answer by its relation and id."""
    names: dict[_Key, str] = {}
    for where, case in raw_files.iter_records(path, _CASE_FIELDS):
        rewrite = raw_files.check_fields(case["requested_rewrite"], where, _REWRITE_FIELDS)
        for field in ("target_new", "target_true"):
            answer = raw_files.check_fields(rewrite[field], f"{where}: {field}", _ANSWER_FIELDS)
            names[rewrite["relation_id"], answer["id"]] = answer["str"]
    return names
