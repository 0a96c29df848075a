"""Readers of the output files of runs and grids."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import load as deserialise
from safetensors.numpy import save as serialise
from test_run_report import fake_examples, fake_metrics, fake_results, fake_sequential

from fuzzing.mutations import damage_bytes, damage_safetensors
from fuzzing.reader import Reader, put
from mend_jax.apps import join_grids
from mend_jax.apps.run_processes import RunProcess
from mend_jax.core.meta_loss import token_batches
from mend_jax.evaluation import sequential_state
from mend_jax.evaluation.reports import grid_markdown, grid_report, run_report
from mend_jax.evaluation.reports.grid_rows import make_grid_row
from mend_jax.evaluation.scored_batches import ScoredBatches
from mend_jax.io import array_files
from mend_jax.io.files import replace_non_finite, write_json
from mend_jax.io.json_lines import JsonLines
from mend_jax.training import batch_files, run_folder

# --- runs


def _read_report(folder: Path, data: bytes) -> None:
    """Render a run's page with one damaged file; its first character says which file."""
    name = {b"[": "examples.json", b"{": "results.json"}.get(data.lstrip()[:1], "examples.json")
    put(folder / "results.json", json.dumps(fake_results()).encode())
    put(folder / "examples.json", json.dumps(fake_examples()).encode())
    put(folder / "metrics.jsonl", b'{"step": 1}\n')
    put(folder / name, data)
    with mock.patch.object(run_report, "draw", lambda results, lines: {}):
        assert "<html" in run_report.write(folder).read_text(encoding="utf-8")
    if name == "results.json":
        run_folder.read_results(folder)


def _report_seeds() -> list[bytes]:
    return [json.dumps(fake_results()).encode(), json.dumps(fake_examples()).encode()]


def _read_pictures(folder: Path, data: bytes) -> None:
    """Draw all plots of a run."""
    put(folder / "results.json", json.dumps(fake_results()).encode())
    put(folder / ("results.json" if b"config_name" in data else "metrics.jsonl"), data)
    run_report.write(folder)


def _grid_seeds() -> list[bytes]:
    results = fake_results() | {"config": {"editor": {"name": "mend"}}}
    results["eval"]["sequential"] = fake_sequential(0.5)
    return [json.dumps(results).encode()]


def _grid_of(folder: Path, data: bytes) -> dict[str, Any]:
    """Return a grid of two cells; the first has these results."""
    run = RunProcess("one", (), put(folder / "run/results.json", data).parent)
    cell = {"method": "MEND", "seeds": (0,)}
    left = run_folder.read_results(run.folder), json.loads(_grid_seeds()[0])
    rows = [make_grid_row(n, cell, [(run, r)]) for n, r in zip(("one", "two"), left, strict=True)]
    return {"title": "T", "config_name": "t.py", "config": {}, "rows": rows, "failed": {}}


def _read_grid(folder: Path, data: bytes) -> None:
    """Make the table and the page of a grid in which one of two runs has damaged results."""
    found = _grid_of(folder, data)
    write_json(folder / "grid.json", found)
    grid_markdown.table(found)
    with mock.patch.object(grid_report, "draw", lambda rows: {}):
        grid_report.write(folder, found)
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")


def grid_of_two(folder: Path) -> dict[str, Any]:
    """Return the content of grid.json for two finished cells."""
    return replace_non_finite(_grid_of(folder, _grid_seeds()[0]))


def _grid_file_seed() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [json.dumps(grid_of_two(Path(folder))).encode()]


def _read_grid_file(folder: Path, data: bytes) -> None:
    """Join a table of two parts, one of them damaged."""
    parts = [put(folder / "a.json", data), put(folder / "b.json", _grid_file_seed()[0])]
    found = join_grids.join([join_grids.read(part) for part in parts])
    with mock.patch.object(grid_report, "draw", lambda rows: {}):
        join_grids.write(folder / "both", found)
    assert "<html" in (folder / "both" / "report.html").read_text(encoding="utf-8")


def _read_grid_pictures(folder: Path, data: bytes) -> None:
    """Draw the plots of a grid."""
    grid_report.write(folder, _grid_of(folder, data))


def _metrics_seed() -> bytes:
    return "".join(json.dumps(line) + "\n" for line in fake_metrics(60)).encode()


def _read_metrics(folder: Path, data: bytes) -> None:
    """Read the complete lines up to the first damaged one; a resume keeps those of its steps."""
    lines = JsonLines(put(folder / "metrics.jsonl", data))
    held = lines.read()
    assert all(isinstance(line, dict) for line in held)
    lines.rewind(30)
    assert all(line["step"] <= 30 for line in lines.read())


def _batch() -> bytes:
    """Return the texts of a batch."""
    arrays = {"index": np.asarray([[3], [5]])}
    for field, kind in (("tokens", "i4"), ("mask", "?"), ("score_pos", "i4"), ("target", "i4"),
                        ("score_mask", "?")):  # fmt: skip
        arrays[f"edit/{field}"] = np.ones((2, 1, 4), kind)
    return array_files.encode(batch_files.FORMAT, arrays, {"step": 4})


def _old_batch() -> bytes:
    return serialise(deserialise(_batch()))


def _step_record() -> bytes:
    """Return the record of its step."""
    return json.dumps({"step": 4, "rows": [3, 5], "terms": ["loss"]}).encode()


def _read_batch(folder: Path, data: bytes, record: bytes | None = None) -> None:
    """Load a batch that training kept: complete rows, and the number of their step."""
    put(folder / "batch-0000.safetensors", data)
    put(folder / "step.json", _step_record() if record is None else record)
    batch, found = batch_files.load(folder)
    assert type(found["step"]) is int
    token_batches(batch)


_OF = {"base": "x", "step": 3}


_BATCHES = [
    {"index": index, "scores": {"edit.nll": [0.5, 0.25]}, "answers": {"edit": ["a", "b"]}}
    for index in ([0, 1], [2, 3])
]


def _scored_batches_seed() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        scored = ScoredBatches(Path(folder, "judged.jsonl"), _OF)
        for batch in _BATCHES:
            scores = {("edit", "nll"): np.asarray(batch["scores"]["edit.nll"], np.float32)}
            scored.add(batch["index"], scores, batch["answers"])
        return Path(folder, "judged.jsonl").read_bytes()


def _read_scored_batches(folder: Path, data: bytes) -> None:
    """An evaluation continues from the scored batches, or starts again."""
    scored = ScoredBatches(put(folder / "judged.jsonl", data), _OF)
    if scored.batches:
        assert all(len(v) == scored.n_edits for v in scored.scores().values())
        assert len(scored.answers()) == len(scored.index()) == scored.n_edits
        assert json.dumps(scored.batches) in (json.dumps(b) for b in (_BATCHES[:1], _BATCHES))


def _so_far() -> list[np.ndarray]:
    return [np.ones((2, 3), np.float32), np.zeros((4,), np.float32)]


def _so_far_seed() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "so_far.safetensors")
        sequential_state.SequentialState(path, _OF).save(3, *_so_far())
        return path.read_bytes()


def _old_so_far_seed() -> bytes:
    out = io.BytesIO()
    np.savez(out, *_so_far(), k=np.asarray(3), of=np.asarray(json.dumps(_OF, sort_keys=True)))
    return out.getvalue()


def _read_so_far(folder: Path, data: bytes, ending: str = "safetensors") -> None:
    """Stored sequential edits are used if complete, or started again; never an error."""
    put(folder / f"so_far.{ending}", data)
    kept = sequential_state.SequentialState(folder / "so_far.safetensors", _OF)
    fresh, state = np.full((2, 3), 7, np.float32), np.full((4,), 7, np.float32)
    k, found, after = kept.load(fresh, state, latest=5)
    assert 0 <= k <= 5
    for old, new in ((fresh, found), (state, after)):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


READERS = {
    "report": Reader(_report_seeds, _read_report, share=0.5),
    "report pictures": Reader(lambda: [json.dumps(fake_results()).encode(), _metrics_seed()],
                              _read_pictures, share=0.02),
    "grid": Reader(_grid_seeds, _read_grid, share=0.5),
    "grid pictures": Reader(_grid_seeds, _read_grid_pictures, share=0.02),
    "part of a grid": Reader(_grid_file_seed, _read_grid_file, share=0.5),
    "metrics.jsonl": Reader(lambda: [_metrics_seed()], _read_metrics),
    "batch of a step": Reader(
        lambda: [_batch(), _old_batch()], _read_batch, damage_safetensors, 0.5
    ),
    "step of a batch": Reader(
        lambda: [_step_record()],
        lambda folder, data: _read_batch(folder, _batch(), data),
        share=0.5,
    ),
    "judged.jsonl": Reader(lambda: [_scored_batches_seed()], _read_scored_batches),
    "sequential edits": Reader(lambda: [_so_far_seed()], _read_so_far, damage_safetensors, 0.5),
    "sequential edits of an older run": Reader(
        lambda: [_old_so_far_seed()], functools.partial(_read_so_far, ending="npz"), damage_bytes
    ),
}  # fmt: skip
