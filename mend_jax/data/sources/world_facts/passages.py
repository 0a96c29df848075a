"""Passages of plain English, which an edit must not change at all (far locality).

`wikipedia`: a few long articles of the English Wikipedia (April 2016, titles that start with A)
from the test data of the package gensim 4.3.3. Text by Wikipedia's authors, licensed CC BY-SA 3.0
and GFDL; it is downloaded from the package registry when first needed and never shipped.

`reference`: the Python language reference in CPython's `pydoc_data` (PSF licence) and the
descriptions of TFDS' data sets (Apache-2.0). It needs no download; its prose is technical.
"""

from __future__ import annotations

import bz2
import importlib.util
import re
from pathlib import Path

from mend_jax.data.keyed_random import key_hash
from mend_jax.data.sources.world_facts import wiki_markup
from mend_jax.errors import DataError
from mend_jax.io import package_cache

WIKIPEDIA = package_cache.Wheel(
    requirement="gensim==4.3.3",
    file="gensim-4.3.3-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    sha256="d662bf96e3d741b6ab61a54be842a7cbf5e45193008b2f4225c758cafd7f9cdc",
    members=(
        package_cache.Member(
            "gensim/test/test_data/"
            "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            1695871,
            "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
        ),
    ),
)
LICENSES = {
    "wikipedia": "CC BY-SA 3.0 and GFDL (English Wikipedia)",
    "reference": "PSF licence (Python reference), Apache-2.0 (TFDS descriptions)",
}
_PAGE = re.compile(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", re.S)
_PASSAGES_PER_DOCUMENT = 150
_HELD_OUT = 0.1


def passages(
    source: str = "wikipedia", seed: int = 0, cache: Path | None = None
) -> dict[str, list[str]]:
    """Return passages of 25 to 60 words by split; no document is in two splits.

    Args:
      source: `wikipedia` or `reference`.
      seed: decides the split of each document and the order of the passages.
      cache: the folder of downloads.

    Raises:
      DataError: an unknown source, or a failed download.
    """
    documents = read_documents(source, cache)
    names = sorted(documents, key=lambda name: key_hash("passages", seed, name))
    total = sum(len(found) for found in documents.values())
    split: dict[str, list[str]] = {"validation": [], "test": [], "train": []}
    for name in names:
        into = next(
            (s for s in ("validation", "test") if len(split[s]) < _HELD_OUT * total), "train"
        )
        split[into].extend(documents[name])
    taken: set[str] = set()
    for name, found in split.items():
        fresh = sorted(set(found) - taken, key=lambda text: key_hash("passages", seed, text))
        taken |= set(fresh)
        split[name] = fresh
    return split


def read_documents(source: str, cache: Path | None = None) -> dict[str, list[str]]:
    """Return the passages of each document of a source."""
    if source == "wikipedia":
        return _wikipedia(cache)
    if source == "reference":
        return _reference()
    raise DataError(f"unknown source of passages {source!r}: use one of {', '.join(LICENSES)}")


def _wikipedia(cache: Path | None) -> dict[str, list[str]]:
    fix = "Or use the data set world_facts/offline, which needs no download."
    file = package_cache.fetch_wheel(WIKIPEDIA, DataError, fix, cache) / WIKIPEDIA.members[0].name
    dump = bz2.decompress(file.read_bytes()).decode("utf-8")
    documents = {}
    for title, page in _PAGE.findall(dump):
        found = [p for text in wiki_markup.paragraphs(page) for p in wiki_markup.passages(text)]
        if found:
            documents[title] = found[:_PASSAGES_PER_DOCUMENT]
    return documents


def _reference() -> dict[str, list[str]]:
    from pydoc_data.topics import topics

    documents = {}
    for name, text in sorted(topics.items()):
        blocks = (" ".join(block.split()) for block in text.split("\n\n"))
        found = [p for block in blocks for p in wiki_markup.passages(block)]
        if found:
            documents[f"python {name}"] = found
    for path in _tfds_descriptions():
        found = wiki_markup.passages(" ".join(path.read_text(encoding="utf-8").split()))
        if found:
            documents[f"tfds {path.parent.name}"] = found
    return documents


def _tfds_descriptions() -> list[Path]:
    """Return the README files of TFDS' data sets, without importing TFDS."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    folders = spec.submodule_search_locations if spec else ()
    return sorted(p for folder in folders or () for p in Path(folder).glob("datasets/*/README.md"))
