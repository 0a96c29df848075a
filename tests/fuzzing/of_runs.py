"""Readers of what the project itself wrote (edits, ledgers, runs), of settings, and of requests."""

from __future__ import annotations

import functools
import io
import json
import logging
import shutil
import socket
import tempfile
import threading
import types
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import save as serialise
from small_edits import FINGERPRINT, UP, bits, small_delta, small_edit
from test_page import fake_measured
from test_report import fake_examples, fake_in_turn, fake_metrics, fake_results

from fuzzing.mutations import damage_bytes, damage_document, damage_json, damage_safetensors
from fuzzing.reader import Reader, put
from mend_jax import (
    batch_files,
    edit_files,
    grid_markdown,
    grid_report,
    journal,
    report,
    schema,
    shipped,
    so_far,
    workdir,
)
from mend_jax import config as configs
from mend_jax.build import build_editor, build_optimizer
from mend_jax.edit import console, page, serve
from mend_jax.edits import Edit
from mend_jax.errors import DataError
from mend_jax.grid_rows import make_row
from mend_jax.judged import Judged
from mend_jax.ledger import Base, Ledger
from mend_jax.objective import texts_of
from mend_jax.processes import Run
from mend_jax.writers import JsonLines, write_json

_BASE = Base("tiny", FINGERPRINT, "float32", 2, ("mlp/up",))


# --- edits


def _edit_seeds() -> list[bytes]:
    rng = np.random.default_rng(1)
    dense = {UP: small_delta(rng, UP, rows=None)}
    edits = [small_edit(1, editor="mend@01234567"), Edit(dense, base=FINGERPRINT), small_edit(2)]
    return [edit_files.to_bytes(edit) for edit in edits]


def _read_edit(folder: Path, data: bytes) -> None:
    """What is read is what is written again, to the last bit."""
    edit = edit_files.load(put(folder / "e.safetensors", data))
    for delta in edit.deltas.values():
        assert len(delta.shape) == 2
    "".join((edit.base, edit.editor, edit.made, *(t for fact in edit.facts for t in fact)))
    again = edit_files.load(put(folder / "f.safetensors", edit_files.to_bytes(edit)))
    assert (again.base, again.facts, again.editor) == (edit.base, edit.facts, edit.editor)
    assert set(again.deltas) == set(edit.deltas)
    twice = edit_files.load(put(folder / "g.safetensors", edit_files.to_bytes(again)))
    assert bits(twice) == bits(again)


def _shipped_seeds() -> list[bytes]:
    tensors = {"params/w": np.ones((3, 4), np.int8), "params/w/int8_scale": np.ones((3, 1), "f4"),
               "state/count": np.ones((2,), np.float32)}  # fmt: skip
    told = {name: "x" for name in shipped._FIELDS} | {"config": {"name": "mend"}}
    told["sha256"] = shipped._digest(tensors, told["config"])
    meta = {k: json.dumps(v) if k in shipped._JSON else v for k, v in told.items()}
    return [serialise(tensors, {"format": shipped.FORMAT, **meta})]


def _read_shipped(folder: Path, data: bytes) -> None:
    meta, flat = shipped._read(put(folder / "editor.safetensors", data))
    json.dumps(meta)
    for array in shipped._whole(flat).values():
        assert array.dtype != np.int8
    shipped._read(folder / "editor.safetensors", tensors=False)


# --- ledgers


@functools.cache
def _ledger() -> Path:
    """A ledger of three edits, the second reverted; its log is the sound input."""
    top = Path(tempfile.mkdtemp(prefix="mend-fuzz-"))
    ledger = Ledger.create(top / "ledger", _BASE)
    for seed in (1, 2, 3):
        ledger.append(small_edit(seed), fake_measured((f"fact {seed}", "x")))
    ledger.revert(2)
    return ledger.path


def _log() -> bytes:
    return (_ledger() / "log.jsonl").read_bytes()


def _forged(rng: Random, data: bytes) -> bytes:
    """Damaged records with checksums that are right: someone meant it."""
    if rng.random() < 0.3:
        return damage_json(rng, data)
    records = [json.loads(line)["record"] for line in data.splitlines()]
    records[rng.randrange(len(records))] = None
    at = records.index(None)
    text = damage_document(rng, json.loads(data.splitlines()[at])["record"])
    try:
        records[at] = json.loads(text)
    except (ValueError, RecursionError):
        return damage_bytes(rng, data)
    if rng.random() < 0.2:
        records[at] = {"kind": "revert", "number": rng.choice((0, -1, 4, 2**70, "1", 1.0, None)),
                       "made": rng.choice(("now", 1, None))}  # fmt: skip
    checksum, lines = _BASE.fingerprint, []
    for record in records:
        line, checksum = journal._line(checksum, record)
        lines.append(line + b"\n")
    return b"".join(lines)


def _open_with(folder: Path, name: str, data: bytes) -> Ledger:
    copy = folder / "ledger"
    shutil.copytree(_ledger(), copy)
    put(copy / name, data)
    return Ledger.open(copy)


def _read_log(folder: Path, data: bytes) -> None:
    """Every entry can be printed and shown as a page, and every edit is the one that was written.

    A log that is not as it was written counts only as far as it is whole.
    """
    outside = folder / "outside.safetensors"
    shutil.copy(next((_ledger() / "edits").iterdir()), outside)
    ledger = _open_with(folder, "log.jsonl", data)
    entries = ledger.entries()
    assert [e.number for e in entries] == list(range(1, len(entries) + 1))
    console.log(entries)
    found = console.shown(ledger, entries)
    json.dumps(found)
    for entry in entries:
        file = (ledger.path / entry.file).resolve()
        assert file.parent == (ledger.path / "edits").resolve()
        edit = ledger.edit(entry.number)
        assert bits(edit) == bits(small_edit(int(edit.facts[0][0].split()[1])))
    with mock.patch.object(page, "edits_png", lambda shown: None):
        console.page(found)
        page.render(found)


def _read_base(folder: Path, data: bytes) -> None:
    ledger = _open_with(folder, "base.json", data)
    assert ledger.base == _BASE or isinstance(ledger.base.spec, str)
    console.page(console.shown(ledger, ledger.entries()))


def _read_ledger_edit(folder: Path, data: bytes) -> None:
    """An edit's file in a ledger is the one that was written, or refused."""
    name = sorted(p.name for p in (_ledger() / "edits").iterdir())[0]
    edit = _open_with(folder, f"edits/{name}", data).edit(1)
    assert bits(edit) == bits(small_edit(1))


def _ledger_edit_seeds() -> list[bytes]:
    return [sorted((_ledger() / "edits").iterdir())[0].read_bytes()]


# --- settings


def _read_overrides(folder: Path, data: bytes) -> None:
    """Lines of KEY=VALUE: what is set is what is read back, and what is checked can be built."""
    del folder
    text = data.decode("utf-8", "replace")
    config = configs.load_config("quickstart.py:smoke")
    configs.apply_overrides(config, text.split("\n"))
    again = configs.load_config("quickstart.py:smoke")
    values = {key: schema._get(config, key) for key in configs.flat_keys(config)}
    known = {k: v for k, v in values.items() if k in schema.KEYS}
    configs.apply_overrides(again, configs.settings(known))
    for key, value in known.items():
        assert repr(schema._get(again, key)) == repr(value), key
    schema.check(config)
    configs.to_json(config)
    build_editor(config)


_SETTINGS = (
    b"train.lr=3e-4\ndata.name=facts/a.jsonl\ndata.pack=(8, 16)\neval.sequential=(1, 10)\nseed=7",
    b"editor.options={'rank': 4}\neval.baselines={'fine_tune': {'lr': 0.1}}\ntrain.decay=false",
    b"editor.name=fine_tune\neditor.options={'lr': 0.01}\nmodel.edit_roles=mlp/up,mlp/down\n"
    b"data.template=Q: {} A:\ntrain.trunk_cache=host",
)


@functools.cache
def _config_seed() -> bytes:
    return configs.to_json(configs.load_config("quickstart.py")).encode()


def _read_config(folder: Path, data: bytes) -> None:
    """The config of a run, from its folder: what is believed can be built."""
    put(folder / "config.json", data)
    config = workdir.read_config(folder)
    configs.to_json(config)
    build_editor(config)
    build_optimizer(config)


# --- runs


def _read_report(folder: Path, data: bytes) -> None:
    """The page of a run one of whose files is damaged: told by its first sign."""
    name = {b"[": "examples.json", b"{": "results.json"}.get(data.lstrip()[:1], "examples.json")
    put(folder / "results.json", json.dumps(fake_results()).encode())
    put(folder / "examples.json", json.dumps(fake_examples()).encode())
    put(folder / "metrics.jsonl", b'{"step": 1}\n')
    put(folder / name, data)
    with mock.patch.object(report, "draw", lambda results, lines: {}):
        assert "<html" in report.write(folder).read_text(encoding="utf-8")
    if name == "results.json":
        workdir.read_results(folder)


def _report_seeds() -> list[bytes]:
    return [json.dumps(fake_results()).encode(), json.dumps(fake_examples()).encode()]


def _read_pictures(folder: Path, data: bytes) -> None:
    """All pictures of a run."""
    put(folder / "results.json", json.dumps(fake_results()).encode())
    put(folder / ("results.json" if b"config_name" in data else "metrics.jsonl"), data)
    report.write(folder)


def _grid_seeds() -> list[bytes]:
    results = fake_results() | {"config": {"editor": {"name": "mend"}}}
    results["eval"]["sequential"] = fake_in_turn(0.5)
    return [json.dumps(results).encode()]


def _grid_of(folder: Path, data: bytes) -> dict[str, Any]:
    """A grid of two cells, of which the first left these results."""
    run = Run("one", (), put(folder / "run/results.json", data).parent)
    cell = {"method": "MEND", "seeds": (0,)}
    left = workdir.read_results(run.folder), json.loads(_grid_seeds()[0])
    rows = [make_row(n, cell, [(run, r)]) for n, r in zip(("one", "two"), left, strict=True)]
    return {"title": "T", "config_name": "t.py", "config": {}, "rows": rows, "failed": {}}


def _read_grid(folder: Path, data: bytes) -> None:
    """The table and the page of a grid one of whose two runs left damaged results."""
    found = _grid_of(folder, data)
    write_json(folder / "grid.json", found)
    grid_markdown.table(found)
    with mock.patch.object(grid_report, "draw", lambda rows: {}):
        grid_report.write(folder, found)
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")


def _read_grid_pictures(folder: Path, data: bytes) -> None:
    """The pictures of a grid."""
    grid_report.write(folder, _grid_of(folder, data))


def _metrics_seed() -> bytes:
    return "".join(json.dumps(line) + "\n" for line in fake_metrics(60)).encode()


def _read_metrics(folder: Path, data: bytes) -> None:
    """Every whole line up to the first that is not; a resume keeps those up to its step."""
    lines = JsonLines(put(folder / "metrics.jsonl", data))
    held = lines.read()
    assert all(isinstance(line, dict) for line in held)
    lines.rewind(30)
    assert all(line["step"] <= 30 for line in lines.read())


def _batch() -> bytes:
    """The texts of a batch."""
    arrays = {"index": np.asarray([[3], [5]])}
    for field, kind in (("tokens", "i4"), ("mask", "?"), ("score_pos", "i4"), ("target", "i4"),
                        ("score_mask", "?")):  # fmt: skip
        arrays[f"edit/{field}"] = np.ones((2, 1, 4), kind)
    return serialise(arrays)


def _told() -> bytes:
    """What was told of its step."""
    return json.dumps({"step": 4, "rows": [3, 5], "terms": ["loss"]}).encode()


def _read_batch(folder: Path, data: bytes, told: bytes | None = None) -> None:
    """A batch that training kept: rows with all of their fields, and the number of their step."""
    put(folder / "batch-0000.safetensors", data)
    put(folder / "step.json", _told() if told is None else told)
    batch, found = batch_files.load(folder)
    assert type(found["step"]) is int
    texts_of(batch)


_OF = {"base": "x", "step": 3}


_BATCHES = [
    {"index": index, "scores": {"edit.nll": [0.5, 0.25]}, "answers": {"edit": ["a", "b"]}}
    for index in ([0, 1], [2, 3])
]


def _judged_seed() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        judged = Judged(Path(folder, "judged.jsonl"), _OF)
        for batch in _BATCHES:
            scores = {("edit", "nll"): np.asarray(batch["scores"]["edit.nll"], np.float32)}
            judged.add(batch["index"], scores, batch["answers"])
        return Path(folder, "judged.jsonl").read_bytes()


def _read_judged(folder: Path, data: bytes) -> None:
    """What was judged so far goes on, or is begun anew."""
    judged = Judged(put(folder / "judged.jsonl", data), _OF)
    if judged.batches:
        assert all(len(v) == judged.n_edits for v in judged.scores().values())
        assert len(judged.answers()) == len(judged.index()) == judged.n_edits
        assert json.dumps(judged.batches) in (json.dumps(b) for b in (_BATCHES[:1], _BATCHES))


def _so_far_seed() -> bytes:
    out = io.BytesIO()
    leaves = [np.ones((2, 3), np.float32), np.zeros((4,), np.float32)]
    np.savez(out, *leaves, k=np.asarray(3), of=np.asarray(json.dumps(_OF, sort_keys=True)))
    return out.getvalue()


def _read_so_far(folder: Path, data: bytes) -> None:
    """The edits so far are used where they are whole, and else begun anew: never an error."""
    kept = so_far.SoFar(put(folder / "so_far.npz", data), _OF)
    fresh, state = np.full((2, 3), 7, np.float32), np.full((4,), 7, np.float32)
    k, found, after = kept.load(fresh, state, latest=5)
    assert 0 <= k <= 5
    for old, new in ((fresh, found), (state, after)):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


# --- requests


class _Session:
    """A session without a model."""

    def propose(self, fact: Any) -> None:
        fact.prompt.encode()

    def keep(self, number: int) -> None:
        if number != 1:
            raise DataError(f"no edit {number}: name another")

    discard = revert = keep

    def ask(self, prompt: str) -> dict[str, Any]:
        return {"prompt": prompt, "before": "b", "after": prompt, "edits": 0, "proposed": False}

    def state(self) -> dict[str, Any]:
        return {"base": "B", "editor": "E", "ledger": "L", "proposal": None, "entries": []}


_SERVER = types.SimpleNamespace(
    session=_Session(), lock=threading.Lock(), token="T" * 32, server_port=8000
)


def _requests() -> list[bytes]:
    own = "Host: 127.0.0.1:8000\r\n"
    get = f"GET /?token={_SERVER.token} HTTP/1.1\r\n{own}Accept: */*\r\n\r\n"
    found = [get.encode()]
    for action, fields in (("/propose", {"prompt": "a", "target": "b", "rephrases": "c\nd"}),
                           ("/ask", {"prompt": "<b>"}), ("/revert", {"number": 1})):  # fmt: skip
        body = json.dumps(fields)
        head = f"POST {action} HTTP/1.1\r\n{own}Origin: http://127.0.0.1:8000\r\n"
        head += f"X-Token: {_SERVER.token}\r\nContent-Type: application/json\r\n"
        found.append(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return found


def _read_request(folder: Path, data: bytes) -> None:
    """An answer with a status that is no failure of ours, and nothing in the log."""
    put(folder / "request", data)
    ours, theirs = socket.socketpair()
    faults: list[str] = []
    watch = types.SimpleNamespace(emit=faults.append)
    with ours, theirs, mock.patch.object(logging, "exception", lambda *a: watch.emit(str(a))):
        ours.setblocking(False)
        try:
            ours.send(data)
        except BlockingIOError:
            raise DataError("too long for this test") from None
        ours.shutdown(socket.SHUT_WR)
        serve.Handler(theirs, ("127.0.0.1", 1), _SERVER)
        theirs.shutdown(socket.SHUT_RDWR)
        answer = b""
        while piece := _received(ours):
            answer += piece
    assert not faults, faults
    status = answer.split(b" ", 2)[1:2]
    assert status != [b"500"], answer[:300]
    assert b"<script>alert(1)" not in answer or b"text/plain" in answer
    if status and status != [b"200"]:
        raise DataError("refused")


def _received(ours: socket.socket) -> bytes:
    try:
        return ours.recv(1 << 16)
    except OSError:
        return b""


READERS = {
    "edit file": Reader(_edit_seeds, _read_edit, damage_safetensors, 2),
    "shipped editor": Reader(_shipped_seeds, _read_shipped, damage_safetensors),
    "ledger log": Reader(lambda: [_log()], _read_log, _forged, 2),
    "ledger base": Reader(lambda: [(_ledger() / "base.json").read_bytes()], _read_base, share=0.5),
    "ledger edit": Reader(_ledger_edit_seeds, _read_ledger_edit, damage_safetensors, 0.5),
    "config overrides": Reader(lambda: list(_SETTINGS), _read_overrides, damage_bytes),
    "config values": Reader(lambda: [_config_seed()], _read_config),
    "report": Reader(_report_seeds, _read_report, share=0.5),
    "report pictures": Reader(lambda: [json.dumps(fake_results()).encode(), _metrics_seed()],
                              _read_pictures, share=0.02),
    "grid": Reader(_grid_seeds, _read_grid, share=0.5),
    "grid pictures": Reader(_grid_seeds, _read_grid_pictures, share=0.02),
    "metrics.jsonl": Reader(lambda: [_metrics_seed()], _read_metrics),
    "batch of a step": Reader(lambda: [_batch()], _read_batch, damage_safetensors, 0.5),
    "step of a batch": Reader(
        lambda: [_told()], lambda folder, data: _read_batch(folder, _batch(), data), share=0.5
    ),
    "judged.jsonl": Reader(lambda: [_judged_seed()], _read_judged),
    "edits so far": Reader(lambda: [_so_far_seed()], _read_so_far, damage_bytes),
    "requests to serve": Reader(_requests, _read_request, damage_bytes, 2),
}  # fmt: skip
