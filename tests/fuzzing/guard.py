"""Read one input under limits of time and memory, and classify the outcome."""

from __future__ import annotations

import contextlib
import faulthandler
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mend_jax.errors import MendError

SECONDS = 5.0  # processor time for one input of at most 128 KB
HARD_SECONDS = 60.0  # wall time, also of waiting and of native code; then the process ends
MEMORY = 1 << 30  # bytes of additional address space: length fields must not be trusted
GROWTH = 256 << 20  # bytes by which one input may raise the peak memory

READ, REFUSED, FAULT = "read", "refused", "fault"


class TooSlow(BaseException):
    """Reading needed more than `SECONDS`. A BaseException, so that no reader catches it."""


class Outcome(NamedTuple):
    """The outcome of an input: `READ`, `REFUSED` by a named error, or `FAULT` with a report."""

    kind: str
    text: str = ""
    seconds: float = 0.0
    grown: int = 0


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Limit this process to `MEMORY` bytes beyond what it uses now."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    pages = int(statm.read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(read: Callable[[], None]) -> Outcome:
    """Read, and return the outcome."""
    before, start = _peak_memory(), time.process_time()
    try:
        with _timed():
            read()
        kind, text = READ, ""
    except MendError as e:
        kind, text = (
            (REFUSED, "") if str(e).strip() else (FAULT, f"{type(e).__name__} has no message")
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # Rust panics do not derive from Exception
        kind, text = FAULT, traceback.format_exc()
    seconds, grown = time.process_time() - start, _peak_memory() - before
    if kind != FAULT and grown > GROWTH:
        kind, text = FAULT, f"needed {grown >> 20} MiB of memory"
    return Outcome(kind, text, seconds, grown)


def _peak_memory() -> int:
    """Return this process' peak memory; on Linux, getrusage would include its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def _timed() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooSlow(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(HARD_SECONDS, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)
