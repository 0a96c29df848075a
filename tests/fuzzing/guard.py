"""One input, read under limits of time and memory, and what came of it."""

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

SECONDS = 5.0  # of this process' time that reading one input may take: each is at most 128 KB
HARD_SECONDS = 60.0  # by the clock, of waiting or of code that is not Python's: the process ends
MEMORY = 1 << 30  # bytes of address space above what the process has: no length field is believed
GROWTH = 256 << 20  # bytes by which one input may raise the most memory in use

READ, REFUSED, FAULT = "read", "refused", "fault"


class TooSlow(BaseException):
    """Reading took longer than `SECONDS`; no reader may catch it."""


class Outcome(NamedTuple):
    """What came of an input: `READ`, `REFUSED` by a named error, or `FAULT` and how it looks."""

    kind: str
    text: str = ""
    seconds: float = 0.0
    grown: int = 0


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Inside it this process can take no more than `MEMORY` beyond what it has."""
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


def judge(read: Callable[[], None]) -> Outcome:
    """Reads, and says what came of it."""
    before, start = _most(), time.process_time()
    try:
        with _timed():
            read()
        kind, text = READ, ""
    except MendError as e:
        kind, text = (
            (REFUSED, "") if str(e).strip() else (FAULT, f"{type(e).__name__} says nothing")
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # what Rust panics with is no Exception
        kind, text = FAULT, traceback.format_exc()
    seconds, grown = time.process_time() - start, _most() - before
    if kind != FAULT and grown > GROWTH:
        kind, text = FAULT, f"took {grown >> 20} MiB of memory"
    return Outcome(kind, text, seconds, grown)


def _most() -> int:
    """The most memory that this process had; getrusage's is that of its parent too, on Linux."""
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
