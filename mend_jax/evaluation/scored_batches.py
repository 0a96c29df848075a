"""The record of an evaluation: what each batch of edits scored, kept so that it can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.io.json_lines import JsonLines
from mend_jax.parallel import distributed

Scores = Mapping[tuple[str, str], np.ndarray]


class ScoredBatches:
    """Edits judged so far, in memory and, given a file, one JSON object a batch on disk.

    Its first line says whose edits they are; a file that says otherwise is begun anew. Each further
    line has a checksum, and is judged again where that is not right. Scores are float32, which JSON
    keeps exactly, so an evaluation that was interrupted ends with the numbers of one that was not.

    Attributes:
      batches: for each batch `index` (row numbers), `scores` (lists by "TEXTS.SCORE") and `answers`
        (what was written, lists by name).
    """

    def __init__(self, path: Any = None, of: Mapping[str, Any] | None = None) -> None:
        """Args: the file (None: memory alone), and what tells this evaluation from others."""
        self.batches: list[dict[str, Any]] = []
        self._lines = None if path is None else JsonLines(path, distributed.is_writer())
        if self._lines is None:
            return
        head = {"edits": dict(of or {})}
        text = distributed.broadcast_from_writer(
            "reading an evaluation", lambda: json.dumps(self._read(head))
        )
        self.batches = json.loads(text)
        if not self.batches and distributed.is_writer():
            self._lines.rewrite([head])

    def _read(self, head: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The batches of the file; rewrites it, since its last line may be cut off."""
        first, *rest = self._lines.read() or [None]
        if first != head:
            return []
        kept: list[dict[str, Any]] = []
        for number, line in enumerate(rest):
            batch = {k: v for k, v in line.items() if k != "sum"}
            if line.get("sum") != _sum(number, batch):
                break  # damaged: it and what follows are judged again
            kept.append(batch)
        self._lines.rewrite([first, *rest[: len(kept)]])
        return kept

    @property
    def n_edits(self) -> int:
        return sum(len(batch["index"]) for batch in self.batches)

    def add(
        self, index: Sequence[int], scores: Scores, answers: Mapping[str, Sequence[str]]
    ) -> None:
        """Takes in one batch, and writes it down."""
        flat = {f"{texts}.{key}": values.tolist() for (texts, key), values in scores.items()}
        batch = {"index": list(index), "scores": flat, "answers": dict(answers)}
        if self._lines is not None:
            self._lines.append(batch | {"sum": _sum(len(self.batches), batch)})
            self._lines.flush()
        self.batches.append(batch)

    def index(self) -> list[int]:
        return [i for batch in self.batches for i in batch["index"]]

    def scores(self, of: Sequence[Mapping[str, Any]] | None = None) -> dict[Any, np.ndarray]:
        """float32 arrays [N] or [N, k] by (texts, score), of these batches or of all."""
        found, batches = {}, self.batches if of is None else of
        for name in batches[0]["scores"]:
            texts, _, key = name.partition(".")
            parts = [np.asarray(batch["scores"][name], np.float32) for batch in batches]
            found[texts, key] = np.concatenate(parts)
        return found

    def answers(self) -> list[dict[str, str]]:
        """What was written for each edit, by name."""
        found = []
        for batch in self.batches:
            names = list(batch["answers"])
            each = zip(*batch["answers"].values(), strict=True)
            found += [dict(zip(names, texts, strict=True)) for texts in each]
        return found


def _sum(number: int, batch: Mapping[str, Any]) -> str:
    """The checksum of a batch in its place in the file."""
    text = json.dumps([number, batch], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
