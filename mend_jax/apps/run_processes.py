"""Start runs as processes, one after another: the base of grids and of several seeds.

A process for each run measures its own peak memory, and a crash ends that run alone. The program
that starts them computes nothing, and leaves the accelerators to them.
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
from pathlib import Path
from typing import IO, Any

import jax

from mend_jax.apps import run_command
from mend_jax.errors import ConfigError, MendError, Preempted
from mend_jax.io.files import is_remote
from mend_jax.io.progress import format_duration
from mend_jax.parallel import distributed
from mend_jax.training.run_folder import read_finished_results

LOG = "log.txt"
_TAIL_LINES = 8  # of the log of a failed run


@dataclasses.dataclass(frozen=True)
class RunProcess:
    """One run of `python -m mend_jax.main`.

    Attributes:
      name: what messages call it.
      flags: its command line without --workdir.
      folder: its --workdir, a path of `io.files.as_path`.
      after: the run that must finish before it starts, or None.
    """

    name: str
    flags: tuple[str, ...]
    folder: Path
    after: RunProcess | None = None

    def results(self) -> dict[str, Any] | None:
        """Return its results, or None if it is not finished.

        Raises:
          CheckpointError: the folder has the results of another config, or damaged ones.
        """
        return read_finished_results(self.folder, lambda: run_command.parse(self.flags).config)


def leave_accelerators_to_runs() -> None:
    """Keep jax on the CPU; a program that starts several runs calls this first.

    Raises:
      ConfigError: this program is one of several processes or hosts.
    """
    variables = (distributed.COORDINATOR, distributed.COUNT, distributed.INDEX)
    if any(map(os.environ.get, variables)) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        raise ConfigError(
            "one process starts several runs one after another, but this is one of several "
            "processes: start each run by itself, with a --workdir of its own"
        )
    jax.config.update("jax_platforms", "cpu")


def run_all(
    runs: Sequence[RunProcess], after_each: Callable[[], object] = lambda: None
) -> dict[str, str]:
    """Run every unfinished run, one after another.

    Their output goes to FOLDER/log.txt (to ours if FOLDER is in an object store). A failed run is
    reported, and only the runs that come `after` it are not started. SIGTERM is passed on to the
    current run.

    Returns:
      The end of the log of each failed run, by name.

    Raises:
      CheckpointError: before any run starts: a folder has another run.
      Preempted: SIGTERM arrived.
    """
    results = {run.name: run.results() for run in runs}
    durations = [r["seconds_total"] for r in results.values() if r and "seconds_total" in r]
    unfinished = [run for run in runs if results[run.name] is None]
    failed: dict[str, str] = {}
    with distributed.StopRequest() as stop:
        for number, run in enumerate(unfinished, len(runs) - len(unfinished) + 1):
            left = "?"
            if durations:
                left = format_duration(statistics.mean(durations) * (len(runs) - number + 1))
            started = time.monotonic()
            message = f"{number}/{len(runs)} {run.name}: {run.folder}; {left} left"
            failure = _run_one(run, message, stop)
            if failure is None:
                durations.append(time.monotonic() - started)
            else:
                failed[run.name] = failure
                print_status(f"{run.name} failed: {failure}")
            after_each()
    return failed


def _run_one(run: RunProcess, message: str, stop: distributed.StopRequest) -> str | None:
    """Run a run to its end; return how it failed, or None."""
    if run.after is not None and run.after.results() is None:
        return f"not started: it begins with {run.after.name}, not finished"
    print_status(message)
    status = _run_process(run, stop)
    if stop.between_steps():
        raise Preempted(
            f"stop requested in {run.name}, which has saved its state; run the same command "
            "again to continue"
        )
    if status == 0 and run.results() is not None:
        return None
    return f"exit status {status}\n{_log_tail(run)}"


def raise_failed_runs(failed: dict[str, str], n_runs: int) -> None:
    """Raise a MendError that names the failed runs, if any."""
    if failed:
        raise MendError(
            f"{len(failed)} of {n_runs} runs failed: {', '.join(failed)} (see above, and their "
            f"{LOG}); the same command tries them again"
        )


def _run_process(run: RunProcess, stop: distributed.StopRequest) -> int:
    """Run a run's command, pass a stop request on, and return the exit status."""
    command = [sys.executable, "-m", "mend_jax.main", *run.flags, f"--workdir={run.folder}"]
    with _locked_log(run) as log:
        if log is not None:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT if log else None)
        stop_sent = False
        try:
            while process.poll() is None:
                if stop.between_steps() and not stop_sent:
                    process.terminate()
                    stop_sent = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        finally:
            if process.poll() is None:  # after an exception, such as of Ctrl-C
                process.terminate()
                process.wait()
        return process.returncode


@contextlib.contextmanager
def _locked_log(run: RunProcess) -> Iterator[IO[str] | None]:
    """Open the log to append to, locked while it is open here or in the run's process.

    The lock keeps a run whose starter was killed from being started a second time.
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
                f"{run.folder} is in use: {run.name} still runs in another process; wait for it, "
                "or end it"
            ) from e
        yield log


def _log_tail(run: RunProcess) -> str:
    if is_remote(run.folder):
        return "its output is above"
    text = (run.folder / LOG).read_text(encoding="utf-8", errors="replace")
    return "\n".join(f"  | {line}" for line in text.splitlines()[-_TAIL_LINES:] if line.strip())


def print_status(text: str) -> None:
    """Print to stderr at once."""
    print(text, file=sys.stderr, flush=True)
