"""Locks between processes on one machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(
    path: Path, *, shared: bool = False, wait: bool = True, best_effort: bool = False
) -> Iterator[None]:
    """Hold a lock on a file or a folder. The system frees it when the process ends, in any way.

    Args:
      path: a folder, or a file, which is created unless `shared`.
      shared: hold it together with others that only read; neither the file nor its disk needs to be
        writable.
      wait: until others have released it.
      best_effort: continue without a lock where the file cannot be opened or the file system has no
        locks.

    Raises:
      BlockingIOError: another process holds it, and `wait` is False.
      OSError: there can be no lock, and `best_effort` is False.
    """
    flags = os.O_RDONLY if shared or path.is_dir() else os.O_RDWR | os.O_CREAT
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with contextlib.ExitStack() as held:
        try:
            file = os.open(path, flags | os.O_CLOEXEC, 0o666)
            held.callback(os.close, file)
            fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            if not best_effort:
                raise
        yield
