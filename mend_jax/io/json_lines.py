"""Files of one JSON object per line, such as metrics.jsonl."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from mend_jax.io.files import is_remote, named_os_errors, write_bytes, write_text
from mend_jax.io.json_values import matches_type, parse_json

Line = dict[str, Any]


class JsonLines:
    """An append-only file of JSON objects, one per line, each with a `step`.

    Only one of many processes is the `writer`; the others append nothing. An object of a remote
    store cannot be appended to: its lines are held in memory, and `flush` writes the whole file.
    Training calls it before each checkpoint, so that a resumed run finds every line up to its step.
    """

    def __init__(self, path: Any, writer: bool = True) -> None:
        self.path, self.writer = path, writer
        self._held: list[Line] | None = None  # all lines of a remote file

    def rewind(self, step: int) -> None:
        """Remove lines after `step` (and an incomplete last line), for an exact resume.

        If more than the last line is damaged, the file is kept as NAME.damaged, with a message.
        """
        data = self._bytes()
        lines = _whole_lines(data)
        if self.writer and data.count(b"\n") > len(lines):
            kept = self.path.with_name(f"{self.path.name}.damaged")
            write_bytes(kept, data)
            print(
                f"{self.path} is damaged at line {len(lines) + 1}: the rest is in {kept}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        self.rewrite([x for x in lines if matches_type(x.get("step"), float) and x["step"] <= step])

    def rewrite(self, lines: list[Line]) -> None:
        """Replace the file with these lines."""
        self._held = lines if is_remote(self.path) else None
        self._write(lines)

    def flush(self) -> None:
        """Write all lines to disk, so that they survive a loss of power."""
        if self.writer and self._held is not None:
            self._write(self._held)
        elif self.writer and self.path.exists():
            with named_os_errors(self.path), self.path.open("rb") as f:
                os.fsync(f.fileno())

    def _write(self, lines: list[Line]) -> None:
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def append(self, line: Line) -> None:
        """Add a line, if this process is the writer."""
        if not self.writer:
            return
        if is_remote(self.path):
            self._held = [*(self.read() if self._held is None else self._held), line]
            return
        with named_os_errors(self.path), self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")

    def read(self) -> list[Line]:
        """Return every line before the first damaged or incomplete one."""
        return _whole_lines(self._bytes())

    def _bytes(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""


def _whole_lines(data: bytes) -> list[Line]:
    lines: list[Line] = []
    for text in data.removesuffix(b"\n").split(b"\n"):
        try:
            line = parse_json(text)
        except ValueError:
            break  # cut off while it was written
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines
