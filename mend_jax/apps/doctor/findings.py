"""What a check of the doctor found: a line for people, an entry for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mend_jax.errors import MendError, TrainingError
from mend_jax.parallel.distributed import gather

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
_WIDTH = 10  # of the names of checks


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
      check: its name, one of the table in docs/reliability.md.
      status: "ok", "failed", or "skipped" where there is nothing to ask.
      measured: what was found, in words; of a skipped check why it was.
      asked: what it has to be.
      mend: what to change where it is not.
    """

    check: str
    status: str
    measured: str
    asked: str = ""
    mend: str = ""

    @property
    def failed(self) -> bool:
        return self.status == FAILED

    def lines(self) -> list[str]:
        """For people; a failed check also says what was asked and the mend."""
        first = f"{self.check:<{_WIDTH}} {self.status:<8} {self.measured}"
        if self.status == OK and self.asked:
            return [f"{first} (asked: {self.asked})"]
        told = {"asked": self.asked, "mend": self.mend} if self.failed else {}
        return [first, *(f"{'':<{_WIDTH}} {k}: {text}" for k, text in told.items() if text)]


def judged(check: str, good: bool, measured: str, asked: str, mend: str) -> Finding:
    """A finding that is ok where `good`; the mend is told where it is not."""
    return Finding(check, OK if good else FAILED, measured, asked, "" if good else mend)


def skipped(check: str, why: str) -> Finding:
    return Finding(check, SKIPPED, why)


def refused(check: str, error: MendError) -> Finding:
    """The finding of an error, whose message says what was wrong and the mend."""
    return Finding(check, FAILED, f"{type(error).__name__}: {error}", mend="as the message says")


def attempt(check: str, ask: Callable[[], Finding]) -> Finding:
    """What a check finds; an error of the project's own is a failure of that check."""
    try:
        return ask()
    except MendError as e:
        return refused(check, e)


def any_failed(findings: Sequence[Finding]) -> bool:
    """Whether a check failed, here or on another process of the run: all go on, or none."""
    return bool(np.any(gather(np.asarray([any(f.failed for f in findings)]))))


def in_words(findings: Sequence[Finding]) -> Iterator[str]:
    """All lines for people."""
    for finding in findings:
        yield from finding.lines()


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(f) for f in findings]


def refuse(findings: Sequence[Finding]) -> None:
    """Raises a TrainingError that tells all failed checks, if there are any."""
    bad = [f for f in findings if f.failed]
    if bad:
        told = "\n".join(in_words(bad))
        raise TrainingError(
            f"{len(bad)} of the doctor's {len(findings)} checks failed, so training has not "
            f"begun:\n{told}\nMend it, or train all the same with --config.train.doctor=False"
        )
