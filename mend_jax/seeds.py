"""python -m mend_jax.seeds --config=NAME.py [--workdir=DIR] [--seeds=0,1,2] [--config.key=value]

The same run with several seeds, each in DIR/seed_N (which resumes, or is done), and DIR/seeds.json:
mean, standard deviation and 95% interval of every number over the seeds. The seed decides how the
editor begins and the order of the training edits; the base, the data and its splits stay. One
process runs them one after the other; on several hosts each seed is a run of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax import main as command
from mend_jax.errors import ConfigError, MendError
from mend_jax.writers import as_path, write_json

HEADLINE = (
    "success", "edit.success_exact", "rephrase.success_exact", "edit.success_generated",
    "rephrase.success_generated", "locality.kl", "locality.argmax_agreement",
    "locality.near.argmax_agreement", "locality.far.argmax_agreement", "locality.far.kl",
    "locality.accuracy_drawdown", "locality.perplexity_drawdown", "portability.success_exact",
    "ability.perplexity", "ability.recall",
)  # fmt: skip


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation, 95% interval (Student's t) and values of every number, by its path.

    Numbers that some run lacks are left out.
    """
    from scipy.stats import t

    flat = [dict(_numbers(run)) for run in runs]
    found = {}
    for path in flat[0]:
        if not all(path in run for run in flat):
            continue
        values = np.asarray([run[path] for run in flat], np.float64)
        spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        half = float(t.ppf(0.975, len(values) - 1)) * spread / np.sqrt(len(values))
        mean = float(values.mean())
        found[path] = {
            "mean": mean, "sd": spread, "ci95": [mean - half, mean + half],
            "values": values.tolist(),
        }  # fmt: skip
    return found


def _numbers(value: Any, path: str = "") -> list[tuple[str, float]]:
    """Every number of nested objects by its dotted path; lists and flags are none."""
    if isinstance(value, Mapping):
        return [n for k, v in value.items() for n in _numbers(v, f"{path}.{k}" if path else k)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [(path, float(value))]
    return []


def table(summary: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """The headline numbers as lines of text."""
    lines = [f"seeds {', '.join(map(str, seeds))}: mean (sd; 95% interval of the mean)"]
    for path in HEADLINE:
        if (s := summary.get(path)) is not None:
            low, high = s["ci95"]
            lines.append(f"  {path}: {s['mean']:.4f} ({s['sd']:.4f}; {low:.4f} to {high:.4f})")
    return "\n".join(lines)


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
        _, workdir, _ = command.parse(rest)
        join()
        workdir = as_path(workdir)
    except MendError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return e.exit_status
    runs = []
    for seed in seeds:
        folder = workdir / f"seed_{seed}"
        print(f"seed {seed}: {folder}", file=sys.stderr, flush=True)
        own = [
            f"--workdir={folder}",
            f"--config.seed={seed}",
        ]  # of flags given twice the last counts
        if status := command.main([*rest, *own]):
            return status
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        more = {name: results[name] for name in ("also", "baselines") if name in results}
        runs.append(results["eval"] | more)
    summary = summarise(runs)
    write_json(workdir / "seeds.json", {"seeds": seeds, "runs": len(runs), "eval": summary})
    print(table(summary, seeds), file=sys.stderr)
    return 0


def join() -> None:
    """Raises ConfigError where this is one of several processes."""
    import jax

    from mend_jax import distributed  # after the flags: importing jax takes seconds

    distributed.initialize()
    if jax.process_count() > 1:
        raise ConfigError(
            f"seeds run one after the other in one process, and here are {jax.process_count()}: "
            "start each as a run of its own, with --config.seed=N and a --workdir for each"
        )


if __name__ == "__main__":
    sys.exit(main())
