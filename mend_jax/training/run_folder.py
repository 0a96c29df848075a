"""The folder of a run: its creation, its lock, its disk space, its config and results."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections

from mend_jax.errors import CheckpointError, ConfigError
from mend_jax.evaluation.results_migration import migrate_results
from mend_jax.io.file_locks import locked
from mend_jax.io.files import as_path, is_remote, write_text
from mend_jax.io.json_values import parse_json
from mend_jax.parallel import distributed
from mend_jax.training import checkpoints, config_check
from mend_jax.training import config as configs
from mend_jax.training.config_keys import with_added_keys

SCOPE_FILE = "scope.safetensors"
"""The learned scope of a run's edits."""
_BESIDE = 16 * 2**20  # bytes for logs, results, pictures and the report


def prepare_folder(workdir: str | Path) -> Path:
    """Create a run's folder, and check that it can be used.

    Returns:
      Its path, of a local folder or an object store; see `io.files.as_path`.

    Raises:
      ConfigError: it cannot be written, or processes see different folders.
    """
    probe = f".writable-{secrets.token_hex(4)}"
    probe = distributed.broadcast_from_writer("naming a file", lambda: probe)
    with distributed.fail_together("writing to --workdir"):
        folder = as_path(workdir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mine = folder / f"{probe}-{jax.process_index()}"
            write_text(mine, "")
        except ImportError as e:
            raise ConfigError(
                f"--workdir {workdir}: a library for that store is missing ({e}); for gs:// "
                "`pip install gcsfs`, for s3:// `pip install s3fs`, on every host"
            ) from e
        except Exception as e:  # each store has its own
            raise ConfigError(f"--workdir {workdir} cannot be written ({e}); choose another") from e
    with distributed.fail_together("checking --workdir"):
        if not (folder / f"{probe}-0").exists():
            raise ConfigError(
                f"--workdir {workdir} is another folder here than for process 0: give one that "
                "all hosts share, such as gs://BUCKET/NAME"
            )
    distributed.require_agreement("--workdir", [])  # all have checked
    mine.unlink()
    return folder


@contextlib.contextmanager
def locked_folder(workdir: Path) -> Iterator[None]:
    """Lock a run's folder against a second run; folders in an object store are not locked.

    The lock is on the folder itself: it ends with the process, and leaves no file.

    Raises:
      ConfigError: another process holds it.
    """
    with contextlib.ExitStack() as held:
        with distributed.fail_together("locking --workdir"):
            if distributed.is_writer() and not is_remote(workdir):
                try:
                    held.enter_context(locked(workdir, wait=False, best_effort=True))
                except BlockingIOError as e:
                    raise ConfigError(
                        f"--workdir {workdir} is in use by another run: wait for its end, or end "
                        "it, or choose another folder"
                    ) from e
        yield


def require_disk_space(workdir: Path, state: Any, steps_there: int) -> None:
    """Check, before training, that the disk has space for a run's checkpoints.

    The space of an object store is unknown, and not checked.

    Args:
      state: the content of a checkpoint.
      steps_there: number of the folder's steps that exist already.

    Raises:
      ConfigError: there is too little space.
    """
    if is_remote(workdir):
        return
    each = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    needed = each * max(checkpoints.MOST_AT_ONCE - steps_there, 1) + _BESIDE
    with distributed.fail_together("checking the space for --workdir"):
        free = shutil.disk_usage(workdir).free
        if free < needed:
            raise ConfigError(
                f"--workdir {workdir}: {free / 1e9:.3g} GB are free, and checkpoints (of "
                f"{each / 1e9:.3g} GB, {checkpoints.MOST_AT_ONCE} at a time) and reports "
                f"take up to {needed / 1e9:.3g} GB; make room there, or choose another"
            )


def read_run_config(workdir: Path) -> ml_collections.ConfigDict:
    """Return the checked config of an editing run, from its config.json.

    Raises:
      CheckpointError: there is none, it is damaged, or it is not valid.
    """
    path = workdir / "config.json"
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("it is no object")
        config = ml_collections.ConfigDict(_with_tuples(with_added_keys(stored)))
        config_check.check_editing_config(config)
        return config
    except (OSError, ImportError) as e:
        raise CheckpointError(
            f"{workdir} holds no run ({e}): train one with `python -m mend_jax.main "
            f"--config=quickstart.py --workdir={workdir}`"
        ) from e
    except (ValueError, TypeError, AttributeError, ConfigError) as e:  # ConfigDict's too
        raise CheckpointError(
            f"{path} is damaged ({e}); put back the one that the run wrote"
        ) from e


def _with_tuples(value: Any) -> Any:
    """Return a JSON value with tuples instead of lists, as configs have them."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def read_results(workdir: Path) -> dict[str, Any] | None:
    """Return results.json of a finished run, or None.

    Raises:
      CheckpointError: it is damaged.
    """
    path = workdir / "results.json"
    if not path.exists():
        return None
    try:
        results = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(results, dict) or not isinstance(results.get("config"), dict):
            raise ValueError("it holds no config")
        return migrate_results(results)
    except ValueError as e:
        raise CheckpointError(f"{path} is damaged ({e}); delete it to evaluate again") from e


def read_finished_results(
    workdir: Any, config: Callable[[], ml_collections.ConfigDict]
) -> dict[str, Any] | None:
    """Return the results of a finished run of this config, or None if there are none.

    Raises:
      CheckpointError: the folder has the results of another config, or damaged ones.
    """
    results = read_results(workdir)
    if results is not None:
        own = {"config": configs.to_json_dict(config())}
        checkpoints.refuse_other_run({"config": results["config"]}, own, workdir)
    return results
