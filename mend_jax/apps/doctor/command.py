"""python -m mend_jax.doctor --config=NAME.py[:variant] [--workdir=DIR] [--json] [--config.key=value ...]

Checks what a run needs before its hours are spent, in under a minute for a model of 135 million
parameters on two cores: config, edited weights, workdir, base, tokenizer, data, memory, factors,
meta-gradients, learning, and an edit. A line each says what was measured; a failed one what was
asked and the mend. Nothing is left behind. See docs/reliability.md for what each asks.
"""  # noqa: E501

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence

from mend_jax.apps import run_command as command
from mend_jax.errors import ConfigError, MendError, did_you_mean, report_error

JSON = "--json"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when all is well, 2 when a check failed or nothing could be asked."""
    with _quiet("mend_jax"):  # what is left out is in `data`
        return _main(argv)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """No warnings of a logger, until it is left."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _main(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    as_json = JSON in argv
    began = time.monotonic()
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    try:
        config, workdir, name = command.parse([a for a in argv if a != JSON])
        job = config.get("job", "edit")
        from mend_jax.apps.doctor import (  # after the flags: importing jax takes seconds
            findings,
            jobs,
        )

        if job not in jobs.JOBS:
            raise ConfigError(f"job is {job!r}{did_you_mean(str(job), [*jobs.JOBS])}")
        found = []
        for finding in jobs.JOBS[job](config, workdir):  # each is told as it is made
            found.append(finding)
            if not as_json:
                print("\n".join(finding.lines()), flush=True)
    except MendError as e:
        return report_error(e)
    bad = sum(f.failed for f in found)
    seconds = time.monotonic() - began
    if as_json:
        told = {"config": name, "ok": not bad, "seconds": seconds}
        print(json.dumps(told | {"checks": findings.as_json(found)}, indent=2))
    else:
        print(f"{bad} of {len(found)} checks failed" if bad else f"all well, {seconds:.0f} s")
    return 2 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
