"""Check that the data splits share no subjects, are not empty, and fit the length limits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from mend_jax.apps.doctor.check_result import CheckResult, problems_result
from mend_jax.data.name_matching import canonical_name
from mend_jax.data.rows import Row
from mend_jax.training.assembly import Experiment, Split

_MAX_LEFT_OUT = 0.5
_MAX_SHARED = 0.005  # of the smaller split: fewer change a score by less than its sampling error


def check_splits(experiment: Experiment) -> CheckResult:
    """Check the splits that a run trains, validates and tests on.

    Raises:
      DataError: the training rows do not fill one step.
    """
    splits = {name: getattr(experiment, name) for name in ("train", "validation", "test")}
    next(experiment.train_batches())
    problems, remark = split_problems({name: kept_rows(split) for name, split in splits.items()})
    left_out = {name: _left_out(split) for name, split in splits.items()}
    problems += [
        f"{share:.0%} of the {name} rows do not fit: {dict(splits[name].encoded.dropped)}"
        for name, share in left_out.items() if share > _MAX_LEFT_OUT
    ]  # fmt: skip
    counts = " / ".join(f"{len(split):,}" for split in splits.values())
    return problems_result(
        "data", problems,
        f"{counts} edits to train, validate and test, {remark}; "
        f"{left_out['train']:.1%} of training rows left out",
        f"at most {_MAX_SHARED:.1%} of subjects and prompts in two splits; at most "
        f"{_MAX_LEFT_OUT:.0%} of rows left out",
        "make splits that share no subject, as docs/data.md says; raise data.max_len and "
        "data.max_target if rows do not fit",
    )  # fmt: skip


def kept_rows(split: Split) -> list[Row]:
    """Return the rows of a split that fit the length limits."""
    return [split.rows[int(i)] for i in split.encoded.index]


def split_problems(splits: Mapping[str, Sequence[Row]]) -> tuple[list[str], str]:
    """Find empty splits, and subjects or prompts (with paraphrases) in more than one split.

    Returns:
      The problems, and a remark on overlaps too small to be one.
    """
    problems = [f"{name} is empty" for name, rows in splits.items() if not rows]
    keys = {
        "subject": {n: _names(rows, "subject") - {""} for n, rows in splits.items()},
        "prompt": {n: _names(rows, "prompt", "rephrase") for n, rows in splits.items()},
    }
    small: list[str] = []
    for (kind, names), (one, other) in itertools.product(
        keys.items(), itertools.combinations(splits, 2)
    ):
        if not (common := sorted(names[one] & names[other])):
            continue
        text = f"{one} and {other} share {len(common)} {kind}s, such as {common[0]!r:.60}"
        limit = _MAX_SHARED * min(len(names[one]), len(names[other]))
        (problems if len(common) > limit else small).append(text)
    return problems, "; ".join(small) or "no subject or prompt shared"


def _names(rows: Sequence[Row], *fields: str) -> set[str]:
    return {canonical_name(row[field]) for row in rows for field in fields}


def _left_out(split: Split) -> float:
    dropped = sum(split.encoded.dropped.values())
    return dropped / max(1, dropped + len(split))
