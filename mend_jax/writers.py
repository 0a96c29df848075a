"""Where numbers go: one JSON line a log step, and a progress line for people."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file or nothing: a new file beside it, flushed to disk, renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with scratch.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON; numbers that are not finite, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class JsonLines:
    """metrics.jsonl: append-only, one JSON object a line, each with a `step`.

    Only one of many processes is the `writer`; for the others appending does nothing.
    """

    def __init__(self, path: Path, writer: bool = True) -> None:
        self.path, self.writer = path, writer

    def rewind(self, step: int) -> None:
        """Forgets lines after `step` (and a half-written last line), for an exact resume."""
        kept = [line for line in self.read() if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def append(self, line: dict[str, Any]) -> None:
        if not self.writer:
            return
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Every whole line."""
        lines = []
        if self.path.exists():
            for text in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(text))
                except json.JSONDecodeError:
                    break  # cut off while it was written; what follows is not ours
        return lines


class Progress:
    """A line with rate and time left, rewritten in place on a terminal, else printed now and then.

    Args:
      what: what is counted, e.g. "train".
      total: how many steps there will be at the most.
      start: steps that were done before (a resumed run).
      every_s: seconds between lines where output is not a terminal.
    """

    def __init__(self, what: str, total: int, start: int = 0, every_s: float = 15.0) -> None:
        self.what, self.total, self.first = what, total, start
        self.began = self.shown = time.monotonic()
        self.every_s = 0.5 if sys.stderr.isatty() else every_s

    def update(self, done: int, note: str = "", force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.shown < self.every_s:
            return
        self.shown = now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        left = duration((self.total - done) / rate) if rate > 0 else "?"
        line = f"{self.what} {done}/{self.total}  {rate:.2f}/s  {left} left  {note}"
        end = "\r\033[K" if sys.stderr.isatty() and done < self.total else "\n"
        print(line, end=end, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
