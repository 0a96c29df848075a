"""From a recipe to prepared files: one TFDS builder (ArrayRecord, no TensorFlow) for all data sets.

A recipe says how rows are made and from what. The prepared files go to a folder that is named by a
hash of all that decides them, so that they never go stale: other raw files, other package versions
or another wording of a template are another folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mend_jax.data import integrity, raw_files, rows
from mend_jax.data.dataset import DataSet, TfdsRows
from mend_jax.errors import DataError
from mend_jax.io.package_cache import cache_dir

Splits = Mapping[str, Sequence[rows.Row]]


@dataclasses.dataclass(frozen=True)
class Made:
    """The rows of a data set by split, and what there is to say of them (JSON values)."""

    splits: Splits
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a data set is made.

    Attributes:
      name: of the data set; a word that can be a folder's name.
      config: which of its configs this is.
      version: three numbers; raised when the meaning of rows changes.
      description: what a row is and how the splits are made.
      license: of the facts and texts.
      make: gives the rows; `rows.make_row` makes one.
      files: the raw files that `make` reads.
      manual_dir: the folder they lie below.
      inputs: what else decides the rows, such as package versions (JSON values).
      code: names of the modules whose source decides the rows.
      published: sha256 of a file as its authors publish it, by its name here.
      task: `qa`, `fc` or `gen`; see `data.TASKS`.
      asked_as: the data set's name in full, where `config` is not the user's own word.
    """

    name: str
    config: str
    version: str
    description: str
    license: str
    make: Callable[[], Made]
    files: tuple[Path, ...] = ()
    manual_dir: Path | None = None
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    code: tuple[str, ...] = ()
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    task: str = "qa"
    asked_as: str = ""

    @property
    def title(self) -> str:
        """NAME, or NAME/CONFIG."""
        if self.asked_as:
            return self.asked_as
        return self.name if self.config == "default" else f"{self.name}/{self.config}"

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """sha256 of every raw file's content, by its path below `manual_dir`."""
        return {self.short(path): raw_files.sha256(path) for path in self.files}

    @functools.cached_property
    def stamp(self) -> str:
        """A short name for all that decides the rows."""
        known = [self.name, self.config, self.version, self.hashes, self.inputs]
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
        for module in sorted(
            {*self.code, "mend_jax.data.rows", "mend_jax.data.text_normalisation"}
        ):
            digest.update(Path(importlib.util.find_spec(module).origin).read_bytes())
        return digest.hexdigest()[:12]

    def short(self, path: Path) -> str:
        """A raw file's path as it is written down: below `manual_dir`, or its name."""
        if self.manual_dir is not None and path.is_relative_to(self.manual_dir):
            return path.relative_to(self.manual_dir).as_posix()
        return path.name

    def sources(self) -> dict[str, dict[str, Any]]:
        """Hash of each raw file, and whether it is the published one (None: not known)."""
        found = {}
        for path in self.files:
            name = self.short(path)
            known = self.published.get(name)
            same = None if known is None else known == self.hashes[name]
            found[name] = {"sha256": self.hashes[name], "published": same}
        return found


def check_config(name: str, config: str, known: Iterable[str]) -> None:
    """Raises DataError where a data set has no config of this name."""
    if config not in (names := list(known)):
        use = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        raise DataError(f"{name} has no config {config!r}: use {use}")


def fingerprint_rows(splits: Mapping[str, Iterable[rows.Row]]) -> str:
    """The SHA-256 over all rows of all splits; it changes when any field of any row does."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        for row in splits[split]:
            line = json.dumps([split, row], sort_keys=True, ensure_ascii=True)
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def load(recipe: Recipe, folder: str | os.PathLike[str] | None = None) -> DataSet:
    """The prepared data set, built first if need be; see `build`."""
    root = build(recipe, folder)
    with _quietly():
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


def build(recipe: Recipe, folder: str | os.PathLike[str] | None = None) -> Path:
    """Prepares a data set unless it is there, and gives the root to open it with.

    The files go to `<folder>/<stamp>/<name>/<config>/<version>`. Several processes may call this at
    once: each prepares apart and the first one's files stay. Files that are not as they were
    written are made again, with a warning.

    Args:
      folder: default `<cache>/datasets`, see `wheels.cache_dir`.

    Raises:
      DataError: raw data that cannot be used, or a folder that cannot be written.
    """
    top = Path(folder) if folder is not None else cache_dir() / "datasets"
    root = top / recipe.stamp
    final = root / recipe.name / recipe.config / recipe.version
    if final.is_dir():
        if not (damaged := integrity.damage(final)):
            return root
        logging.getLogger(__name__).warning("%s is made again: %s", final, damaged)
    for name, source in recipe.sources().items():
        if source["published"] is False:
            logging.getLogger(__name__).warning(
                "%s: not the published file of this name (its sha256 is %s); it is used as it is",
                name, source["sha256"],
            )  # fmt: skip
    made = recipe.make()
    try:
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=root))
    except OSError as e:
        raise DataError(
            f"{root} cannot be written ({e}): set MEND_CACHE_DIR to another folder"
        ) from e
    try:
        with _quietly():
            make_builder(recipe, draft, made).download_and_prepare(file_format="array_record")
        mine = draft / recipe.name / recipe.config / recipe.version
        integrity.seal(mine)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_dir() and integrity.damage(final):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.rename(final, draft / "damaged")
        os.rename(mine, final)
    except OSError as e:
        if not final.is_dir() or integrity.damage(final):  # else another process was faster
            raise DataError(
                f"{final} could not be written ({e}): make room there, or set MEND_CACHE_DIR to "
                "another folder"
            ) from e
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def make_builder(recipe: Recipe, root: Path, made: Made | None = None) -> Any:
    """The TFDS builder of a recipe over the files below `root`; `made` is what it shall prepare."""
    builder = _builder_class(recipe.name, recipe.config, recipe.version)
    return builder(
        data_dir=str(root), config=recipe.config, version=recipe.version,
        file_format="array_record", recipe=recipe, made=made,
    )  # fmt: skip


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress bars and chatter of TFDS."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logger, quiet = logging.getLogger("absl"), _Quiet()
    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)


class _Quiet(logging.Filter):
    """Holds back what TFDS says of its progress, but no warning."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or "tensorflow_datasets" not in record.pathname


@functools.cache
def _builder_class(title: str, config: str, version: str) -> Any:
    """The builder class of a recipe; made on first use, since importing TFDS takes a second."""
    import numpy as np
    import tensorflow_datasets as tfds

    class Info(tfds.core.DatasetInfo):
        """What a builder knows of its files."""

        def initialize_from_bucket(self) -> None:
            """No bucket has these; TFDS would look for one, and leave an empty folder behind."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Rows that a recipe made, as TFDS files."""

        name = title
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)]
        code_path = None  # no file of checksums: nothing is downloaded through TFDS

        def __init__(self, *, recipe: Recipe, made: Made | None, **options: Any):
            self._recipe, self._made = recipe, made
            super().__init__(**options)

        def _info(self) -> tfds.core.DatasetInfo:
            text = tfds.features.Text()
            features = {name: text for name in rows.TEXTS}
            features |= {name: tfds.features.Sequence(text) for name in rows.LISTS}
            features |= {name: tfds.features.Scalar(np.bool_) for name in rows.FLAGS}
            return Info(
                builder=self,
                description=self._recipe.description,
                features=tfds.features.FeaturesDict(features),
                license=self._recipe.license,
                metadata=tfds.core.MetadataDict(),
                disable_shuffling=True,
            )

        def _log_download_bytes(self) -> None:
            """Nothing is downloaded through TFDS, so there is nothing to announce."""

        def _log_download_done(self) -> None:
            """The files move once they are complete, so TFDS' place for them means nothing."""

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            splits = {name: list(held) for name, held in self._made.splits.items() if held}
            self.info.metadata["fingerprint"] = fingerprint_rows(splits)
            self.info.metadata["notes"] = dict(self._made.notes)
            self.info.metadata["files"] = self._recipe.sources()
            return {name: self._generate_examples(held) for name, held in splits.items()}

        def _generate_examples(self, held: list[rows.Row]) -> Any:
            yield from enumerate(held)

    return Builder
