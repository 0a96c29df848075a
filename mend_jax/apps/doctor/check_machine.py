"""Check that a run's programs fit the memory, and its checkpoints the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from mend_jax.apps.doctor.check_result import OK, CheckResult, make_result, skipped
from mend_jax.io.files import as_path, is_remote
from mend_jax.tpu.memory import program_bytes
from mend_jax.tpu.slices import GIB
from mend_jax.training.run_folder import prepare_folder, require_disk_space

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def check_memory(program: str, lowered: jax.stages.Lowered) -> CheckResult:
    """Check that a program fits beside what is loaded already.

    It is compiled here once: the run that calls the same program uses this compilation.
    """
    sizes, free = program_bytes(lowered.compile()), free_memory()
    needed = sum(sizes.values()) - sizes["arguments"]
    if free is None:
        return skipped("memory", "this machine does not report its free memory")
    return make_result(
        "memory", needed <= free,
        f"{program} needs {needed / GIB:.2f} GiB beside what is loaded",
        f"at most the {free / GIB:.2f} GiB that are free",
        "lower train.edits_per_step and eval.edits_per_step, or set model.logits_chunk, "
        "model.text_chunk or model.remat, or a smaller editor.options.rank",
    )  # fmt: skip


def free_memory() -> int | None:
    """Return the free bytes of the accelerator, or of this machine or its container."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    known = [n for n in (_free_in_machine(), _free_in_container()) if n is not None]
    return min(known, default=None)


def _free_in_machine() -> int | None:
    for line in _read(MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _free_in_container() -> int | None:
    """Return what the Linux control group leaves, if it limits memory."""
    limit, used = (_read(CGROUP / f"memory.{name}").strip() for name in ("max", "current"))
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    stat = dict(line.split() for line in _read(CGROUP / "memory.stat").splitlines())
    return int(limit) - int(used) + int(stat.get("inactive_file", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def check_workdir(workdir: str | Path, state: Any) -> CheckResult:
    """Check that the folder can be written and has room for the checkpoints of `state`.

    Folders that this creates are removed again.

    Raises:
      ConfigError: the folder cannot be written, or lacks room.
    """
    folder = as_path(workdir)
    created = [] if is_remote(folder) else [f for f in (folder, *folder.parents) if not f.exists()]
    prepare_folder(workdir)
    try:
        require_disk_space(folder, state, 0)
    finally:
        for path in created:
            path.rmdir()
    return CheckResult("workdir", OK, f"{folder} can be written and has room for the checkpoints")
