"""Runs as processes of their own, one after the other: what several seeds and grids are made of.

A process of its own gives a run an honest peak memory, and a run that crashes takes no other with
it. The program that starts them computes nothing itself and leaves the accelerators to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import jax

from mend_jax.apps import run_command
from mend_jax.errors import ConfigError, MendError, Preempted
from mend_jax.io.files import is_remote
from mend_jax.io.package_cache import cache_dir
from mend_jax.io.progress import format_duration
from mend_jax.parallel import distributed
from mend_jax.training import checkpoints
from mend_jax.training import config as configs
from mend_jax.training.run_folder import read_results

LOG = "log.txt"
_TAIL = 8  # lines of the log of a run that failed


@dataclasses.dataclass(frozen=True)
class RunProcess:
    """One run of `python -m mend_jax.main`.

    Attributes:
      name: what messages call it.
      flags: its command line but for --workdir.
      folder: where it lives, a path of `io.files.as_path`.
      after: the run that must be finished before it starts, or None.
    """

    name: str
    flags: tuple[str, ...]
    folder: Any
    after: RunProcess | None = None

    def results(self) -> dict[str, Any] | None:
        """What it left, or None where it is not finished.

        Raises:
          CheckpointError: the folder holds the results of another config, or damaged ones.
        """
        found = read_results(self.folder)
        if found is not None:
            config, _, _ = run_command.parse(self.flags)
            mine = {"config": configs.to_json_dict(config)}
            checkpoints.refuse_other_run({"config": found["config"]}, mine, self.folder)
        return found


def leave_accelerators_to_runs() -> None:
    """Leaves the accelerators to the runs; the first thing that a program of several runs does.

    Raises:
      ConfigError: this is one of several processes, or hosts, that make up one program.
    """
    names = (distributed.COORDINATOR, distributed.COUNT, distributed.INDEX)
    if any(map(os.environ.get, names)) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        raise ConfigError(
            "several runs are started one after the other by one process, and here are several: "
            "start each run by itself, with a --workdir of its own"
        )
    jax.config.update("jax_platforms", "cpu")


def run_all(runs: Sequence[RunProcess], after: Callable[[], None] = lambda: None) -> dict[str, str]:
    """Starts every run that is not finished, each when the one before it has ended.

    Their output goes to FOLDER/log.txt (to ours where FOLDER is in an object store). A run that
    fails is told, and the others go on, but for those that come `after` it. SIGTERM is passed on to
    the run in progress.

    Args:
      after: called after each run.

    Returns:
      The end of the log of each run that failed, by name.

    Raises:
      CheckpointError: before anything runs: a folder holds another run.
      Preempted: SIGTERM came.
    """
    results = {run.name: run.results() for run in runs}
    took = [r["seconds_total"] for r in results.values() if r and "seconds_total" in r]
    todo = [run for run in runs if results[run.name] is None]
    failed = {}
    with distributed.StopRequest() as stop:
        for number, run in enumerate(todo, len(runs) - len(todo) + 1):
            if run.after is not None and run.after.results() is None:
                failed[run.name] = f"not started: it begins with {run.after.name}, not finished"
                print_status(f"{run.name}: {failed[run.name]}")
                after()
                continue
            left = (
                format_duration(statistics.mean(took) * (len(runs) - number + 1)) if took else "?"
            )
            print_status(f"{number}/{len(runs)} {run.name}: {run.folder}; {left} left")
            began = time.monotonic()
            status = _run(run, stop)
            if stop.between_steps():
                raise Preempted(
                    f"asked to stop in {run.name}, which has saved its state; run the same command "
                    "again to go on"
                )
            if status == 0 and run.results() is not None:
                took.append(time.monotonic() - began)
            else:
                failed[run.name] = f"exit status {status}\n{_tail(run)}"
                print_status(f"{run.name} failed: {failed[run.name]}")
            after()
    return failed


def raise_failed_runs(failed: dict[str, str], n: int) -> None:
    """Raises a MendError that names the runs which failed, if there are any of the n."""
    if failed:
        raise MendError(
            f"{len(failed)} of {n} runs failed: {', '.join(failed)} (see above, and their "
            f"{LOG}); the same command tries them again"
        )


def _run(run: RunProcess, stop: distributed.StopRequest) -> int:
    """The exit status of one run, which a request to stop is passed on to."""
    line = [sys.executable, "-m", "mend_jax.main", *run.flags, f"--workdir={run.folder}"]
    with _log_of(run) as log:
        if log is not None:
            log.write(f"$ {shlex.join(line)}\n")
            log.flush()
        process = subprocess.Popen(
            line, stdout=log, stderr=subprocess.STDOUT if log else None, env=_environment()
        )
        told = False
        try:
            while process.poll() is None:
                if stop.between_steps() and not told:
                    process.terminate()
                    told = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        finally:
            if process.poll() is None:  # an exception, such as of Ctrl-C
                process.terminate()
                process.wait()
        return process.returncode


def _environment() -> dict[str, str]:
    """That of a run: programs that one run compiled are there for those after it.

    They lie below the cache folder, unless JAX_COMPILATION_CACHE_DIR names another place.
    """
    return {"JAX_COMPILATION_CACHE_DIR": str(cache_dir() / "compiled")} | dict(os.environ)


@contextlib.contextmanager
def _log_of(run: RunProcess) -> Iterator[IO[str] | None]:
    """The log to append to; locked as long as it is open here or in the run's process.

    So a run whose starter was killed is not started a second time beside itself.
    """
    if is_remote(run.folder):
        yield None
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / LOG).open("a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ConfigError(
                f"{run.folder} is in use: {run.name} still runs in another process; wait for its "
                "end, or end it"
            ) from e
        yield log


def _tail(run: RunProcess) -> str:
    if is_remote(run.folder):
        return "its output is above"
    text = (run.folder / LOG).read_text(encoding="utf-8", errors="replace")
    return "\n".join(f"  | {line}" for line in text.splitlines()[-_TAIL:] if line.strip())


def print_status(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
