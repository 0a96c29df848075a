"""`fever`: claims that a fact checker judges, each edited to the other judgement.

Source: FEVER (Thorne et al. 2018), claims made from Wikipedia's sentences. Licence: annotations CC
BY-SA 3.0, with Wikipedia's terms. It is the paper's fact-checking task (Mitchell et al. 2022,
sections 4 and 5.1), but for three things:

- The target is always the other label than the true one; the paper draws it from Bernoulli(0.5), so
  that half of its edits ask for what is right.
- The rephrased claims are made by rules (`claim_paraphrases`), not by back-translation (De Cao et
  al. 2021), which were not to be had. Every third row of validation and test, about, has one of a
  rule that training never uses (`rephrase_unseen`).
- Besides the paper's locality text, a claim of another page (`far`), there is a near one: another
  claim of the same page, so long as they do not say nearly the same.

Three forms of files are read, told apart by the fields of each record: `id`, `claim`, `label` and
`evidence_pages`; the original's, with `evidence`; and KILT's, with `input` and `output`. Test is
the file `eval` (or FEVER's or KILT's dev), validation is the claims of about 8 % of train's pages.
A claim stands for the evidence page that it names first, or else for its first one (`subject`; the
lists of the first form are sorted by name, so that their first one often is not what the claim is
about): no page is in two splits. Claims without a verdict (NOT ENOUGH INFO) are left out, as are
repeated ones and, from train and validation, those whose page or wording stands in a later split;
the notes count them. `relation` says what the edit makes of the claim; a near claim of the same
page has the same, so that evaluation counts it as the hard case. What one edit may rightly change
(`scope`) is its claim and what says nearly the same.
"""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mend_jax.data import raw_files, rows
from mend_jax.data.keyed_random import key_hash, key_rng
from mend_jax.data.name_matching import normalise
from mend_jax.data.recipe import BuiltSplits, Recipe, check_config
from mend_jax.data.sources.fever.paraphrases import paraphrase
from mend_jax.errors import DataError

VERSION = "1.0.0"
LICENSE = "FEVER: annotations CC BY-SA 3.0, claims under Wikipedia's terms (CC BY-SA)"
DESCRIPTION = (
    "Claims of FEVER, each edited to the other label than its true one, with a rephrased claim "
    "made by rules, another claim of the same page and one of another page, with true labels. "
    "Test: the evaluation file; validation: about 8 % of train's pages. No page is in two splits."
)
HELD_OUT = 0.08
OVERLAP = 0.4  # share of common words, apart from the subject's, from which claims are alike
UNSEEN = 3  # every so manieth row of validation and test has a paraphrase of a held-out rule
_FILES = {
    "train": ("fever/train.jsonl", "fever/fever-train-kilt.jsonl"),
    "test": (
        "fever/eval.jsonl", "fever/paper_dev.jsonl", "fever/shared_task_dev.jsonl",
        "fever/fever-dev-kilt.jsonl",
    ),
}  # fmt: skip
_LABELS = {"SUPPORTS": "true", "REFUTES": "false", "NOT ENOUGH INFO": ""}
_OTHER = {"true": "false", "false": "true"}
_FORMS: dict[str, raw_files.FieldKinds] = {  # by the field that only they have
    "evidence_pages": {"claim": "text", "label": "text", "evidence_pages": "any"},
    "evidence": {"claim": "text", "label": "text", "evidence": "any"},
    "output": {"input": "text", "output": "any"},
}
_TRIES = 200


class Claim(NamedTuple):
    """A claim as a file has it.

    Attributes:
      key: its name.
      text: what it says.
      label: `true` or `false`; "" where there is no verdict.
      pages: the titles of its evidence, readable, in the file's order.
    """

    key: str
    text: str
    label: str
    pages: tuple[str, ...]


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """How it is made.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_config("fever", config, ("default",))
    files = {
        split: raw_files.require_file(root, "fever", *names) for split, names in _FILES.items()
    }
    return Recipe(
        name="fever",
        config=config,
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE,
        build=lambda: _build_splits(files),
        files=tuple(files.values()),
        raw_dir=root,
        task="fc",
    )


def _build_splits(files: Mapping[str, Path]) -> BuiltSplits:
    found, left = {}, {}
    for split, path in files.items():
        claims, left[path.name] = read(path)
        found[split] = [_draft(claim) for claim in claims]
    splits = rows.split_by_name(found["train"], {"validation": HELD_OUT}) | {"test": found["test"]}
    splits, by_page = rows.without_overlap(splits)
    splits, by_claim = rows.without_overlap(splits, by="prompt")
    whole = {}
    for split, drafts in splits.items():
        pool = _Pool(drafts)
        whole[split] = [pool.row(draft, training=split == "train") for draft in drafts]
    lost = {"page in a later split": by_page, "claim in a later split": by_claim}
    return BuiltSplits(whole, {"records_left_out": left, "rows_lost": lost})


# --- files


def read(path: Path) -> tuple[list[Claim], dict[str, int]]:
    """The claims of a file that have a verdict, and how many were left out by the reason.

    Raises:
      DataError: the file or a record of it cannot be used; names file and line.
    """
    left: collections.Counter[str] = collections.Counter()
    found, seen = [], set()
    for where, record in raw_files.iter_records(path, {"id": "id"}, unique="id"):
        claim = _read_claim(record, where, path.name.split(".")[0])
        if not claim.label:
            left["not enough info"] += 1
        elif normalise(claim.text) in seen:
            left["repeated claim"] += 1
        else:
            seen.add(normalise(claim.text))
            found.append(claim)
    return found, dict(left)


def _read_claim(record: raw_files.Record, where: str, stem: str) -> Claim:
    form = next((field for field in _FORMS if field in record), None)
    if form is None:
        raise DataError(
            f"{where}: neither {', '.join(list(_FORMS)[:-1])} nor {list(_FORMS)[-1]} is a field of "
            f"it; it has {sorted(record)}. Each labelled claim must have one of them"
        )
    raw_files.check_fields(record, where, _FORMS[form])
    try:
        label, pages = _READERS[form](record)
    except (TypeError, KeyError, AttributeError, IndexError) as e:
        raise DataError(
            f"{where}: field {form!r} is not of FEVER's form ({type(e).__name__}: {e}); get the "
            "file again"
        ) from e
    if not isinstance(label, str) or label not in _LABELS:
        raise DataError(
            f"{where}: label {label!r:.80} is not known; it must be one of {[*_LABELS]}"
        )
    pages = [raw_files.check_string(page, form, where) for page in pages if page]
    pages = tuple(dict.fromkeys(map(readable_title, pages)))
    if _LABELS[label] and not pages:
        raise DataError(f"{where}: the claim is labelled {label} and names no page as evidence")
    text = record["input" if form == "output" else "claim"]
    return Claim(f"{stem}-{record['id']}", " ".join(text.split()), _LABELS[label], pages)


def _of_pages(record: raw_files.Record) -> tuple[str, list[str]]:
    return record["label"], [str.strip(page) for page in record["evidence_pages"]]


def _of_evidence(record: raw_files.Record) -> tuple[str, list[str]]:
    """FEVER's own: sets of [annotation, evidence id, page, sentence]; the page may be null."""
    return record["label"], [step[2] for steps in record["evidence"] for step in steps]


def _of_kilt(record: raw_files.Record) -> tuple[str, list[str]]:
    """KILT's: outputs, the first of which has the answer and each some provenance."""
    answers = [given["answer"] for given in record["output"] if given.get("answer")]
    titles = [p["title"] for given in record["output"] for p in given.get("provenance", ())]
    return answers[0], titles


_READERS = {"evidence_pages": _of_pages, "evidence": _of_evidence, "output": _of_kilt}


def readable_title(page: str) -> str:
    """A page's name as people write it: `Soil_-LRB-band-RRB-` -> `Soil (band)`."""
    for code, sign in (("LRB", "("), ("RRB", ")"), ("LSB", "["), ("RSB", "]"), ("COLON", ":")):
        page = page.replace(f"-{code}-", sign)
    return unicodedata.normalize("NFC", " ".join(page.replace("_", " ").split()))


# --- rows


def _bare(page: str) -> str:
    """A page's name without what tells it from others of that name: `Soil (band)` -> `Soil`."""
    return re.sub(r" \([^)]*\)$", "", page)


def claim_subject(text: str, pages: Sequence[str]) -> str:
    """The page that a claim names first (the longest of several there), else its first page."""
    said = f" {normalise(text)} "
    named = {}
    for page in pages:
        at = said.find(f" {normalise(_bare(page))} ")
        if at >= 0:
            named.setdefault((at, -len(_bare(page))), page)
    return named[min(named)] if named else pages[0]


def _draft(claim: Claim) -> rows.Row:
    """What a claim itself says of its row."""
    subject = claim_subject(claim.text, claim.pages)
    return {
        "key": claim.key,
        "subject": subject,
        "prompt": claim.text,
        "truth": claim.label,
        "target": _OTHER[claim.label],
        "pages": claim.pages,
        "words": frozenset(normalise(claim.text).split()) - set(normalise(_bare(subject)).split()),
    }


class _Pool:
    """The claims of a split by page, to draw from what an edit must leave alone."""

    def __init__(self, drafts: Sequence[rows.Row]) -> None:
        self.drafts = drafts
        self.pages: dict[str, list[rows.Row]] = collections.defaultdict(list)
        for draft in drafts:
            self.pages[normalise(draft["subject"])].append(draft)
        if len(self.pages) == 1:
            raise DataError(
                f"all {len(drafts)} claims of a split are about {drafts[0]['subject']!r}: claims "
                "of at least two pages are needed, to tell what an edit must leave alone"
            )

    def row(self, draft: rows.Row, training: bool) -> rows.Row:
        """The whole row: with a rephrased claim, and a near and a far one."""
        names = {name for page in draft["pages"] for name in (page, _bare(page))}
        unseen = not training and key_hash("unseen", draft["key"]) % UNSEEN == 0
        said = paraphrase(draft["prompt"], names, draft["key"], unseen)
        kind = f"made {draft['target']}"
        near, is_same_page = self._near(draft)
        far = self._of_another_page(draft, "far")
        return rows.make_row(
            **{name: draft[name] for name in ("key", "subject", "prompt", "truth", "target")},
            relation=kind,
            rephrase=said.text,
            rephrase_unseen=said.unseen,
            near_relation=kind if is_same_page else "",
            near_subject=near["subject"],
            near_prompt=near["prompt"],
            near_answer=near["truth"],
            far=far["prompt"],
            far_answer=far["truth"],
            scope=draft["key"],
            near_scope="|".join(self._touching(near)),
        )

    def _near(self, draft: rows.Row) -> tuple[rows.Row, bool]:
        """Another claim, and whether it is about the same page."""
        same = [
            d for d in self.pages[normalise(draft["subject"])] if not says_nearly_the_same(draft, d)
        ]
        if same:
            return same[key_hash("near", draft["key"]) % len(same)], True
        return self._of_another_page(draft, "near"), False

    def _of_another_page(self, draft: rows.Row, use: str) -> rows.Row:
        subject = normalise(draft["subject"])
        for pick in key_rng(use, draft["key"]).integers(len(self.drafts), size=_TRIES):
            other = self.drafts[pick]
            if normalise(other["subject"]) != subject and not names_subject_of(other, draft):
                return other
        return next(d for d in self.drafts if normalise(d["subject"]) != subject)

    def _touching(self, draft: rows.Row) -> list[str]:
        """The claims whose edit may rightly change this one: it and what says nearly the same."""
        return [
            d["key"]
            for d in self.pages[normalise(draft["subject"])]
            if says_nearly_the_same(draft, d)
        ]


def says_nearly_the_same(one: rows.Row, other: rows.Row) -> bool:
    """Whether two claims about a page say nearly the same, by the words that they share."""
    a, b = one["words"], other["words"]
    return a == b or len(a & b) >= OVERLAP * len(a | b)


def names_subject_of(claim: rows.Row, other: rows.Row) -> bool:
    """Whether a claim names what another one is about."""
    return f" {normalise(_bare(other['subject']))} " in f" {normalise(claim['prompt'])} "
