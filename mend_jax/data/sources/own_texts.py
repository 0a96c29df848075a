"""`texts`: passages of the user's own texts, such as OpenWebText, which an edit must not change.

`texts/FOLDER` reads every *.txt and *.jsonl file (plain or gzipped) in FOLDER below the data root,
and below it. A text file is one document, or several with lines `<|endoftext|>` between them; a
line of a JSON file is a document, its text in the field `text`.
"""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mend_jax.data import prose, raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe
from mend_jax.errors import DataError

VERSION = "1.0.0"
PASSAGES_PER_DOCUMENT = 40  # at most
LICENSE = "the user's own texts"
DESCRIPTION = (
    "Passages of whole sentences, 25 to 90 words, of the user's own texts; at most 40 a document. "
    "Split by document (a hash of its text): 8% validation, 8% test. Repeated documents are left "
    "out."
)
_SHARES = {"test": 0.08, "validation": 0.08}
_ENDS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
_SEPARATOR = re.compile(r"^\s*<\|endoftext\|>\s*$", re.M)
_BLANK = re.compile(r"\n\s*\n")


def documents(path: Path) -> Iterator[str]:
    """Yield the documents of one file that hold any text."""
    texts: Iterable[str]
    if ".jsonl" in path.suffixes:
        texts = (record["text"] for _, record in raw_files.iter_records(path, {"text": "string"}))
    else:
        texts = _SEPARATOR.split(raw_files.read_text(path))
    return (text for text in texts if text.strip())


def build_splits(files: tuple[Path, ...], folder: Path) -> BuiltSplits:
    """Return all rows by split.

    Raises:
      DataError: a split has no passage.
    """
    counts: collections.Counter[str] = collections.Counter()
    by_key: dict[str, dict[str, Any]] = {}
    for path in files:
        for number, text in enumerate(documents(path)):
            key = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
            subject = f"{path.relative_to(folder).as_posix()} {number}"
            counts["documents"] += 1
            counts["repeated"] += key in by_key
            if key not in by_key:
                by_key[key] = {"key": key, "subject": subject, "passages": _passages(text, counts)}
    parts = rows.split_by_name(list(by_key.values()), _SHARES, by="key")
    splits = {name: [row for d in parts[name] for row in _rows(d)] for name in rows.SPLITS}
    if empty := [name for name, part in splits.items() if not part]:
        raise DataError(
            f"{folder}: none of the {len(by_key)} documents with whole English sentences is left "
            f"for {' and '.join(empty)}; give more documents, about 50 at least. One file may hold "
            "several, with a line <|endoftext|> between them"
        )
    return BuiltSplits(splits, {"counts": dict(counts)})


def _passages(text: str, counts: collections.Counter[str]) -> list[str]:
    found = [p for block in _BLANK.split(text) for p in prose.passages(prose.sentences(block))]
    counts["passages"] += min(len(found), PASSAGES_PER_DOCUMENT)
    counts["passages_over_the_limit"] += max(len(found) - PASSAGES_PER_DOCUMENT, 0)
    return found[:PASSAGES_PER_DOCUMENT]


def _rows(document: dict[str, Any]) -> Iterator[rows.Row]:
    for i, passage in enumerate(document["passages"]):
        yield rows.text_row(f"{document['key']}/{i:03d}", passage, subject=document["subject"])


def recipe(config: str, root: Path | None) -> Recipe:
    """Return the recipe of one folder's texts.

    Raises:
      DataError: there is no such folder, or no text or JSON lines file in it.
    """
    if config == "default":
        raise DataError("which texts? name a folder of the data root, such as texts/openwebtext")
    fix = f"set --config.data.dir (or {raw_files.DATA_DIR_VARIABLE}) to the folder that holds it"
    if root is None:
        raise DataError(f"texts/{config}: no data root is known; {fix}")
    folder = root / config
    if not folder.resolve().is_relative_to(root.resolve()):
        raise DataError(f"texts/{config}: {folder} is not below the data root; {fix}")
    if not folder.is_dir():
        raise DataError(f"texts/{config}: there is no folder {folder}; {fix}")
    files = tuple(sorted(p for p in folder.rglob("*") if p.name.endswith(_ENDS) and p.is_file()))
    if not files:
        raise DataError(f"texts/{config}: no {', '.join(f'*{end}' for end in _ENDS)} in {folder}")
    return Recipe(
        name="texts",
        full_name=f"texts/{config}",
        config=re.sub(r"[^A-Za-z0-9]+", "_", config).strip("_") or "texts",
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE,
        build=lambda: build_splits(files, folder),
        files=files,
        raw_dir=folder,
    )
