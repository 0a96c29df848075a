"""The result of one check: lines for people, an entry of `--json` for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mend_jax.errors import MendError, TrainingError
from mend_jax.parallel.distributed import gather

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
_NAME_WIDTH = 10  # column of the checks' names


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
      check: the check's name, as in the table of docs/reliability.md.
      status: "ok", "failed" or "skipped".
      measured: what was measured; for a skipped check, why it was skipped.
      required: what `measured` must be.
      fix: what to change after a failure.
    """

    check: str
    status: str
    measured: str
    required: str = ""
    fix: str = ""

    @property
    def failed(self) -> bool:
        return self.status == FAILED

    def lines(self) -> list[str]:
        """Return the lines to print; a failed check adds the requirement and the fix."""
        first = f"{self.check:<{_NAME_WIDTH}} {self.status:<8} {self.measured}"
        if self.status == OK and self.required:
            return [f"{first} (required: {self.required})"]
        details = {"required": self.required, "fix": self.fix} if self.failed else {}
        indent = " " * _NAME_WIDTH
        return [first, *(f"{indent} {name}: {text}" for name, text in details.items() if text)]


def make_result(check: str, passed: bool, measured: str, required: str, fix: str) -> CheckResult:
    """Return the result of a check that was made."""
    return CheckResult(check, OK if passed else FAILED, measured, required, "" if passed else fix)


def problems_result(
    check: str, problems: Sequence[str], measured: str, required: str, fix: str
) -> CheckResult:
    """Return the result of a check that passes if it has no problems to list."""
    return make_result(check, not problems, "; ".join(problems) or measured, required, fix)


def skipped(check: str, reason: str) -> CheckResult:
    """Return the result of a check that does not apply."""
    return CheckResult(check, SKIPPED, reason)


def error_result(check: str, error: MendError) -> CheckResult:
    """Return the failure that an error stands for; its message contains the fix."""
    return CheckResult(check, FAILED, f"{type(error).__name__}: {error}", fix="see the message")


def run_check(name: str, check: Callable[[], CheckResult]) -> CheckResult:
    """Return the result of a check; a MendError is a failure."""
    try:
        return check()
    except MendError as e:
        return error_result(name, e)


def any_failed(results: Sequence[CheckResult]) -> bool:
    """Return whether a check failed in any process of the run, so that all of them stop."""
    return bool(np.any(gather(np.asarray([any(r.failed for r in results)]))))


def raise_failures(results: Sequence[CheckResult]) -> None:
    """Raise a TrainingError that lists the failed checks, if any."""
    failed = [r for r in results if r.failed]
    if failed:
        lines = "\n".join(line for r in failed for line in r.lines())
        raise TrainingError(
            f"{len(failed)} of the doctor's {len(results)} checks failed, so training has not "
            f"begun:\n{lines}\nFix them, or skip the checks with --config.train.doctor=False"
        )
