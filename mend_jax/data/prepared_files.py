"""Prepared files: a recipe's rows as ArrayRecord files, kept in the cache and checked by hash.

The files are in a folder named by the recipe's stamp, a hash of all that decides them, so that they
never go stale: other raw files, package versions or templates are another folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

from mend_jax.data import sealed_folder
from mend_jax.data.data_set import DataSet
from mend_jax.data.data_set_recipe import Recipe
from mend_jax.data.tfds_files import TfdsRows, make_builder, quiet_tfds
from mend_jax.errors import DataError
from mend_jax.io.package_cache import cache_dir
from mend_jax.parallel.distributed import holds_everywhere

_LOG = logging.getLogger(__name__)


def load(recipe: Recipe, folder: str | os.PathLike[str] | None = None) -> DataSet:
    """Return the data set of a recipe, prepared first if necessary; see `prepare`."""
    root = prepare(recipe, folder)
    with quiet_tfds():
        builder = make_builder(recipe, root)
    metadata = builder.info.metadata
    return DataSet(
        name=recipe.title,
        description=recipe.description,
        license=recipe.license,
        fingerprint=metadata["fingerprint"],
        splits={name: TfdsRows(builder, name) for name in builder.info.splits},
        task=recipe.task,
        notes={**metadata["notes"], "files": metadata["files"]},
    )


def prepare(recipe: Recipe, folder: str | os.PathLike[str] | None = None) -> Path:
    """Prepare a data set unless it is in the cache, and return the root to open it with.

    The files go to `<folder>/<stamp>/<name>/<config>/<version>`. Several processes may call this at
    once: each prepares a draft and the first one's files stay. Damaged files are prepared again,
    with a warning.

    Args:
      folder: default `<cache>/datasets`, see `package_cache.cache_dir`.

    Raises:
      DataError: raw data cannot be used, or the folder cannot be written.
    """
    top = Path(folder) if folder is not None else cache_dir() / "datasets"
    root = top / recipe.stamp
    final = root / recipe.name / recipe.config / recipe.version
    damage = sealed_folder.describe_damage(final) if final.is_dir() else ""
    ready = final.is_dir() and not damage
    if recipe.built_together:
        ready = holds_everywhere(ready)
    if ready:
        return root
    if damage:
        _LOG.warning("%s is prepared again: %s", final, damage)
    for name, record in recipe.file_records().items():
        if record["published"] is False:
            _LOG.warning(
                "%s: not the published file of this name (its sha256 is %s); it is used anyway",
                name, record["sha256"],
            )  # fmt: skip
    built = recipe.build()
    try:
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=root))
    except OSError as e:
        raise DataError(
            f"{root} cannot be written ({e}): set MEND_CACHE_DIR to another folder"
        ) from e
    try:
        with quiet_tfds():
            make_builder(recipe, draft, built).download_and_prepare(file_format="array_record")
        _move_into_place(draft / final.relative_to(root), final, draft / "damaged")
    except OSError as e:
        if not final.is_dir() or sealed_folder.describe_damage(final):
            raise DataError(
                f"{final} could not be written ({e}): make room there, or set MEND_CACHE_DIR to "
                "another folder"
            ) from e
        # Otherwise another process was faster: its files are used.
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def _move_into_place(draft: Path, final: Path, trash: Path) -> None:
    """Seal the drafted files and rename their folder to `final`, replacing damaged ones."""
    sealed_folder.seal(draft)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir() and sealed_folder.describe_damage(final):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(final, trash)
    os.rename(draft, final)
