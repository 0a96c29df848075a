"""python -m mend_jax.apps.multi_seed --config=NAME.py [--workdir=DIR] [--seeds=0,1,2] [...]

The same run with several seeds, each in DIR/seed_N (which resumes, or is done), and DIR/seeds.json:
mean, standard deviation and 95% interval of every number over the seeds. The seed decides how the
editor begins and the order of the training edits; the base, the data and its splits stay. Each is a
process of its own, one after the other. For several configs at once see `mend_jax.apps.grid`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.apps import run_command
from mend_jax.apps.run_processes import (
    RunProcess,
    leave_accelerators_to_runs,
    print_status,
    raise_failed_runs,
    run_all,
)
from mend_jax.errors import ConfigError, MendError, report_error
from mend_jax.evaluation.reports.text_tables import seeds_table
from mend_jax.evaluation.statistics import summarise_runs
from mend_jax.io.files import as_path, write_json

HEADLINE = (
    "success", "edit.success_exact", "paraphrase.success_exact", "edit.success_generated",
    "paraphrase.success_generated", "locality.kl", "locality.argmax_agreement",
    "locality.near.argmax_agreement", "locality.far.argmax_agreement", "locality.far.kl",
    "locality.accuracy_drawdown", "locality.perplexity_drawdown", "portability.success_exact",
    "ability.perplexity", "ability.recall",
)  # fmt: skip
ALSO = (
    "success", "portability.success_exact", "locality.more_near.argmax_agreement",
    "locality.far.argmax_agreement",
)  # fmt: skip
"""Of the further test sets (`eval.extra_data_sets`)."""


def table(summary: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Return the headline numbers as text."""
    names = {path.split(".")[1] for path in summary if path.startswith("extra_data_sets.")}
    paths = [*HEADLINE, *(f"extra_data_sets.{name}.{k}" for name in sorted(names) for k in ALSO)]
    paths += [p for p in summary if p.startswith("metrics.") and p.endswith(".value")]
    return seeds_table({path: summary[path] for path in paths if path in summary}, seeds)


def parse(argv: Sequence[str]) -> tuple[list[int], list[str]]:
    """The seeds, and the other arguments.

    Raises:
      ConfigError: seeds that are not different whole numbers.
    """
    given = [a.removeprefix("--seeds=") for a in argv if a.startswith("--seeds=")]
    rest = [a for a in argv if not a.startswith("--seeds=")]
    text = given[-1] if given else "0,1,2"
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds={text}: give different whole numbers, such as --seeds=0,1,2")
    return seeds, rest


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns as `mend_jax.main` does."""
    try:
        seeds, rest = parse(sys.argv[1:] if argv is None else argv)
        _, workdir, _ = run_command.parse(rest)
        leave_accelerators_to_runs()
        workdir = as_path(workdir)
        runs = [  # of flags given twice the last counts
            RunProcess(f"seed {seed}", (*rest, f"--config.seed={seed}"), workdir / f"seed_{seed}")
            for seed in seeds
        ]
        raise_failed_runs(run_all(runs), len(runs))
        summary = summarise_runs([scores(run.results()) for run in runs])
    except MendError as e:
        return report_error(e)
    write_json(workdir / "seeds.json", {"seeds": seeds, "runs": len(runs), "eval": summary})
    print_status(table(summary, seeds))
    return 0


def scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """What is averaged of one run."""
    more = {name: results[name] for name in ("extra_data_sets", "baselines") if name in results}
    return results["eval"] | more


if __name__ == "__main__":
    sys.exit(main())
