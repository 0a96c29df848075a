"""Many processes as one program: joining, agreeing, gathering, and stopping together.

A run is started by the same command on every host. Process 0 writes logs and reports; checkpoints
are written by all. With one process everything here costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mend_jax.errors import ConfigError, MendError, PeerError, Preempted, TrainingError

AUTO = "MEND_DISTRIBUTED"
COORDINATOR, COUNT, INDEX = "MEND_COORDINATOR", "MEND_NUM_PROCESSES", "MEND_PROCESS_ID"
LOST_AFTER = "MEND_LOST_AFTER"


def initialize() -> None:
    """Joins this process to the others, once; must be the first use of JAX.

    With MEND_DISTRIBUTED=auto, which the launch scripts set on TPU pod slices, JAX finds the hosts
    by itself; so it does on GKE without it. Elsewhere the environment tells: MEND_COORDINATOR
    (host:port of process 0), MEND_NUM_PROCESSES and MEND_PROCESS_ID, as launch/local_pod.sh sets
    them. Without any of these the program is one process.

    A process that is not heard of for MEND_LOST_AFTER seconds (default 100) counts as lost, and the
    others end. Most often they end sooner, when they miss it in a collective.

    Raises:
      ConfigError: some of the three are missing or are not numbers, or process 0 is not reached.
    """
    if jax.distributed.is_initialized():
        return
    lost_after = os.environ.get(LOST_AFTER) or "100"
    if not lost_after.isdecimal() or int(lost_after) < 1:
        raise ConfigError(f"{LOST_AFTER} is {lost_after!r}: give a whole number of seconds")
    patience = {"heartbeat_timeout_seconds": int(lost_after)}
    found = {name: os.environ.get(name) for name in (COORDINATOR, COUNT, INDEX)}
    if any(found.values()):
        missing = [name for name, value in found.items() if not value]
        if missing:
            raise ConfigError(f"{missing} not set, though others are: set all of {list(found)}")
        try:
            count, index = int(found[COUNT]), int(found[INDEX])
        except ValueError as e:
            raise ConfigError(f"{COUNT} and {INDEX} must be whole numbers: {e}") from e
        if not 0 <= index < count:
            raise ConfigError(f"{INDEX} is {index}: give 0 to {count - 1}")
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            jax.distributed.initialize(found[COORDINATOR], count, index, **patience)
        except RuntimeError as e:
            raise ConfigError(
                f"process {index} of {count} cannot join at {found[COORDINATOR]}: "
                f"{_first_line(e)}; start all {count} processes, and give them the address of "
                f"process 0 in {COORDINATOR}"
            ) from e
    elif os.environ.get(AUTO) == "auto" or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize(**patience)


def is_writer() -> bool:
    """Whether this process writes what there is one of: logs, results, the report."""
    return jax.process_index() == 0


def print_once(text: str) -> None:
    """Print a line to stderr, on process 0 only."""
    if is_writer():
        print(text, file=sys.stderr, flush=True)


def gather(tree: Any) -> Any:
    """Global arrays, or each process's part of one, as whole numpy arrays on every process.

    numpy arrays are parts (stacked along the first axis in the order of the processes).
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(
        np.asarray, multihost_utils.process_allgather(tree, tiled=True)
    )  # fmt: skip


def require_agreement(what: str, lines: list[str]) -> None:
    """Stops every process where one of them has other lines than process 0.

    Args:
      what: what the lines describe, e.g. "config".
      lines: one statement each, compared by position.

    Raises:
      ConfigError: on all processes; names each process that differs, and on those that do, how.
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
    error = ConfigError(
        f"the {what} of process {', '.join(map(str, others))} differs from that of process 0{how}; "
        "start the same code with the same flags on every host"
    )
    error.everywhere = True
    raise error


@contextlib.contextmanager
def fail_together(what: str) -> Iterator[None]:
    """A block that all processes run, or none goes on from: the error of one ends it for all.

    Inside there must be no communication but further `fail_together` blocks and what uses them.

    Args:
      what: what the block does, e.g. "loading base and data".

    Raises:
      PeerError: on the processes whose own block was fine; names those that failed, and how.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except Exception as e:
        if not getattr(e, "everywhere", False):
            _failures(f"{type(e).__name__}: {e}")
            e.everywhere = True
        raise
    failures = {i: text for i, text in enumerate(_failures("")) if text}
    if failures:
        told = "; ".join(f"process {i}: {text}" for i, text in failures.items())
        error = PeerError(f"{what} failed on {len(failures)} of {jax.process_count()}: {told}")
        error.everywhere = True
        raise error


_LONGEST = 2000  # bytes of an error that the others are told


def _failures(mine: str) -> list[str]:
    """Each process's error, or ""."""
    data = np.zeros(_LONGEST, np.uint8)
    text = np.frombuffer(mine.encode()[:_LONGEST], np.uint8)
    data[: len(text)] = text
    everyone = np.asarray(multihost_utils.process_allgather(data))
    return [bytes(one).rstrip(b"\0").decode(errors="replace") for one in everyone]


def broadcast_from_writer(what: str, compute: Callable[[], str]) -> str:
    """A text that process 0 computes, on every process.

    Raises:
      PeerError: process 0 could not; see `fail_together`.
    """
    with fail_together(what):
        text = compute() if is_writer() else ""
    return text if jax.process_count() == 1 else _broadcast_text(text)


def exit_if_alone(error: BaseException) -> None:
    """Ends this process at once where only it knows of the error, so that the others notice.

    An orderly end waits for the others, and they wait for this one in their next collective. With
    one process, or an error that all have, it returns.
    """
    everyones = isinstance(error, (Preempted, TrainingError)) or getattr(error, "everywhere", False)
    if not jax.distributed.is_initialized() or everyones:
        return
    if not isinstance(error, MendError):
        traceback.print_exception(error)
    why = "the others cannot go on without it"
    if isinstance(error, jax.errors.JaxRuntimeError):
        why = (
            "perhaps another was lost: see the end of its log. Start all with the same command "
            "again: the run goes on from its last checkpoint"
        )
    here = f"process {jax.process_index()} of {jax.process_count()}"
    print(f"{here} ends; {why}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(error.exit_status if isinstance(error, MendError) else 1)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _broadcast_text(text: str) -> str:
    """The text of process 0, on every process."""
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(text.encode()), np.int32)))
    data = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        data = np.frombuffer(text.encode(), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(data))).decode()


def source_digests() -> list[str]:
    """`path digest` of every source file of the library."""
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
