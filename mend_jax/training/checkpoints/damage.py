"""Damaged checkpoints: they are reported and moved aside; nothing is deleted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax

from mend_jax.errors import CheckpointError
from mend_jax.io import checksums
from mend_jax.io.files import write_json
from mend_jax.io.json_values import parse_json
from mend_jax.parallel.distributed import print_once

FOLDER = "checkpoints_damaged"
"""Folder beside that of checkpoints, for damaged steps."""


class DamageError(CheckpointError):
    """A step cannot be read, or is not what was saved."""


def repair_scores(directory: Path, score_name: str, read_only: bool) -> None:
    """Repair, or move aside, steps whose file of scores is damaged: no manager opens with them.

    Raises:
      CheckpointError: neither is possible (read-only, or several processes).
    """
    for path in sorted(directory.glob("*/metrics/metrics")):
        step = path.parent.parent
        try:
            score = json.loads(path.read_text(encoding="utf-8"))[score_name]
            intact = isinstance(score, float) and math.isfinite(score)
        except (ValueError, LookupError, TypeError):
            intact = False
        if intact or not step.name.isdigit():
            continue
        if (kept := _score_of_meta(step, score_name)) is not None and not read_only:
            print_once(f"{path} is damaged: the score is taken from the meta of step {step.name}")
            write_json(path, {score_name: kept})
            continue
        if read_only or jax.process_count() > 1:
            raise CheckpointError(f"{path} is damaged: move the folder {step} away")
        print_once(f"{path} is damaged: step {step.name} cannot be ranked")
        move_aside(directory, int(step.name))


def _score_of_meta(step: Path, score_name: str) -> float | None:
    """Return the score in a step's meta, or None where that is damaged."""
    try:
        meta = parse_json((step / "meta/metadata").read_bytes())
        signed = meta.pop("sha256")
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return None
    score = meta.get(score_name)
    return score if signed == checksums.json_checksum(meta) and isinstance(score, float) else None


def move_aside(directory: Path, step: int) -> None:
    """Move a step of DIR/checkpoints to `FOLDER` beside it."""
    folder = directory.parent / FOLDER
    folder.mkdir(exist_ok=True)
    names = (f"{step}", *(f"{step}-{i}" for i in range(2, 10**6)))
    free = next(folder / name for name in names if not (folder / name).exists())
    (directory / str(step)).rename(free)
    print_once(f"moved to {free}")
