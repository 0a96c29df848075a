"""python -m mend_jax.main --config=NAME.py[:variant] [--workdir=DIR] [--config.key=value ...]

Trains an editor and evaluates it; an unfinished run resumes, a finished one is only reported. DIR
(default runs/NAME[-variant]) gets config.json, metrics.jsonl, results.json, report.html with plots,
and checkpoints/. A config whose `job` is "finetune" makes a base, in DIR/model. One whose `job` is
"grid" runs every cell of a table in DIR/CELL, and writes grid.json and report.html.

--profile=START:STOP writes a profile of these training steps to DIR/profile, for TensorBoard's or
XProf's viewer.

--compile_for=SLICE runs nothing: it compiles the steps for a TPU slice, on any machine, and writes
the memory, operations and collectives of a chip to DIR/compile_<topology>.json.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mend_jax.errors import ConfigError, MendError, did_you_mean, report_error
from mend_jax.io.command import command
from mend_jax.training import config as configs

JOBS = {
    "edit": ("mend_jax.apps.train_and_evaluate", "train_and_evaluate"),
    "finetune": ("mend_jax.apps.fact_checker_job", "finetune"),
    "grid": ("mend_jax.apps.grid", "run_grid"),
}
"""By a config's `job`: a module and its function of (config, workdir, config name)."""
MULTI_RUN_JOBS = ("grid",)
"""Jobs that start runs as processes, and do not join the processes of a run themselves."""


class RunArguments(NamedTuple):
    """A parsed command line."""

    config: ConfigDict
    workdir: str
    config_name: str


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags other than --config.KEY.

    Raises:
      ConfigError: an unknown flag, or no config.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.main", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--config", help="a file in configs/, or a path; :variant")
    parser.add_argument("--workdir", default="", help="the folder of the run")
    parser.add_argument(
        "--compile_for",
        default="",
        metavar="SLICE",
        help="run nothing: compile the steps for a TPU slice, such as v5e:4x4 or v4-8",
    )
    parser.add_argument(
        "--profile", default="", metavar="START:STOP", help="write a profile of these steps"
    )
    try:
        args, unknown = parser.parse_known_args([a for a in argv if not a.startswith("--config.")])
    except argparse.ArgumentError as e:
        raise ConfigError(str(e)) from e
    if unknown:
        known = ["--config", "--workdir", "--compile_for", "--profile", "--config.KEY"]
        raise ConfigError(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    if not args.config:
        raise ConfigError("no config given: pass --config=NAME.py, such as --config=quickstart.py")
    return args


def parse(argv: Sequence[str]) -> RunArguments:
    """Parse a command line.

    Raises:
      ConfigError: an unknown config, key or flag.
    """
    args = parse_flags(argv)
    config = configs.load_config(args.config)
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    configs.apply_overrides(config, overrides)
    if args.profile:
        if config.get("job", "edit") != "edit":
            raise ConfigError(f"--profile: only editing runs have it, not job {config.job!r}")
        config.train.profile_steps = parse_profile(args.profile)
    name, _, variant = args.config.partition(":")
    stem = Path(name).stem + (f"-{variant}" if variant else "")
    return RunArguments(config, args.workdir or f"runs/{stem}", args.config)


def parse_profile(text: str) -> tuple[int, int]:
    """Return the (START, STOP) of "START:STOP".

    Raises:
      ConfigError: it is something else, or START is not from 1 to STOP.
    """
    parts = text.split(":")
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        start, stop = map(int, parts)
        if 1 <= start <= stop:
            return start, stop
    raise ConfigError(
        f"--profile={text}: give the first and the last step, such as --profile=20:25"
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 for a finished run, 2 for an error that the message explains.

    143 after a stop request (SIGTERM, or a pod's preemption notice), with the state saved. With
    --compile_for: 0 if all steps fit the slice, 1 if not.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports each step without a score
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _run(parse(argv), parse_flags(argv).compile_for)
    except MendError as e:
        status = report_error(e)
        _end_other_processes(e)
        return status
    except Exception as e:
        _end_other_processes(e)
        raise


def _run(arguments: RunArguments, target_slice: str) -> int:
    """Run the job of a config, or compile it for a slice; return the exit status."""
    config = arguments.config
    job = config.get("job", "edit")
    if job not in JOBS:
        raise ConfigError(f"job is {job!r}{did_you_mean(str(job), [*JOBS])}; known: {[*JOBS]}")
    if target_slice:
        if job != "edit":
            raise ConfigError(f"--compile_for: only editing runs are compiled, not job {job!r}")
        return 0 if write_compile_report(config, arguments.workdir, target_slice) else 1
    if job not in MULTI_RUN_JOBS:
        from mend_jax.io.compile_cache import keep_compiled_programs
        from mend_jax.parallel import distributed  # imports jax, which takes seconds

        distributed.initialize()
        keep_compiled_programs()
    module, function = JOBS[job]
    getattr(importlib.import_module(module), function)(*arguments)
    return 0


def _end_other_processes(error: Exception) -> None:
    """Let the other processes of the run, if any, notice that this one cannot continue."""
    if "mend_jax.parallel.distributed" in sys.modules:
        sys.modules["mend_jax.parallel.distributed"].exit_if_alone(error)


def write_compile_report(config: ConfigDict, workdir: str, target_slice: str) -> bool:
    """Write DIR/compile_<topology>.json; return whether all steps fit the slice."""
    from mend_jax.tpu.slices import parse_slice

    chips = parse_slice(target_slice)
    import jax

    jax.config.update("jax_platforms", "cpu")  # the compiler must not look for a TPU
    from mend_jax.io.files import write_json
    from mend_jax.parallel.distributed import print_once
    from mend_jax.tpu import compile_steps

    report = compile_steps.compile_for(config, chips, print_once)
    path = Path(workdir) / f"compile_{chips.shape_name}.json"
    write_json(path, report)
    print_once(f"report: {path}")
    return all(report[name]["fits"] for name in compile_steps.STEPS)
