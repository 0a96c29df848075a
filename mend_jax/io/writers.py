"""Where numbers go: whole files, one JSON line a log step, and a progress line for people.

A run may live in a local folder, or in an object store under an address with a scheme (gs://...).
There a file appears whole when it is written, and cannot be appended to.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mend_jax.errors import ConfigError, OutputError
from mend_jax.io.json_values import matches_type, parse_json


def as_path(where: str | os.PathLike[str]) -> Any:
    """A pathlib.Path, or for an address with a scheme the same of an object store.

    Raises:
      ConfigError: a scheme that is not known.
    """
    text = os.fspath(where)
    if "://" not in text:
        return Path(text)
    from etils import epath

    try:
        return epath.Path(text)
    except KeyError as e:
        raise ConfigError(
            f"{text}: cannot use addresses that begin with {e.args[0]}; give a folder, or one of "
            "gs://, s3://, az://, hf://"
        ) from e


def is_remote(path: Any) -> bool:
    """Whether a path of `as_path` lies in an object store."""
    return not isinstance(path, Path)


@contextlib.contextmanager
def _named(path: Any) -> Iterator[None]:
    """Inside it what the file system says has a name that tells what to do."""
    try:
        yield
    except OSError as e:
        raise OutputError(
            f"{path} cannot be written ({e}): make room there, or see that it can be written, and "
            "run the same command again"
        ) from e


def write_bytes(path: Any, data: bytes) -> None:
    """Writes a whole file or nothing.

    Local: a new file beside it, flushed to disk, renamed over it. Remote: an object, which its
    store shows only when all of it is there.

    Raises:
      OutputError: it cannot be written.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_remote(path):
            path.write_bytes(data)
        else:
            _replace(path, data)


def _replace(path: Path, data: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with scratch.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def write_text(path: Any, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Any, value: Any) -> None:
    """`write_text` of indented JSON; numbers that are not finite, which JSON lacks, become null."""
    write_text(path, json.dumps(replace_non_finite(value), indent=2, allow_nan=False) + "\n")


def replace_non_finite(value: Any) -> Any:
    """The value with None for every number that is not finite, for which JSON has no name."""
    if isinstance(value, dict):
        return {k: replace_non_finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
            with _named(self.path), self.path.open("rb") as f:
                os.fsync(f.fileno())

    def _write(self, lines: list[dict[str, Any]]) -> None:
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def append(self, line: dict[str, Any]) -> None:
        if not self.writer:
            return
        if is_remote(self.path):
            self.held = [*(self.read() if self.held is None else self.held), line]
            return
        with _named(self.path), self.path.open("a", encoding="utf-8") as f:
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


class Progress:
    """A line with rate and time left, rewritten in place on a terminal, else printed now and then.

    Args:
      what: what is counted, e.g. "train".
      total: how many steps there will be at the most.
      start: steps that were done before (a resumed run).
      every_s: seconds between lines where output is not a terminal.
      writer: whether this process prints; one of many does.
    """

    def __init__(
        self, what: str, total: int, start: int = 0, every_s: float = 15.0, writer: bool = True
    ) -> None:
        self.writer = writer
        self.what, self.total, self.first = what, total, start
        self.began = self.shown = time.monotonic()
        self.every_s = 0.5 if sys.stderr.isatty() else every_s

    def update(self, done: int, note: str = "", force: bool = False) -> None:
        now = time.monotonic()
        if not self.writer:
            return
        if not force and now - self.shown < self.every_s:
            return
        self.shown = now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        left = format_duration((self.total - done) / rate) if rate > 0 else "?"
        line = f"{self.what} {done}/{self.total}  {rate:.2f}/s  {left} left  {note}"
        end = "\r\033[K" if sys.stderr.isatty() and done < self.total else "\n"
        print(line, end=end, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
