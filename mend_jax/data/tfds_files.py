"""Rows as TFDS files (ArrayRecord, without TensorFlow): one builder for all data sets."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mend_jax.data import rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe


class TfdsRows(Sequence[rows.Row]):
    """One split of a prepared TFDS builder as rows of plain Python values."""

    def __init__(self, builder: Any, split: str) -> None:
        self._source = builder.as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return {k: _plain(v) for k, v in self._source[int(index) % len(self)].items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (list, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def make_builder(recipe: Recipe, root: Path, built: BuiltSplits | None = None) -> Any:
    """Return the TFDS builder of a recipe's files below `root`; `built` is what it prepares."""
    builder = _builder_class(recipe.name, recipe.config, recipe.version)
    return builder(
        data_dir=str(root), config=recipe.config, version=recipe.version,
        file_format="array_record", recipe=recipe, built=built,
    )  # fmt: skip


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Suppress the progress bars of TFDS and its log lines, but no warning."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logger, only_warnings = logging.getLogger("absl"), _OnlyWarnings()
    logger.addFilter(only_warnings)
    try:
        yield
    finally:
        logger.removeFilter(only_warnings)


class _OnlyWarnings(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or "tensorflow_datasets" not in record.pathname


@functools.cache
def _builder_class(title: str, config: str, version: str) -> Any:
    """Return the builder class of a recipe, on first use: importing TFDS needs a second."""
    import tensorflow_datasets as tfds

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Do nothing: TFDS would look for a bucket, and leave an empty folder behind."""

    # TFDS has no types: mypy does not see the keyword of its base class.
    class Builder(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        name = title
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)]
        code_path = None  # no file of checksums: nothing is downloaded through TFDS

        def __init__(self, *, recipe: Recipe, built: BuiltSplits | None, **options: Any):
            self._recipe, self._built = recipe, built
            super().__init__(**options)

        def _info(self) -> tfds.core.DatasetInfo:
            text = tfds.features.Text()
            features: dict[str, Any] = dict.fromkeys(rows.TEXT_FIELDS, text)
            features |= {name: tfds.features.Sequence(text) for name in rows.LIST_FIELDS}
            features |= {name: tfds.features.Scalar(np.bool_) for name in rows.FLAG_FIELDS}
            return Info(
                builder=self,
                description=self._recipe.description,
                features=tfds.features.FeaturesDict(features),
                license=self._recipe.license,
                metadata=tfds.core.MetadataDict(),
                disable_shuffling=True,
            )

        def _log_download_bytes(self) -> None:
            """Log nothing: nothing is downloaded through TFDS."""

        def _log_download_done(self) -> None:
            """Log nothing: the folder that TFDS names is a draft, which is moved later."""

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            assert self._built is not None, "a builder without rows can only read"
            splits = {name: list(part) for name, part in self._built.splits.items() if part}
            self.info.metadata["fingerprint"] = rows.fingerprint_rows(splits)
            self.info.metadata["notes"] = dict(self._built.notes)
            self.info.metadata["files"] = self._recipe.file_records()
            return {name: self._generate_examples(part) for name, part in splits.items()}

        def _generate_examples(self, part: list[rows.Row]) -> Any:
            yield from enumerate(part)

    return Builder
