"""The folder that a run lives in: made, probed, and asked whether the run is finished."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import jax

from mend_jax import distributed
from mend_jax.errors import CheckpointError, ConfigError
from mend_jax.writers import as_path, write_text


def prepare(workdir: str | Path) -> Any:
    """Makes the folder and refuses one that cannot be used, before hours are spent.

    Returns:
      Its path; see `writers.as_path`.

    Raises:
      ConfigError: it cannot be written, or not all processes see the same folder.
    """
    probe = f".writable-{secrets.token_hex(4)}"
    probe = distributed.from_writer("naming a file", lambda: probe)
    with distributed.together("writing to --workdir"):
        workdir = as_path(workdir)
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            mine = workdir / f"{probe}-{jax.process_index()}"
            write_text(mine, "")
        except ImportError as e:
            raise ConfigError(
                f"--workdir {workdir}: a library for that store is missing ({e}); for gs:// "
                "`pip install gcsfs`, for s3:// `pip install s3fs`, on every host"
            ) from e
        except Exception as e:  # each store has its own
            raise ConfigError(f"--workdir {workdir} cannot be written ({e}); choose another") from e
    with distributed.together("looking at --workdir"):
        if not (workdir / f"{probe}-0").exists():
            raise ConfigError(
                f"--workdir {workdir} is another folder here than for process 0: give one that "
                "all hosts share, such as gs://BUCKET/NAME"
            )
    distributed.agree("--workdir", [])  # all have looked
    mine.unlink()
    return workdir


def read_results(workdir: Any) -> dict[str, Any] | None:
    """results.json of a finished run, or None."""
    path = workdir / "results.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckpointError(f"{path} is damaged ({e}); delete it to evaluate again") from e
