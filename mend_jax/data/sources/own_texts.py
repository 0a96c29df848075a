"""`texts`: passages of the user's own texts, such as OpenWebText: what an edit must leave alone.

`texts/FOLDER` reads every *.txt and *.jsonl file (plain or gzipped) in FOLDER below the data root,
and below it. A text file is one document, or several with lines `<|endoftext|>` between them; a
line of a JSON file is a document, its text in the field `text`.
"""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from mend_jax.data import prose, raw_files, rows
from mend_jax.data.recipe import BuiltSplits, Recipe
from mend_jax.errors import DataError

VERSION = "1.0.0"
A_DOCUMENT = 40  # passages that one document gives at the most
LICENSE = "the user's own texts"
DESCRIPTION = (
    "Passages of whole sentences, 25 to 90 words, of the user's own texts; at most 40 a document. "
    "Split by document (a hash of its text): 8% validation, 8% test. Repeated documents are left "
    "out."
)
_SHARES = {"test": 0.08, "validation": 0.08}
_ENDS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
_BETWEEN = re.compile(r"^\s*<\|endoftext\|>\s*$", re.M)
_BLANK = re.compile(r"\n\s*\n")


def documents(path: Path) -> Iterator[str]:
    """The documents of one file that hold any text."""
    if ".jsonl" in path.suffixes:
        found = (record["text"] for _, record in raw_files.iter_records(path, {"text": "string"}))
    else:
        found = iter(_BETWEEN.split(raw_files.read_text(path)))
    return (text for text in found if text.strip())


def build_splits(files: tuple[Path, ...], folder: Path) -> BuiltSplits:
    """All rows by split.

    Raises:
      DataError: a split that has no passage.
    """
    counts: collections.Counter[str] = collections.Counter()
    known: dict[str, dict] = {}
    for path in files:
        for number, text in enumerate(documents(path)):
            key = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
            subject = f"{path.relative_to(folder).as_posix()} {number}"
            counts["documents"] += 1
            counts["repeated"] += key in known
            if key not in known:
                known[key] = {"key": key, "subject": subject, "passages": _passages(text, counts)}
    parts = rows.split_by_name(list(known.values()), _SHARES, by="key")
    splits = {name: [row for d in parts[name] for row in _rows(d)] for name in rows.SPLITS}
    if empty := [name for name, held in splits.items() if not held]:
        raise DataError(
            f"{folder}: of {len(known)} documents none with whole English sentences is left for "
            f"{' and '.join(empty)}; give more documents, some 50 at least. Several may stand in "
            "one file, with a line <|endoftext|> between them"
        )
    return BuiltSplits(splits, {"counts": dict(counts)})


def _passages(text: str, counts: collections.Counter[str]) -> list[str]:
    found = [p for block in _BLANK.split(text) for p in prose.passages(prose.sentences(block))]
    counts["passages"] += min(len(found), A_DOCUMENT)
    counts["passages_over_the_limit"] += max(len(found) - A_DOCUMENT, 0)
    return found[:A_DOCUMENT]


def _rows(document: dict) -> Iterator[rows.Row]:
    for i, passage in enumerate(document["passages"]):
        yield rows.text_row(f"{document['key']}/{i:03d}", passage) | {
            "subject": document["subject"]
        }


def recipe(config: str, root: Path | None) -> Recipe:
    """How the rows of one folder are made.

    Raises:
      DataError: no such folder, or no file of a kind that is read in it.
    """
    if config == "default":
        raise DataError("which texts? name a folder of the data root, such as texts/openwebtext")
    mend = f"set --config.data.dir (or {raw_files.DATA_DIR_VARIABLE}) to the folder that holds it"
    if root is None:
        raise DataError(f"texts/{config}: no data root is known; {mend}")
    folder = root / config
    if not folder.resolve().is_relative_to(root.resolve()):
        raise DataError(f"texts/{config}: {folder} is not below the data root; {mend}")
    if not folder.is_dir():
        raise DataError(f"texts/{config}: there is no folder {folder}; {mend}")
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
