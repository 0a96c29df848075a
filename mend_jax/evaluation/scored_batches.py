"""The log of an evaluation: the scores of each batch of edits, so that it can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.evaluation.metric_registry import Scores
from mend_jax.io.json_lines import JsonLines
from mend_jax.parallel import distributed


class ScoredBatches:
    """The batches scored so far, in memory and, given a file, one JSON object a batch on disk.

    The file's first line identifies the evaluation; a file of another one is started anew. Each
    further line has a checksum; a batch whose checksum is wrong is scored again. Scores are
    float32, which JSON keeps exactly, so an interrupted evaluation ends with the same numbers.

    Attributes:
      batches: for each batch `index` (row numbers), `scores` (lists by "TEXTS.SCORE") and `answers`
        (generated texts, lists by name); a batch may lack some of the others' names.
    """

    def __init__(self, path: Any = None, of: Mapping[str, Any] | None = None) -> None:
        """Open a log.

        Args:
          path: the file; None: memory alone.
          of: identifies this evaluation.
        """
        self.batches: list[dict[str, Any]] = []
        self._lines = None if path is None else JsonLines(path, distributed.is_writer())
        if self._lines is None:
            return
        lines, head = self._lines, {"edits": dict(of or {})}
        text = distributed.broadcast_from_writer(
            "reading an evaluation", lambda: json.dumps(_intact_batches(lines, head))
        )
        self.batches = json.loads(text)
        if not self.batches and distributed.is_writer():
            lines.rewrite([head])

    @property
    def n_edits(self) -> int:
        """How many edits are scored."""
        return sum(len(batch["index"]) for batch in self.batches)

    def add(
        self, index: Sequence[int], scores: Scores, answers: Mapping[str, Sequence[Any]]
    ) -> None:
        """Add a batch, in memory and on disk."""
        flat = {f"{texts}.{key}": values.tolist() for (texts, key), values in scores.items()}
        batch = {"index": list(index), "scores": flat, "answers": dict(answers)}
        if self._lines is not None:
            self._lines.append(batch | {"sum": _checksum(len(self.batches), batch)})
            self._lines.flush()
        self.batches.append(batch)

    def index(self) -> list[int]:
        """Return the row number of every scored edit."""
        return [i for batch in self.batches for i in batch["index"]]

    def scores(
        self, batches: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[tuple[str, str], np.ndarray]:
        """Return float32 [N] or [N, k] by (texts, score), of these batches or of all.

        Scores that a batch lacks are 0 there: none of these texts was scored (`n_tokens` is 0).
        """
        found, batches = {}, self.batches if batches is None else batches
        names = dict.fromkeys(name for batch in batches for name in batch["scores"])
        for name in names:
            texts, _, key = name.partition(".")
            known = [np.asarray(b["scores"].get(name, ()), np.float32) for b in batches]
            shape = next((part.shape[1:] for part in known if part.size), ())
            parts = [
                part if len(part) else np.zeros((len(batch["index"]), *shape), np.float32)
                for part, batch in zip(known, batches, strict=True)
            ]
            found[texts, key] = np.concatenate(parts)
        return found

    def answers(self) -> list[dict[str, Any]]:
        """Return the generated texts of each edit by name: one text, or a list of texts."""
        found = []
        for batch in self.batches:
            names = list(batch["answers"])
            each = zip(*batch["answers"].values(), strict=True)
            found += [dict(zip(names, texts, strict=True)) for texts in each]
        return found


def _intact_batches(lines: JsonLines, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the intact batches of a file, and rewrite it without what follows them."""
    found = lines.read()
    if not found or found[0] != head:
        return []
    kept: list[dict[str, Any]] = []
    for number, line in enumerate(found[1:]):
        batch = {k: v for k, v in line.items() if k != "sum"}
        if line.get("sum") != _checksum(number, batch):
            break  # this batch and those after it are scored again
        kept.append(batch)
    lines.rewrite(found[: 1 + len(kept)])
    return kept


def _checksum(number: int, batch: Mapping[str, Any]) -> str:
    text = json.dumps([number, batch], sort_keys=True)  # the number: its place in the file
    return hashlib.sha256(text.encode()).hexdigest()[:16]
