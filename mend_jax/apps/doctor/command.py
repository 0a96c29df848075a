"""python -m mend_jax.doctor --config=NAME.py[:variant] [--workdir=DIR] [--json] [--config.key=value ...]

Checks a run before it spends hours, in under a minute for a model of 135 million parameters on two
cores: config, edited weights, workdir, base, tokenizer, data, memory, factors, meta-gradients,
learning, and an edit. Each check prints what it measured; a failed one also prints what is required
and how to fix it. Nothing is written. docs/reliability.md describes the checks.
"""  # noqa: E501

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence

from mend_jax.apps import run_command
from mend_jax.errors import ConfigError, MendError, did_you_mean, report_error
from mend_jax.io.command import command

JSON = "--json"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all is well, 2 if a check failed or could not be made."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    try:
        with _without_warnings("mend_jax"):  # the check `data` reports the rows left out
            return _run([a for a in argv if a != JSON], as_json=JSON in argv)
    except MendError as e:
        return report_error(e)


@contextlib.contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _run(argv: Sequence[str], as_json: bool) -> int:
    """Run the checks of a command line, and print each result at once or all as JSON."""
    started = time.monotonic()
    config, workdir, config_name = run_command.parse(argv)
    from mend_jax.apps.doctor.job_checks import JOB_CHECKS  # imports jax, which takes seconds

    job = config.get("job", "edit")
    if job not in JOB_CHECKS:
        raise ConfigError(f"job is {job!r}{did_you_mean(str(job), [*JOB_CHECKS])}")
    results = []
    for result in JOB_CHECKS[job](config, workdir):
        results.append(result)
        if not as_json:
            print("\n".join(result.lines()), flush=True)
    n_failed = sum(result.failed for result in results)
    seconds = time.monotonic() - started
    if as_json:
        report = {"config": config_name, "ok": not n_failed, "seconds": seconds}
        report["checks"] = [dataclasses.asdict(result) for result in results]
        print(json.dumps(report, indent=2))
    elif n_failed:
        print(f"{n_failed} of {len(results)} checks failed")
    else:
        print(f"all well, {seconds:.0f} s")
    return 2 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
