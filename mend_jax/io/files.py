"""Paths of local folders and object stores, and files that are written atomically.

A run folder may be local, or in an object store at an address with a scheme (gs://...). An object
appears whole when it is written, and cannot be appended to.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mend_jax.errors import ConfigError, OutputError


def as_path(where: str | os.PathLike[str]) -> Any:
    """Return a pathlib.Path, or for an address with a scheme an etils path, with the same methods.

    Raises:
      ConfigError: an unknown scheme.
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
    """Return whether a path of `as_path` is in an object store."""
    return not isinstance(path, Path)


@contextlib.contextmanager
def named_os_errors(path: Any) -> Iterator[None]:
    """Turn the file system's errors in this block into an OutputError that says what to do."""
    try:
        yield
    except OSError as e:
        raise OutputError(
            f"{path} cannot be written ({e}): make room there, or make it writable, and run the "
            "same command again"
        ) from e


def write_bytes(path: Any, data: bytes) -> None:
    """Write a whole file or nothing.

    Local: a new file beside it is flushed to disk and renamed over it. Remote: the store shows an
    object only when it is complete.

    Raises:
      OutputError: the file cannot be written.
    """
    with named_os_errors(path):
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
    """Write UTF-8 text; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Any, value: Any) -> None:
    """Write indented JSON with null for numbers that are not finite; see `write_bytes`."""
    write_text(path, json.dumps(replace_non_finite(value), indent=2, allow_nan=False) + "\n")


def replace_non_finite(value: Any) -> Any:
    """Return the value with None for every number that is not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {k: replace_non_finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
