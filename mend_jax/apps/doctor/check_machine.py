"""Whether the programs of a run fit the machine's memory, and its checkpoints the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from mend_jax.apps.doctor.findings import OK, Finding, judged, skipped
from mend_jax.io.files import as_path, is_remote
from mend_jax.tpu.memory import program_bytes
from mend_jax.tpu.slices import GIB
from mend_jax.training.run_folder import prepare_folder, require_disk_space

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def check_memory(what: str, lowered: Any) -> Finding:
    """What a program of the run needs beside what is loaded already.

    It is compiled here, once: the run that calls the same program finds it so.
    """
    parts, free = program_bytes(lowered.compile()), free_memory()
    needed = sum(parts.values()) - parts["arguments"]
    if free is None:
        return skipped("memory", "this machine does not tell how much memory is free")
    return judged(
        "memory", needed <= free,
        f"{what} takes {needed / GIB:.2f} GiB beside what is loaded",
        f"at most the {free / GIB:.2f} GiB that are free",
        "lower train.edits_per_step and eval.edits_per_step, or set model.logits_chunk, "
        "model.text_chunk or model.remat, or a smaller editor.options.rank",
    )  # fmt: skip


def free_memory() -> int | None:
    """Bytes that are free on the accelerator; without one in this machine or its container."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    found = [n for n in (_of_machine(), _of_container()) if n is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    for line in _read(MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _of_container() -> int | None:
    """What a control group of Linux leaves, where it limits memory."""
    limit, used = (_read(CGROUP / f"memory.{name}").strip() for name in ("max", "current"))
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    held = dict(line.split() for line in _read(CGROUP / "memory.stat").splitlines())
    return int(limit) - int(used) + int(held.get("inactive_file", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def check_workdir(workdir: str | Path, state: Any) -> Finding:
    """Whether the folder can be written, and has room for the checkpoints of a training state.

    Folders that were not there are taken away again.

    Raises:
      ConfigError: it cannot be written, or has no room for the checkpoints.
    """
    where = as_path(workdir)
    new = [] if is_remote(where) else [f for f in (where, *where.parents) if not f.exists()]
    prepare_folder(workdir)
    try:
        require_disk_space(where, state, 0)
    finally:
        for folder in new:
            folder.rmdir()
    return Finding("workdir", OK, f"{where} can be written and has room for the checkpoints")
