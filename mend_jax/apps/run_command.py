"""python -m mend_jax.main --config=NAME.py[:variant] [--workdir=DIR] [--config.key=value ...]

Trains an editor (or resumes, or skips), evaluates it and leaves config.json, metrics.jsonl,
results.json, report.html with plots, and checkpoints/ in DIR (default runs/NAME[-variant]). With a
config whose `job` is "finetune": makes a base, in DIR/model. With one whose `job` is "grid": runs
every cell of a table, each in DIR/CELL, and leaves grid.json and report.html in DIR.

With --compile_for=SLICE it runs nothing: it compiles the steps for a TPU slice, on any machine, and
leaves DIR/compile_<topology>.json with the memory, operations and collectives of a chip.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mend_jax.errors import ConfigError, MendError, did_you_mean, report_error
from mend_jax.training import config as configs

# What a config's `job` runs: a module and its function of (config, workdir, config name).
JOBS = {
    "edit": ("mend_jax.apps.train_and_evaluate", "train_and_evaluate"),
    "finetune": ("mend_jax.apps.fact_checker_job", "finetune"),
    "grid": ("mend_jax.apps.grid", "run_grid"),
}
STARTERS = ("grid",)  # jobs that start runs as processes, and join no others themselves


def read_flags(argv: Sequence[str]) -> argparse.Namespace:
    """The flags but for --config.KEY.

    Raises:
      ConfigError: an unknown flag, or no config.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.main", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--config", help="a file in configs/, or a path; :variant")
    parser.add_argument("--workdir", default="", help="where the run lives")
    parser.add_argument(
        "--compile_for",
        default="",
        metavar="SLICE",
        help="run nothing: compile the steps for a TPU slice, such as v5e:4x4 or v4-8",
    )
    try:
        args, unknown = parser.parse_known_args([a for a in argv if not a.startswith("--config.")])
    except argparse.ArgumentError as e:
        raise ConfigError(str(e)) from e
    if unknown:
        known = ["--config", "--workdir", "--compile_for", "--config.KEY"]
        raise ConfigError(
            f"unknown argument {unknown[0]!r}{configs.did_you_mean(unknown[0], known)}"
        )
    if not args.config:
        raise ConfigError("which config? give --config=NAME.py, such as --config=quickstart.py")
    return args


class RunArguments(NamedTuple):
    """A parsed command line."""

    config: ConfigDict
    workdir: str
    config_name: str


def parse(argv: Sequence[str]) -> RunArguments:
    """Parse a command line.

    Raises:
      ConfigError: an unknown config, key or flag.
    """
    args = read_flags(argv)
    config = configs.load_config(args.config)
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    configs.apply_overrides(config, overrides)
    name, _, variant = args.config.partition(":")
    stem = Path(name).stem + (f"-{variant}" if variant else "")
    return RunArguments(config, args.workdir or f"runs/{stem}", args.config)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when the run is finished, 2 for an error that the message explains.

    143 when it was asked to stop (SIGTERM, or a pod's preemption notice) and saved its state. With
    --compile_for: 0 when all steps fit the slice, 1 when one does not.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every step without a score
    argv = sys.argv[1:] if argv is None else argv
    try:
        config, workdir, name = parse(argv)
        job = config.get("job", "edit")
        if job not in JOBS:
            raise ConfigError(f"job is {job!r}{did_you_mean(str(job), [*JOBS])}; known: {[*JOBS]}")
        if where := read_flags(argv).compile_for:
            if job != "edit":
                raise ConfigError(f"--compile_for: only editing runs are compiled, not job {job!r}")
            return 0 if compile_for(config, workdir, where) else 1
        if job not in STARTERS:
            from mend_jax.parallel import (
                distributed,  # after the flags: importing jax takes seconds
            )

            distributed.initialize()
        run_of(job)(config, workdir, name)
    except MendError as e:
        status = report_error(e)
        leave(e)
        return status
    except Exception as e:
        leave(e)
        raise
    return 0


def run_of(job: str) -> Callable[..., object]:
    """The function that does a job, imported when it is needed."""
    module, name = JOBS[job]
    return getattr(importlib.import_module(module), name)


def leave(error: Exception) -> None:
    """Tells the other processes of the run, where there are any, that this one cannot go on."""
    if "mend_jax.parallel.distributed" in sys.modules:
        sys.modules["mend_jax.parallel.distributed"].exit_if_alone(error)


def compile_for(config, workdir: str, where: str) -> bool:
    """Writes DIR/compile_<topology>.json; whether all steps fit the slice."""
    from mend_jax.tpu.slices import parse_slice

    chips = parse_slice(where)
    import jax

    jax.config.update("jax_platforms", "cpu")  # the compiler must not look for a TPU
    from mend_jax.io.files import write_json
    from mend_jax.tpu import compile_steps

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    report = compile_steps.compile_for(config, chips, say)
    path = Path(workdir) / f"compile_{chips.topology}.json"
    write_json(path, report)
    say(f"report: {path}")
    return all(report[name]["fits"] for name in compile_steps.STEPS)
