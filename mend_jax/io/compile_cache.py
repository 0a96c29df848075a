"""Compiled programs on disk, so that the next process need not compile them again."""

from __future__ import annotations

import os

import jax

from mend_jax.io.package_cache import cache_dir

_LARGEST_BYTES = 2 * 2**30  # the programs that were not used for longest are removed beyond that
_LEAST_SECONDS = 0.2  # faster compilations are not worth a file


def keep_compiled_programs() -> None:
    """Keep what XLA compiles in this process in `<cache>/compiled`, for later processes.

    JAX's persistent cache; it may be shared by processes. Nothing changes where the user has set
    JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE.
    """
    if {"JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"} & os.environ.keys():
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_compilation_cache_max_size", _LARGEST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
