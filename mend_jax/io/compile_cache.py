"""Compiled programs on disk, so that the next process need not compile them again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import jax

from mend_jax.io.package_cache import cache_dir

_LARGEST_BYTES = 2 * 2**30  # the programs that were not used for longest are removed beyond that
_LEAST_SECONDS = 0.2  # faster compilations are not worth a file
_PROGRAM, _LAST_USE = "-cache", "-atime"  # the two files of a program, in JAX's words
_BEING_WRITTEN_SECONDS = 60.0


def keep_compiled_programs() -> None:
    """Keep what XLA compiles in this process in `<cache>/compiled`, for later processes.

    JAX's persistent cache; it may be shared by processes. Nothing changes where the user has set
    JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE.
    """
    if {"JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"} & os.environ.keys():
        return
    folder = cache_dir() / "compiled"
    remove_half_written(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _LARGEST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


def remove_half_written(folder: Path) -> None:
    """Remove programs of which JAX wrote only the first of two files.

    A process that is killed in between leaves one, and then no process can add a program any more:
    JAX reads the second file of each when it looks for what to remove.
    """
    for program in folder.glob(f"*{_PROGRAM}"):
        last_use = program.with_name(program.name.removesuffix(_PROGRAM) + _LAST_USE)
        try:
            age = time.time() - program.stat().st_mtime
            if not last_use.exists() and age > _BEING_WRITTEN_SECONDS:
                program.unlink()
        except OSError:  # another process removed it, or it is not ours
            continue
