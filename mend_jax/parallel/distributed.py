"""Many processes as one program: joining, agreeing, gathering, and stopping together.

The same command starts a run on every host. Process 0 writes logs and reports; all processes write
checkpoints. With a single process everything here costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mend_jax.errors import ConfigError, MendError, PeerError, Preempted, TrainingError

AUTO = "MEND_DISTRIBUTED"
COORDINATOR, COUNT, INDEX = "MEND_COORDINATOR", "MEND_NUM_PROCESSES", "MEND_PROCESS_ID"
LOST_AFTER = "MEND_LOST_AFTER"
WAIT_NOTICE_SECONDS = 5.0
"""Between two lines that say for whom this process waits."""

E = TypeVar("E", bound=BaseException)


def initialize() -> None:
    """Join this process to the others, once; must be the first use of JAX.

    With MEND_DISTRIBUTED=auto, which the launch scripts set on TPU pod slices, JAX finds the hosts
    itself, as it does on GKE. Elsewhere the environment defines them: MEND_COORDINATOR (host:port
    of process 0), MEND_NUM_PROCESSES and MEND_PROCESS_ID, which launch/local_pod.sh sets. Without
    any of these the program is one process.

    A process that has sent no heartbeat for MEND_LOST_AFTER seconds (default 100) counts as lost,
    and the others end. Usually they end sooner, when a collective misses it.

    Raises:
      ConfigError: some of the three are missing or not numbers, process 0 cannot be reached, or
        there is no pod slice to find.
    """
    if jax.distributed.is_initialized():
        return
    lost_after = os.environ.get(LOST_AFTER) or "100"
    if not lost_after.isdecimal() or int(lost_after) < 1:
        raise ConfigError(f"{LOST_AFTER} is {lost_after!r}: give a whole number of seconds")
    timeout = int(lost_after)
    settings = {name: os.environ.get(name, "") for name in (COORDINATOR, COUNT, INDEX)}
    if any(settings.values()):
        missing = [name for name, value in settings.items() if not value]
        if missing:
            raise ConfigError(f"{missing} not set, though others are: set all of {list(settings)}")
        try:
            count, index = int(settings[COUNT]), int(settings[INDEX])
        except ValueError as e:
            raise ConfigError(f"{COUNT} and {INDEX} must be whole numbers: {e}") from e
        if not 0 <= index < count:
            raise ConfigError(f"{INDEX} is {index}: give 0 to {count - 1}")
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            with _waiting_notices(index, count, settings[COORDINATOR]):
                jax.distributed.initialize(
                    settings[COORDINATOR], count, index, heartbeat_timeout_seconds=timeout
                )
        except RuntimeError as e:
            raise ConfigError(
                f"process {index} of {count} cannot join at {settings[COORDINATOR]}: "
                f"{_first_line(e)}; start all {count} processes, and give them the address of "
                f"process 0 in {COORDINATOR}"
            ) from e
    elif os.environ.get(AUTO) == "auto" or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=timeout)
        except (RuntimeError, ValueError) as e:
            asked = os.environ.get(AUTO)
            why = f"{AUTO}={asked}" if asked else "TPU_WORKER_HOSTNAMES names several hosts"
            raise ConfigError(
                f"{why}, but JAX finds no pod slice to join: {_first_line(e)}. On one host unset "
                f"it; elsewhere set {COORDINATOR}, {COUNT} and {INDEX}"
            ) from e


@contextlib.contextmanager
def _waiting_notices(index: int, count: int, coordinator: str) -> Iterator[None]:
    """Print every few seconds that this process waits for the others, until the block ends."""
    done, started = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(WAIT_NOTICE_SECONDS):
            waited = time.monotonic() - started
            whom = f"{count - 1} of {count} processes" if index == 0 else "process 0"
            print(
                f"process {index} waits for {whom} at {coordinator} ({waited:.0f} s)",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def is_writer() -> bool:
    """Return whether this process writes the single files of a run: logs, results, the report."""
    return jax.process_index() == 0


def print_once(text: str) -> None:
    """Print a line to stderr, on process 0 only."""
    if is_writer():
        print(text, file=sys.stderr, flush=True)


def gather(tree: Any) -> Any:
    """Return global arrays as whole numpy arrays on every process.

    A numpy array is one process's part; the parts are concatenated along the first axis in the
    order of the processes.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(
        np.asarray, multihost_utils.process_allgather(tree, tiled=True)
    )  # fmt: skip


def holds_everywhere(condition: bool) -> bool:
    """Return whether a condition holds in every process; all of them must ask."""
    return bool(gather(np.asarray([condition])).all())


def require_agreement(what: str, lines: list[str]) -> None:
    """Stop all processes if the lines of one differ from those of process 0.

    Args:
      what: what the lines describe, e.g. "config".
      lines: one statement each, compared by position.

    Raises:
      ConfigError: on all processes; it names those that differ, and on these also how.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256("\n".join(lines).encode()).digest()
    mine = np.frombuffer(digest, np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    others = [i for i, one in enumerate(everyone) if not np.array_equal(one, everyone[0])]
    if not others:
        return
    first = _broadcast_text("\n".join(lines)).splitlines()
    here = jax.process_index()
    theirs, ours = sorted(set(first) - set(lines)), sorted(set(lines) - set(first))
    how = f": process 0 has {theirs}, process {here} has {ours}" if here in others else ""
    raise _raised_everywhere(
        ConfigError(
            f"the {what} of process {', '.join(map(str, others))} differs from that of process "
            f"0{how}; start the same code with the same flags on every host"
        )
    )


@contextlib.contextmanager
def fail_together(what: str) -> Iterator[None]:
    """Run a block on all processes; an error on one of them ends it on all.

    The block must not communicate except by further `fail_together` blocks.

    Args:
      what: what the block does, e.g. "loading base and data".

    Raises:
      PeerError: on the processes whose own block succeeded; it names those that failed, and how.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except Exception as e:
        if not _is_everywhere(e):
            _exchange_errors(f"{type(e).__name__}: {e}")
            _raised_everywhere(e)
        raise
    errors = {i: text for i, text in enumerate(_exchange_errors("")) if text}
    if errors:
        texts = "; ".join(f"process {i}: {text}" for i, text in errors.items())
        raise _raised_everywhere(
            PeerError(f"{what} failed on {len(errors)} of {jax.process_count()}: {texts}")
        )


def _raised_everywhere(error: E) -> E:
    """Return the error, marked as one that all processes have."""
    vars(error)["everywhere"] = True
    return error


def _is_everywhere(error: BaseException) -> bool:
    return getattr(error, "everywhere", False)


_MOST_ERROR_BYTES = 2000


def _exchange_errors(mine: str) -> list[str]:
    """Return each process's error, or "" for those without."""
    data = np.zeros(_MOST_ERROR_BYTES, np.uint8)
    text = np.frombuffer(mine.encode()[:_MOST_ERROR_BYTES], np.uint8)
    data[: len(text)] = text
    everyone = np.asarray(multihost_utils.process_allgather(data))
    return [bytes(one).rstrip(b"\0").decode(errors="replace") for one in everyone]


def broadcast_from_writer(what: str, compute: Callable[[], str]) -> str:
    """Return, on every process, the text that process 0 computes.

    Raises:
      PeerError: process 0 failed; see `fail_together`.
    """
    with fail_together(what):
        text = compute() if is_writer() else ""
    return text if jax.process_count() == 1 else _broadcast_text(text)


def exit_if_alone(error: BaseException) -> None:
    """End this process at once if it alone has the error, so that the others notice.

    An orderly end would wait for the others, which wait for this process in their next collective.
    Returns if there is one process, or if all have the error.
    """
    shared = isinstance(error, (Preempted, TrainingError)) or _is_everywhere(error)
    if not jax.distributed.is_initialized() or shared:
        return
    if not isinstance(error, MendError):
        traceback.print_exception(error)
    why = "the others cannot continue without it"
    if isinstance(error, jax.errors.JaxRuntimeError):
        why = (
            "perhaps another was lost: see the end of its log. Start all with the same command "
            "again: the run continues from its last checkpoint"
        )
    here = f"process {jax.process_index()} of {jax.process_count()}"
    print(f"{here} ends; {why}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(error.exit_status if isinstance(error, MendError) else 1)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _broadcast_text(text: str) -> str:
    """Return the text of process 0 on every process."""
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(text.encode()), np.int32)))
    data = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        data = np.frombuffer(text.encode(), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(data))).decode()


def source_digests() -> list[str]:
    """Return a line `path digest` for every source file of the library."""
    root = Path(__file__).parents[1]
    return [
        f"{p.relative_to(root)} {hashlib.sha256(p.read_bytes()).hexdigest()[:12]}"
        for p in sorted(root.rglob("*.py"))
    ]


class StopRequest:
    """A request to stop this run: SIGTERM here, or a preemption notice to any host of a pod.

    A context manager that records SIGTERM instead of ending the process. On a pod, JAX's own
    preemption service handles the signal, and all processes see the request at the same step.
    Orbax passes the number of each saved step to the same service, so `after_step` needs numbers
    that continue from those.
    """

    def __init__(self) -> None:
        self._received = False
        self._previous_handler: Any = None

    def __enter__(self) -> StopRequest:
        try:
            if jax.process_count() == 1:
                self._previous_handler = signal.signal(signal.SIGTERM, self._receive)
        except ValueError:
            pass  # not the main thread: signals are the caller's business
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def _receive(self, *_: object) -> None:
        self._received = True

    def between_steps(self) -> bool:
        """Return whether to stop now; many processes agree at steps only, so there never."""
        return self._received

    def after_step(self, step: int) -> bool:
        """Return whether to stop after this step; the same answer on every process."""
        if jax.process_count() == 1:
            return self._received
        return bool(multihost_utils.reached_preemption_sync_point(step))
