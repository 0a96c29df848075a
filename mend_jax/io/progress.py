"""A progress line with rate and remaining time."""

from __future__ import annotations

import sys
import time


class Progress:
    """A line with rate and remaining time: rewritten in place on a terminal, else one per interval.

    Args:
      what: the name of the work, e.g. "train".
      total: the number of steps, at most.
      start: steps already done (a resumed run).
      every_s: seconds between lines if the output is not a terminal.
      writer: whether this process prints; one of many does.
    """

    def __init__(
        self, what: str, total: int, start: int = 0, every_s: float = 15.0, writer: bool = True
    ) -> None:
        self.writer = writer
        self.what, self.total, self.first = what, total, start
        self.began = self.printed = time.monotonic()
        self.every_s = 0.5 if sys.stderr.isatty() else every_s

    def update(self, done: int, note: str = "", force: bool = False) -> None:
        """Print the line, unless the last one is too recent and `force` is not set."""
        now = time.monotonic()
        if not self.writer or (not force and now - self.printed < self.every_s):
            return
        self.printed = now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        left = format_duration((self.total - done) / rate) if rate > 0 else "?"
        line = f"{self.what} {done}/{self.total}  {rate:.2f}/s  {left} left  {note}"
        end = "\r\033[K" if sys.stderr.isatty() and done < self.total else "\n"
        print(line, end=end, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Return a duration as 1:02:03 or 2:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
