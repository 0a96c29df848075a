"""metrics.jsonl and its like: one JSON object a line."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from mend_jax.io.files import is_remote, named_os_errors, write_bytes, write_text
from mend_jax.io.json_values import matches_type, parse_json


class JsonLines:
    """metrics.jsonl: append-only, one JSON object a line, each with a `step`.

    Only one of many processes is the `writer`; for the others appending does nothing. An object of
    a remote store cannot be appended to: there lines are held here and the whole file is written
    anew by `flush`, which training calls before each checkpoint, so that a resume finds every line
    up to its step.
    """

    def __init__(self, path: Any, writer: bool = True) -> None:
        self.path, self.writer = path, writer
        self.held: list[dict[str, Any]] | None = None  # all lines, where the file is remote

    def rewind(self, step: int) -> None:
        """Forgets lines after `step` (and a half-written last line), for an exact resume.

        Where more than the last line is damaged the file is kept as NAME.damaged, and that is told.
        """
        data = self._bytes()
        lines = _whole_lines(data)
        if self.writer and data.count(b"\n") > len(lines):
            kept = self.path.with_name(f"{self.path.name}.damaged")
            write_bytes(kept, data)
            print(
                f"{self.path} is damaged at line {len(lines) + 1}: what follows is in {kept}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        self.rewrite([x for x in lines if matches_type(x.get("step"), float) and x["step"] <= step])

    def rewrite(self, lines: list[dict[str, Any]]) -> None:
        """Begins anew with these lines."""
        self.held = lines if is_remote(self.path) else None
        self._write(lines)

    def flush(self) -> None:
        """After it the file holds all lines, also where the machine then loses power."""
        if self.writer and self.held is not None:
            self._write(self.held)
        elif self.writer and self.path.exists():
            with named_os_errors(self.path), self.path.open("rb") as f:
                os.fsync(f.fileno())

    def _write(self, lines: list[dict[str, Any]]) -> None:
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def append(self, line: dict[str, Any]) -> None:
        if not self.writer:
            return
        if is_remote(self.path):
            self.held = [*(self.read() if self.held is None else self.held), line]
            return
        with named_os_errors(self.path), self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Every line up to the first that is not whole."""
        return _whole_lines(self._bytes())

    def _bytes(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""


def _whole_lines(data: bytes) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for text in data.removesuffix(b"\n").split(b"\n"):
        try:
            line = parse_json(text)
        except ValueError:
            break  # cut off while it was written; what follows is not ours
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines
