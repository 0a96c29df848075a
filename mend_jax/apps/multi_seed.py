"""python -m mend_jax.apps.multi_seed --config=NAME.py [--workdir=DIR] [--seeds=0,1,2] [...]

Runs one config with several seeds, as sequential processes in DIR/seed_N, and writes mean, standard
deviation and 95% interval of every score to DIR/seeds.json. Unfinished runs resume, finished ones
are only read. The seed changes the editor's initialisation and the order of training edits, not the
base or the data. For several configs see `mend_jax.apps.grid`.
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
from mend_jax.io.command import command
from mend_jax.io.files import as_path, write_json

HEADLINE = (
    "hard_near.leak", "hard_near.leak_generated", "hard_near.kept", "hard_near.kl",
    "after_answer.edit.repeated_twice", "success", "edit.success_exact",
    "paraphrase.success_exact", "edit.success_generated",
    "paraphrase.success_generated", "locality.kl", "locality.argmax_agreement",
    "locality.near.argmax_agreement", "locality.far.argmax_agreement", "locality.far.kl",
    "locality.accuracy_drawdown", "locality.perplexity_drawdown", "portability.success_exact",
    "ability.perplexity", "ability.recall",
)  # fmt: skip
EXTRA_HEADLINE = (
    "hard_near.leak", "hard_near.kept", "success", "portability.success_exact",
    "locality.more_near.argmax_agreement",
    "locality.far.argmax_agreement",
)  # fmt: skip
"""For extra data sets (`eval.extra_data_sets`)."""


def table(summary: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Return the headline numbers as text."""
    names = {path.split(".")[1] for path in summary if path.startswith("extra_data_sets.")}
    paths = [
        *HEADLINE,
        *(f"extra_data_sets.{name}.{k}" for name in sorted(names) for k in EXTRA_HEADLINE),
    ]
    paths += [p for p in summary if p.startswith("metrics.") and p.endswith(".value")]
    return seeds_table({path: summary[path] for path in paths if path in summary}, seeds)


def parse(argv: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the seeds, and the other arguments.

    Raises:
      ConfigError: seeds that are not different whole numbers.
    """
    rest = [a for a in argv if not a.startswith("--seeds=")]
    text = ["0,1,2", *(a.removeprefix("--seeds=") for a in argv if a.startswith("--seeds="))][-1]
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds={text}: give different whole numbers, such as --seeds=0,1,2")
    return seeds, rest


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status is that of `mend_jax.main`."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    try:
        seeds, rest = parse(argv)
        workdir = as_path(run_command.parse(rest).workdir)
        leave_accelerators_to_runs()
        runs = [  # the last of two equal flags counts
            RunProcess(f"seed {seed}", (*rest, f"--config.seed={seed}"), workdir / f"seed_{seed}")
            for seed in seeds
        ]
        raise_failed_runs(run_all(runs), len(runs))
        results = [run.results() for run in runs]
        summary = summarise_runs([scores(found) for found in results if found is not None])
    except MendError as e:
        return report_error(e)
    write_json(workdir / "seeds.json", {"seeds": seeds, "runs": len(runs), "eval": summary})
    print_status(table(summary, seeds))
    return 0


def scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of one run, which are averaged over the seeds."""
    more = {name: results[name] for name in ("extra_data_sets", "baselines") if name in results}
    return results["eval"] | more


if __name__ == "__main__":
    sys.exit(main())
