"""Whether the splits of the data are apart, are not empty, and fit the lengths."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.apps.doctor.findings import Finding, judged
from mend_jax.data.name_matching import canonical_name
from mend_jax.training.assembly import Experiment, Split

_MOST_LEFT_OUT = 0.5
_MOST_SHARED = 0.005  # of the smaller split: less does not move a score by its sampling error
Row = Mapping[str, Any]


def check_splits(experiment: Experiment) -> Finding:
    """The splits that a run trains on and is judged by.

    Raises:
      DataError: the training rows do not fill one step.
    """
    splits = {name: getattr(experiment, name) for name in ("train", "validation", "test")}
    next(experiment.train_batches())
    problems, told = shared({name: kept_rows(split) for name, split in splits.items()})
    left_out = {name: _left_out(split) for name, split in splits.items()}
    problems += [
        f"{share:.0%} of the {name} rows do not fit: {dict(splits[name].encoded.dropped)}"
        for name, share in left_out.items() if share > _MOST_LEFT_OUT
    ]  # fmt: skip
    counts = " / ".join(f"{len(split):,}" for split in splits.values())
    measured = (
        f"{counts} edits to train, validate and test, {told}; "
        f"{left_out['train']:.1%} of training rows left out"
    )
    return judged(
        "data", not problems, "; ".join(problems) or measured,
        f"subjects and prompts in one split each, but for {_MOST_SHARED:.1%}; at most "
        f"{_MOST_LEFT_OUT:.0%} of rows left out",
        "make splits that share no subject, as docs/data.md says; raise data.max_len and "
        "data.max_target where rows do not fit",
    )  # fmt: skip


def kept_rows(split: Split) -> list[Row]:
    """The rows of a split that fit the lengths."""
    return [split.rows[int(i)] for i in split.encoded.index]


def shared(splits: Mapping[str, Sequence[Row]]) -> tuple[list[str], str]:
    """Which splits are empty, or have subjects or prompts (paraphrases too) in common.

    Returns:
      What is wrong, and what there is to say where nothing is.
    """
    problems = [f"{name} is empty" for name, rows in splits.items() if not rows]
    found = {
        "subject": {
            n: {canonical_name(r["subject"]) for r in rows} - {""} for n, rows in splits.items()
        },
        "prompt": {
            n: {canonical_name(r[field]) for r in rows for field in ("prompt", "rephrase")}
            for n, rows in splits.items()
        },
    }
    few = []
    for (what, names), (one, other) in itertools.product(
        found.items(), itertools.combinations(splits, 2)
    ):
        if not (common := sorted(names[one] & names[other])):
            continue
        text = f"{one} and {other} share {len(common)} {what}s, such as {common[0]!r:.60}"
        most = _MOST_SHARED * min(len(names[one]), len(names[other]))
        (problems if len(common) > most else few).append(text)
    return problems, "; ".join(few) or "apart in subjects and prompts"


def _left_out(split: Split) -> float:
    dropped = sum(split.encoded.dropped.values())
    return dropped / max(1, dropped + len(split))
