"""`fever`: claims that a fact checker scores, each edited to the other label.

Source: FEVER (Thorne et al. 2018), claims made from Wikipedia's sentences. Licence: annotations CC
BY-SA 3.0, with Wikipedia's terms. It is the paper's fact-checking task (Mitchell et al. 2022,
sections 4 and 5.1), with three deviations:

- The target is always the wrong label; the paper draws it from Bernoulli(0.5), so that half of its
  edits have the true label as target.
- The paraphrases are made by rules (`paraphrases`), not by back-translation (De Cao et al. 2021),
  which is not available. About every third row of validation and test has one of a rule that
  training never uses (`rephrase_unseen`).
- Besides the paper's locality text, a claim of another page (`far`), there is a near one: another
  claim of the same page that does not say nearly the same.

Three forms of files are read, see `claim_files`. Test is the file `eval` (or FEVER's or KILT's
dev), validation is the claims of about 8 % of train's pages. A claim belongs to the evidence page
that it names first, or else to its first page (`subject`; in the first form the pages are sorted by
name, so that the first one is often not what the claim is about): no page is in two splits. Dropped
and counted in the notes are claims without a verdict (NOT ENOUGH INFO), repeated claims and, from
train and validation, claims whose page or text is in a later split. `relation` is the label that
the edit gives the claim; a near claim of the same page has the same relation, so that evaluation
counts it as the hard case. An edit may rightly change (`scope`) its claim and claims that say
nearly the same.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.keyed_random import first_accepted, key_hash, key_rng
from mend_jax.data.name_matching import normalise_name
from mend_jax.data.sources.fever.claim_files import Claim, read
from mend_jax.data.sources.fever.paraphrases import paraphrase
from mend_jax.errors import DataError

VERSION = "1.0.0"
LICENSE = "FEVER: annotations CC BY-SA 3.0, claims under Wikipedia's terms (CC BY-SA)"
DESCRIPTION = (
    "Claims of FEVER, each edited to the other label than its true one, with a paraphrased claim "
    "made by rules, another claim of the same page and one of another page, with true labels. "
    "Test: the evaluation file; validation: about 8 % of train's pages. No page is in two splits."
)
HELD_OUT = 0.08
OVERLAP = 0.4  # share of common words, without the subject's, from which claims are nearly the same
UNSEEN = 3  # one in this many rows of validation and test has a paraphrase of a held-out rule
_FILES = {
    "train": ("fever/train.jsonl", "fever/fever-train-kilt.jsonl"),
    "test": (
        "fever/eval.jsonl", "fever/paper_dev.jsonl", "fever/shared_task_dev.jsonl",
        "fever/fever-dev-kilt.jsonl",
    ),
}  # fmt: skip
_OTHER_LABEL = {"true": "false", "false": "true"}
_TRIES = 200


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe; there is one config.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_recipe_config("fever", config, ("default",))
    files = raw_files.require_files(root, "fever", _FILES)
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
    drafts, dropped = {}, {}
    for split, path in files.items():
        claims, dropped[path.name] = read(path)
        drafts[split] = [_draft(claim) for claim in claims]
    splits = rows.split_by_name(drafts["train"], {"validation": HELD_OUT})
    splits, by_page = rows.without_overlap(splits | {"test": drafts["test"]})
    splits, by_claim = rows.without_overlap(splits, by="prompt")
    finished = {}
    for split, part in splits.items():
        pool = _ClaimPool(part)
        finished[split] = [pool.row(draft, training=split == "train") for draft in part]
    lost = {"page in a later split": by_page, "claim in a later split": by_claim}
    return BuiltSplits(finished, {"records_left_out": dropped, "rows_lost": lost})


def _bare_title(page: str) -> str:
    """Return a page's name without its disambiguation: `Soil (band)` -> `Soil`."""
    return re.sub(r" \([^)]*\)$", "", page)


def claim_subject(text: str, pages: Sequence[str]) -> str:
    """Return the page that a claim names first (there the longest one), else its first page."""
    words = f" {normalise_name(text)} "
    places: dict[tuple[int, int], str] = {}
    for page in pages:
        at = words.find(f" {normalise_name(_bare_title(page))} ")
        if at >= 0:
            places.setdefault((at, -len(_bare_title(page))), page)
    return places[min(places)] if places else pages[0]


def _draft(claim: Claim) -> rows.Row:
    """Return the fields of a row that come from its claim alone, with its pages and its words."""
    subject = claim_subject(claim.text, claim.pages)
    subject_words = set(normalise_name(_bare_title(subject)).split())
    return {
        "key": claim.key,
        "subject": subject,
        "prompt": claim.text,
        "truth": claim.label,
        "target": _OTHER_LABEL[claim.label],
        "pages": claim.pages,
        "words": frozenset(normalise_name(claim.text).split()) - subject_words,
    }


class _ClaimPool:
    """The claims of a split by page, from which near and far claims are drawn."""

    def __init__(self, drafts: Sequence[rows.Row]) -> None:
        self.drafts = drafts
        self.by_page: dict[str, list[rows.Row]] = collections.defaultdict(list)
        for draft in drafts:
            self.by_page[normalise_name(draft["subject"])].append(draft)
        if len(self.by_page) == 1:
            raise DataError(
                f"all {len(drafts)} claims of a split are about {drafts[0]['subject']!r}: add "
                "claims of another page, which an edit must not change"
            )

    def row(self, draft: rows.Row, training: bool) -> rows.Row:
        """Return the row of a draft: with a paraphrase, and a near and a far claim."""
        names = {name for page in draft["pages"] for name in (page, _bare_title(page))}
        unseen = not training and key_hash("unseen", draft["key"]) % UNSEEN == 0
        other = paraphrase(draft["prompt"], names, draft["key"], unseen)
        relation = f"made {draft['target']}"
        near, is_same_page = self._near(draft)
        far = self._of_another_page(draft, "far")
        return rows.make_row(
            **{name: draft[name] for name in ("key", "subject", "prompt", "truth", "target")},
            relation=relation,
            rephrase=other.text,
            rephrase_unseen=other.unseen,
            near_relation=relation if is_same_page else "",
            near_subject=near["subject"],
            near_prompt=near["prompt"],
            near_answer=near["truth"],
            far=far["prompt"],
            far_answer=far["truth"],
            scope=draft["key"],
            near_scope="|".join(d["key"] for d in self._same_page(near) if nearly_same(near, d)),
        )

    def _same_page(self, draft: rows.Row) -> list[rows.Row]:
        return self.by_page[normalise_name(draft["subject"])]

    def _near(self, draft: rows.Row) -> tuple[rows.Row, bool]:
        """Return another claim, and whether it is about the same page."""
        others = [d for d in self._same_page(draft) if not nearly_same(draft, d)]
        if others:
            return others[key_hash("near", draft["key"]) % len(others)], True
        return self._of_another_page(draft, "near"), False

    def _of_another_page(self, draft: rows.Row, use: str) -> rows.Row:
        """Draw a claim of another page that does not name this page, if one is found."""
        page = normalise_name(draft["subject"])
        found = first_accepted(
            self.drafts,
            key_rng(use, draft["key"]).integers(len(self.drafts), size=_TRIES),
            lambda d: normalise_name(d["subject"]) != page and not names_subject_of(d, draft),
        )
        return found or next(d for d in self.drafts if normalise_name(d["subject"]) != page)


def nearly_same(one: rows.Row, other: rows.Row) -> bool:
    """Return whether two claims about a page say nearly the same, by the words that they share."""
    a, b = one["words"], other["words"]
    return a == b or len(a & b) >= OVERLAP * len(a | b)


def names_subject_of(claim: rows.Row, other: rows.Row) -> bool:
    """Return whether a claim names what another one is about."""
    return (
        f" {normalise_name(_bare_title(other['subject']))} "
        in f" {normalise_name(claim['prompt'])} "
    )
