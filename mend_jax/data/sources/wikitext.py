"""`wikitext`: passages of plain text from Wikitext-2 (Merity et al. 2016), good Wikipedia articles.

Reads the published word-level files, `wikitext-2/train.txt`, `valid.txt` and `test.txt` (or
`wiki.train.tokens` and so on), each plain or gzipped; the config `103` reads `wikitext-103`. Their
splits are kept: no article is in two. The tokenisation is undone. A sentence with `<unk>` is
dropped: its words are not known, and a model should not be scored on `<unk>`.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from pathlib import Path

from mend_jax.data import prose, raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.errors import DataError

VERSION = "1.0.0"
CONFIGS = {"default": "wikitext-2", "103": "wikitext-103"}
LICENSE = "CC BY-SA 3.0 (English Wikipedia)"
DESCRIPTION = (
    "Passages of whole sentences, 25 to 90 words, of good and featured Wikipedia articles "
    "({folder}, tokenisation undone, sentences with <unk> left out). Splits as published, by "
    "article."
)
_FILES = {"train": "train", "validation": "valid", "test": "test"}
# sha256 of the content; train and valid of github.com/pytorch/examples, word_language_model/data.
_PUBLISHED = {
    "wikitext-2/train.txt": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    "wikitext-2/valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
}
_HEADING = re.compile(r"= (?!=)(.*[^=\s]) =")

_NO_SPACE_BEFORE = {*".,;:!?)]%’”°", "...", "…", "''"}
_NO_SPACE_AFTER = {*"([$£€₹¥₤#“‘"}
_JOINED = {"@-@": "-", "@,@": ",", "@.@": ".", "/": "/", "—": "—", "⁄": "⁄"}
_SUFFIX = re.compile(r"'[^\W\d]+")  # 's, 't, 'Neill
_DECADE = re.compile(r"\d0s")
_ELIDED = {"s", "t", "re", "ll", "d", "m", "ve"}  # after a curly apostrophe
_DOLLARS = {"US", "A", "AU", "C", "CA", "NZ", "HK", "S"}
_ENDS = {".", "!", "?"}


def detokenise(tokens: list[str]) -> str:
    """Return the text of Wikitext's tokens: "( 1 @,@ 500 )" is "(1,500)".

    Quotes open and close alternately. A single apostrophe closes a quotation, ends a genitive
    ("players ' votes"), or opens a quotation that another one closes. A dash has no spaces between
    numbers ("2011–12") and spaces between words; slashes have none.
    """
    text, glue = "", True
    quoted = single = False
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else ""
        after = tokens[i + 1] if i + 1 < len(tokens) else ""
        left, right = glue, False  # no space to its left, to its right
        written = token
        if token in _JOINED:
            written, left, right = _JOINED[token], True, True
        elif token == '"':
            left, right, quoted = left or quoted, not quoted, not quoted
        elif token == "'" and _DECADE.fullmatch(after):
            right = True
        elif token == "'":
            genitive = before[-1:] in ("s", "x", "z") and not before.startswith("'")
            ends = single or genitive or "'" not in tokens[i + 1 :]
            left, right, single = left or ends, not ends, not ends
        elif token == "–" and before[-1:].isdigit() and after[:1].isdigit():
            left = right = True
        elif token == ":" and before.isdigit() and after.isdigit() and len(after) == 2:
            left = right = True
        elif token == "−" and after[:1].isdigit() and not before[-1:].isdigit():
            right = True
        elif token == "’" and after in _ELIDED:
            left = right = True
        elif token == "°":
            left, right = after not in ("C", "F"), after in ("C", "F")
        elif token in _NO_SPACE_BEFORE or _SUFFIX.fullmatch(token):
            left = True
        elif token in _NO_SPACE_AFTER:
            left, right = left or (token == "$" and before in _DOLLARS), True
        text += written if left else " " + written
        glue = right
    return text


def sentences(line: str) -> list[list[str]]:
    """Return the sentences of a tokenised paragraph, in which . ! ? are separate tokens."""
    found: list[list[str]] = []
    current: list[str] = []
    quoted = False
    tokens = line.split()
    for i, token in enumerate(tokens):
        current.append(token)
        quoted ^= token == '"'
        after = tokens[i + 1] if i + 1 < len(tokens) else ""
        closing = (after == '"' and quoted) or after in (")", "”")
        ended = token in _ENDS or (current[-2:-1] and current[-2] in _ENDS and token in '")”')
        if (
            ended
            and not closing
            and (not after or after[0].isupper() or after[0] in '"(“0123456789')
        ):
            found.append(current)
            current = []
    return [*found, current] if current else found


def articles(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each article's (title, paragraphs), tokenised; ` = Title = ` is between blank lines."""
    lines = [line.strip() for line in text.split("\n")]
    title = ""
    paragraphs: list[str] = []
    for i, line in enumerate(lines):
        alone = not any(lines[max(i - 1, 0) : i] + lines[i + 1 : i + 2])
        if alone and (heading := _HEADING.fullmatch(line)):
            if title:
                yield title, paragraphs
            title, paragraphs = heading[1], []
        elif line and not line.startswith("="):
            paragraphs.append(line)
    if title:
        yield title, paragraphs


def text_rows(text: str, split: str, counts: collections.Counter[str]) -> list[rows.Row]:
    """Return a row for each passage; count articles, sentences (with <unk>) and passages."""
    found = []
    for number, (title, paragraphs) in enumerate(articles(text)):
        subject = detokenise(title.split())
        if "<unk>" in title:  # not unique: several titles are `<unk>` alone
            subject += f" ({split} article {number})"
        counts["articles"] += 1
        passages = []
        for paragraph in paragraphs:
            in_paragraph = sentences(paragraph)
            counts["sentences"] += len(in_paragraph)
            counts["sentences_with_unk"] += sum("<unk>" in s for s in in_paragraph)
            passages += prose.passages(detokenise(s) for s in in_paragraph)
        counts["passages"] += len(passages)
        for i, passage in enumerate(passages):
            key = f"{split}/{number:05d}/{i:03d}"
            found.append(rows.text_row(key, passage, subject=subject))
    return found


def build_splits(files: dict[str, Path]) -> BuiltSplits:
    """Return all rows by split.

    Raises:
      DataError: a file has no articles, or none with a usable passage.
    """
    splits, notes = {}, {}
    for split, path in files.items():
        counts: collections.Counter[str] = collections.Counter()
        splits[split] = text_rows(raw_files.read_text(path), split, counts)
        if not splits[split]:
            what = "passages of whole sentences" if counts["articles"] else "articles"
            raise DataError(
                f"{path}: no {what} in it; an article begins with a line ` = Title = ` between "
                "blank lines; get the file again"
            )
        notes[split] = dict(counts)
    splits, lost = rows.without_overlap(splits)
    return BuiltSplits(splits, {"counts": notes, "dropped_for_a_shared_title": lost})


def recipe(config: str, root: Path | None) -> Recipe:
    """Return the recipe of one config.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_recipe_config("wikitext", config, CONFIGS)
    folder = CONFIGS[config]
    names = {
        split: (f"{folder}/{name}.txt", f"{folder}/wiki.{name}.tokens")
        for split, name in _FILES.items()
    }
    files = raw_files.require_files(root, "wikitext", names)
    return Recipe(
        name="wikitext",
        config=config,
        version=VERSION,
        description=DESCRIPTION.format(folder=folder),
        license=LICENSE,
        build=lambda: build_splits(files),
        files=tuple(files.values()),
        raw_dir=root,
        published={**_PUBLISHED, **{f"{name}.gz": sha for name, sha in _PUBLISHED.items()}},
    )
