"""Readers of edits, shipped editors and ledgers."""

from __future__ import annotations

import functools
import io
import json
import shutil
import tempfile
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
from safetensors.numpy import save as serialise
from support.fake_ledger import fake_measurement
from support.scoped import small_bank, small_scoped
from support.small_edits import FINGERPRINT, UP, bits, small_delta, small_edit

from fuzzing.mutations import damage_bytes, damage_document, damage_json, damage_safetensors
from fuzzing.reader import Reader, put
from mend_jax.core import bank_file, edit_file
from mend_jax.core.weight_edit import Edit
from mend_jax.io import array_files
from mend_jax.ledger import html_view, journal, text_view
from mend_jax.ledger.edit_ledger import Base, Ledger
from mend_jax.training import pretrained

_BASE = Base("tiny", FINGERPRINT, "float32", 2, ("mlp/up",))


# --- edits


def _edit_seeds() -> list[bytes]:
    rng = np.random.default_rng(1)
    dense = {UP: small_delta(rng, UP, rows=None)}
    edits = [small_edit(1, editor="mend@01234567"), Edit(dense, base=FINGERPRINT), small_edit(2)]
    old = {"format": "mend_jax_edit/2", "base": FINGERPRINT, "facts": '[["Who?", "x"]]'}
    arrays = {f"{UP}.w": np.ones((6, 5), np.float32)}
    return [*(edit_file.to_bytes(edit) for edit in edits), serialise(arrays, old)]


def _read_edit(folder: Path, data: bytes) -> None:
    """An edit that was read is written again to the last bit."""
    edit = edit_file.load(put(folder / "e.safetensors", data))
    for delta in edit.deltas.values():
        assert len(delta.shape) == 2
    "".join((edit.base, edit.editor, edit.created, *(t for fact in edit.facts for t in fact)))
    again = edit_file.load(put(folder / "f.safetensors", edit_file.to_bytes(edit)))
    assert (again.base, again.facts, again.editor) == (edit.base, edit.facts, edit.editor)
    assert set(again.deltas) == set(edit.deltas)
    twice = edit_file.load(put(folder / "g.safetensors", edit_file.to_bytes(again)))
    assert bits(twice) == bits(again)


def _bank_seeds() -> list[bytes]:
    first = small_scoped(0)
    facts = [first, small_scoped(1, keys=first.keys), small_scoped(2, key_rows=1)]
    return [bank_file.to_bytes(small_bank(*facts)), bank_file.to_bytes(small_bank())]


def _read_bank(folder: Path, data: bytes) -> None:
    """A bank that was read is written again to the last bit."""
    bank = bank_file.load(put(folder / "b.safetensors", data))
    "".join((bank.base, bank.scope, *(t for f in bank.facts for pair in f.facts for t in pair)))
    again = bank_file.load(put(folder / "c.safetensors", bank_file.to_bytes(bank)))
    assert bank_file.same_facts(again, bank)


def _shipped_seeds() -> list[bytes]:
    tensors = {"params/w": np.ones((3, 4), np.int8), "params/w/int8_scale": np.ones((3, 1), "f4"),
               "state/count": np.ones((2,), np.float32)}  # fmt: skip
    fields = dict.fromkeys((*pretrained._TEXTS, *pretrained._VALUES), "x")
    fields |= {"config": {"name": "mend"}}
    old = {k: json.dumps(v) if k in pretrained._VALUES else v for k, v in fields.items()}
    old["sha256"] = pretrained._old_digest(tensors, fields["config"])
    return [
        array_files.encode(pretrained.FORMAT, tensors, fields),
        serialise(tensors, {"format": pretrained._OLD_FORMAT, **old}),
    ]


def _read_shipped(folder: Path, data: bytes) -> None:
    meta, flat = pretrained._read(put(folder / "editor.safetensors", data))
    json.dumps(meta)
    for array in pretrained._dequantised(flat).values():
        assert array.dtype != np.int8
    pretrained._read(folder / "editor.safetensors", verify=False)


# --- ledgers


@functools.cache
def _ledger() -> Path:
    """Return a ledger of three edits, the second reverted; its log is the undamaged input."""
    top = Path(tempfile.mkdtemp(prefix="mend-fuzz-"))
    ledger = Ledger.create(top / "ledger", _BASE)
    for seed in (1, 2, 3):
        ledger.append(small_edit(seed), fake_measurement((f"fact {seed}", "x")))
    ledger.revert(2)
    return ledger.path


def _log() -> bytes:
    return (_ledger() / "log.jsonl").read_bytes()


def _forged(rng: Random, data: bytes) -> bytes:
    """Return damaged records with correct checksums, as from an attacker."""
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
    """Every entry can be printed and rendered, and every edit is the one that was written.

    A damaged log counts only up to its last complete line.
    """
    outside = folder / "outside.safetensors"
    shutil.copy(next((_ledger() / "edits").iterdir()), outside)
    ledger = _open_with(folder, "log.jsonl", data)
    entries = ledger.entries()
    assert [e.number for e in entries] == list(range(1, len(entries) + 1))
    text_view.print_log(entries, io.StringIO())
    found = text_view.describe_ledger(ledger, entries)
    json.dumps(found)
    for entry in entries:
        file = (ledger.path / entry.file).resolve()
        assert file.parent == (ledger.path / "edits").resolve()
        edit = ledger.edit(entry.number)
        assert bits(edit) == bits(small_edit(int(edit.facts[0][0].split()[1])))
    with mock.patch.object(html_view, "edits_png", lambda measured: None):
        text_view.print_ledger(found, io.StringIO())
        html_view.render_ledger(found)


def _read_base(folder: Path, data: bytes) -> None:
    ledger = _open_with(folder, "base.json", data)
    assert ledger.base == _BASE or isinstance(ledger.base.spec, str)
    view = text_view.describe_ledger(ledger, ledger.entries())
    text_view.print_ledger(view, io.StringIO())


def _read_ledger_edit(folder: Path, data: bytes) -> None:
    """An edit's file in a ledger is loaded as written, or refused."""
    name = sorted(p.name for p in (_ledger() / "edits").iterdir())[0]
    edit = _open_with(folder, f"edits/{name}", data).edit(1)
    assert bits(edit) == bits(small_edit(1))


def _ledger_edit_seeds() -> list[bytes]:
    return [sorted((_ledger() / "edits").iterdir())[0].read_bytes()]


READERS = {
    "edit file": Reader(_edit_seeds, _read_edit, damage_safetensors, 2),
    "bank file": Reader(_bank_seeds, _read_bank, damage_safetensors, 0.5),
    "shipped editor": Reader(_shipped_seeds, _read_shipped, damage_safetensors),
    "ledger log": Reader(lambda: [_log()], _read_log, _forged, 2),
    "ledger base": Reader(lambda: [(_ledger() / "base.json").read_bytes()], _read_base, share=0.5),
    "ledger edit": Reader(_ledger_edit_seeds, _read_ledger_edit, damage_safetensors, 0.5),
}  # fmt: skip
