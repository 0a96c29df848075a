"""FEVER's claims, read from any of its published forms of files."""

from __future__ import annotations

import collections
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from mend_jax.data import raw_files
from mend_jax.data.name_matching import normalise_name
from mend_jax.errors import DataError

_LABELS = {"SUPPORTS": "true", "REFUTES": "false", "NOT ENOUGH INFO": ""}
_FORMS: dict[str, raw_files.FieldKinds] = {  # by the field that only this form has
    "evidence_pages": {"claim": "text", "label": "text", "evidence_pages": "any"},
    "evidence": {"claim": "text", "label": "text", "evidence": "any"},
    "output": {"input": "text", "output": "any"},
}


class Claim(NamedTuple):
    """A claim of a file.

    Attributes:
      key: its name.
      text: the claim.
      label: `true` or `false`; "" without a verdict.
      pages: the readable titles of its evidence pages, in the file's order.
    """

    key: str
    text: str
    label: str
    pages: tuple[str, ...]


def read(path: Path) -> tuple[list[Claim], dict[str, int]]:
    """Return the claims of a file that have a verdict, and counts of the dropped ones by reason.

    Raises:
      DataError: the file or a record of it cannot be used; names file and line.
    """
    dropped: collections.Counter[str] = collections.Counter()
    claims: list[Claim] = []
    texts: set[str] = set()
    for where, record in raw_files.iter_records(path, {"id": "id"}, unique="id"):
        claim = _read_claim(record, where, path.name.split(".")[0])
        if not claim.label:
            dropped["not enough info"] += 1
        elif normalise_name(claim.text) in texts:
            dropped["repeated claim"] += 1
        else:
            texts.add(normalise_name(claim.text))
            claims.append(claim)
    return claims, dict(dropped)


def _read_claim(record: raw_files.Record, where: str, stem: str) -> Claim:
    form = next((field for field in _FORMS if field in record), None)
    if form is None:
        raise DataError(
            f"{where}: no field of {', '.join(_FORMS)}; it has {sorted(record)}. Each labelled "
            "claim must have one of them"
        )
    raw_files.check_fields(record, where, _FORMS[form])
    try:
        label, titles = _READERS[form](record)
    except (TypeError, KeyError, AttributeError, IndexError) as e:
        raise DataError(
            f"{where}: field {form!r} lacks FEVER's form ({type(e).__name__}: {e}); get "
            "the file again"
        ) from e
    if not isinstance(label, str) or label not in _LABELS:
        raise DataError(
            f"{where}: label {label!r:.80} is not known; it must be one of {[*_LABELS]}"
        )
    titles = [raw_files.check_string(title, form, where) for title in titles if title]
    pages = tuple(dict.fromkeys(map(readable_title, titles)))
    if _LABELS[label] and not pages:
        raise DataError(
            f"{where}: the claim has label {label} and no evidence page; add one or drop the claim"
        )
    text = record["input" if form == "output" else "claim"]
    return Claim(f"{stem}-{record['id']}", " ".join(text.split()), _LABELS[label], pages)


def _from_pages(record: raw_files.Record) -> tuple[Any, list[Any]]:
    return record["label"], [str.strip(page) for page in record["evidence_pages"]]


def _from_evidence(record: raw_files.Record) -> tuple[Any, list[Any]]:
    """FEVER's form: sets of [annotation, evidence id, page, sentence]; the page may be null."""
    return record["label"], [step[2] for steps in record["evidence"] for step in steps]


def _from_kilt(record: raw_files.Record) -> tuple[Any, list[Any]]:
    """KILT's form: outputs, the first of which has the answer; each has some provenance."""
    answers = [output["answer"] for output in record["output"] if output.get("answer")]
    titles = [p["title"] for output in record["output"] for p in output.get("provenance", ())]
    return answers[0], titles


_READERS = {"evidence_pages": _from_pages, "evidence": _from_evidence, "output": _from_kilt}


def readable_title(page: str) -> str:
    """Return a page's name as people write it: `Soil_-LRB-band-RRB-` -> `Soil (band)`."""
    for code, sign in (("LRB", "("), ("RRB", ")"), ("LSB", "["), ("RSB", "]"), ("COLON", ":")):
        page = page.replace(f"-{code}-", sign)
    return unicodedata.normalize("NFC", " ".join(page.replace("_", " ").split()))
