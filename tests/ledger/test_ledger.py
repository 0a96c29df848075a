"""The ledger keeps every confirmed edit through kills, full disks and damaged files."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ledger_kills
from support.full_counts import KILLS
from support.ledger_kills import BASE
from support.small_edits import DOWN, FINGERPRINT, UP, bits, small_delta, small_edit

from mend_jax.core.combined_edits import combine_edits
from mend_jax.core.compose import sum_edits
from mend_jax.errors import CheckpointError, LedgerError
from mend_jax.ledger import journal
from mend_jax.ledger.edit_ledger import Base, Ledger

OTHER = "fedcba9876543210"


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(tmp_path / "ledger", BASE)


def log(ledger):
    return ledger.path / "log.jsonl"


def files(ledger):
    return sorted(p.name for p in (ledger.path / "edits").iterdir())


def filled(ledger):
    """Append three edits, and revert the second."""
    for seed in (1, 2, 3):
        ledger.append(small_edit(seed))
    ledger.revert(2)
    return ledger


def mixed(seed):
    """Return an edit with a low-rank delta of one weight and a dense delta of another."""
    edit = small_edit(seed)
    dense = small_delta(np.random.default_rng(seed + 100), DOWN, rows=None)
    return edit.replace(deltas={**edit.deltas, DOWN: dense})


def test_an_appended_edit_is_read_back(ledger):
    edit = small_edit(1, editor="mend@01234567", created="2026-01-02T03:04:05+00:00")
    measured = {"nll": (1.5, float("nan")), 10: "ten", 9: {"text": "Ünï \ud800\n\u2028"}}
    first = ledger.append(edit, measured)
    assert (first.number, first.facts, first.editor) == (1, edit.facts, edit.editor)
    assert (first.created, first.reverted) == (edit.created, False)
    assert first.measured == {"nll": [1.5, None], "10": "ten", "9": measured[9]}
    second = ledger.append(small_edit(2))
    assert second.created.endswith("+00:00") and second.measured == {}
    again = Ledger.open(ledger.path)
    assert again.base == BASE
    assert again.entries() == again.active() == [first, second]
    assert bits(again.edit(1)) == bits(edit) and again.edit(1).created == edit.created
    assert bits(again.edit(2)) == bits(small_edit(2))
    assert files(again) == [f"0001-{first.sha256[:8]}.safetensors", second.file.split("/")[1]]


def with_keys(seed):
    """Return an edit that is combined with others by least squares."""
    edit, rng = mixed(seed), np.random.default_rng(seed + 200)
    keys = {n: rng.normal(size=(3, d.shape[0])).astype("f") for n, d in edit.deltas.items()}
    return edit.replace(keys=keys)


def test_edits_with_keys_are_combined_and_a_revert_leaves_one_out(ledger, tmp_path):
    without = Ledger.create(tmp_path / "without", BASE)
    for seed in range(4):
        ledger.append(with_keys(seed))
        if seed != 1:
            without.append(with_keys(seed))
    assert bits(ledger.composed()) == bits(combine_edits([with_keys(seed) for seed in range(4)]))
    assert bits(ledger.composed()) != bits(sum_edits([with_keys(seed) for seed in range(4)]))
    ledger.revert(2)
    assert bits(ledger.composed()) == bits(without.composed())
    more = with_keys(9)
    assert bits(ledger.composed(more)) == bits(
        combine_edits([with_keys(s) for s in (0, 2, 3)] + [more])
    )
    for number in (1, 4):
        ledger.revert(number)
    assert bits(ledger.composed()) == bits(with_keys(2))  # the only one stays as it is


def test_reverting_is_exact(ledger, tmp_path):
    """The active edits are bit for bit as if the edit had never been made, dense or low-rank."""
    without = Ledger.create(tmp_path / "without", BASE)
    for seed, kind in enumerate((small_edit, mixed, mixed, small_edit, mixed)):
        ledger.append(kind(seed))
        if seed != 2:
            without.append(kind(seed))
    edits = [ledger.edit(number) for number in range(1, 6)]
    assert bits(ledger.composed()) == bits(sum_edits(edits))
    reverted = ledger.revert(3)
    assert reverted.reverted and reverted.reverted_at and reverted == ledger.entries()[2]
    assert [entry.number for entry in ledger.active()] == [1, 2, 4, 5]
    assert bits(ledger.composed()) == bits(without.composed())
    assert bits(ledger.composed()) != bits(sum_edits(edits))
    assert bits(ledger.edit(3)) == bits(mixed(2))  # it can still be loaded
    assert ledger.append(small_edit(9)).number == 6
    for number in (1, 2, 4, 5, 6):
        ledger.revert(number)
    assert ledger.composed() is None and len(ledger.entries()) == 6


def test_reverting_a_missing_or_reverted_edit_is_refused(ledger):
    with pytest.raises(LedgerError, match="has no edit 1: it holds no edits"):
        ledger.revert(1)
    filled(ledger)
    whole = log(ledger).read_bytes()
    for number in (0, -1, 4):
        with pytest.raises(LedgerError, match=f"has no edit {number}: it holds edits 1 to 3"):
            ledger.revert(number)
        with pytest.raises(LedgerError, match=f"has no edit {number}"):
            ledger.edit(number)
    with pytest.raises(LedgerError, match="edit 2 is reverted already"):
        ledger.revert(2)
    assert log(ledger).read_bytes() == whole


def test_other_bases_are_refused(ledger):
    both = f"(?s){OTHER}.*{FINGERPRINT}"
    with pytest.raises(CheckpointError, match=both):
        ledger.append(small_edit(base=OTHER))
    with pytest.raises(CheckpointError, match=f"base unknown.*{FINGERPRINT}"):
        ledger.append(small_edit(base=""))
    with pytest.raises(CheckpointError, match=both):
        Ledger.open_or_create(ledger.path, Base("another", OTHER, "float32", 2, ()))
    assert ledger.entries() == [] and files(ledger) == []
    # A record that another program wrote.
    small_edit(base=OTHER).save(ledger.path / "edits/0001-x.safetensors")
    record = ledger_record(ledger.path, "edits/0001-x.safetensors")
    journal.append(log(ledger), FINGERPRINT, record)
    with pytest.raises(CheckpointError, match=both):
        ledger.edit(1)
    base = json.loads((ledger.path / "base.json").read_text())
    (ledger.path / "base.json").write_text(json.dumps(base | {"fingerprint": OTHER}))
    with pytest.raises(LedgerError, match="line 1 of 1"):
        Ledger.open(ledger.path)


def ledger_record(folder, file):
    digest = journal.hashlib.sha256((folder / file).read_bytes()).hexdigest()
    return {
        "kind": "edit", "number": 1, "file": file, "sha256": digest, "facts": [], "editor": "",
        "made": "", "measured": {},
    }  # fmt: skip


def test_measurements_that_json_cannot_hold_are_refused(ledger):
    for measured in ({"x": np.float32(1)}, {("a", "b"): 1}):
        with pytest.raises(LedgerError, match="JSON cannot hold"):
            ledger.append(small_edit(), measured)
    assert ledger.entries() == [] and files(ledger) == []


def test_creating_and_opening(tmp_path):
    with pytest.raises(LedgerError, match="nowhere holds no ledger"):
        Ledger.open(tmp_path / "nowhere")
    with pytest.raises(LedgerError, match="a ledger must be a local folder"):
        Ledger.open("gs://bucket/ledger")
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="file: the ledger was not created"):
        Ledger.create(tmp_path / "file", BASE)
    made = Ledger.open_or_create(tmp_path / "a" / "b", BASE)
    made.append(small_edit())
    moved = Base("elsewhere", FINGERPRINT, "float32", 9, ())
    assert Ledger.open_or_create(made.path, moved) == made  # the original spec is kept
    with pytest.raises(LedgerError, match="is a ledger already"):
        Ledger.create(made.path, BASE)
    whole = (made.path / "base.json").read_text()
    for text, message in (
        ("", "base.json: damaged"),
        ("[]", "base.json: damaged"),
        (whole.replace("dtype", "type"), "base.json: damaged"),
        (whole.replace("ledger/1", "ledger/7"), "format 'mend_jax_ledger/7' is not"),
    ):
        (made.path / "base.json").write_text(text)
        with pytest.raises(LedgerError, match=message):
            Ledger.open_or_create(made.path, BASE)
    (made.path / "base.json").unlink()
    with pytest.raises(LedgerError, match="holds a log of edits but no base.json"):
        Ledger.open_or_create(made.path, BASE)
    (made.path / "base.json").write_text(whole)
    (made.path / "lock").unlink()  # as in a copy; reading needs no write access
    assert len(Ledger.open(made.path).entries()) == 1 and not (made.path / "lock").exists()
    log(made).unlink()
    with pytest.raises(LedgerError, match="log.jsonl: the log of the edits cannot be read"):
        Ledger.open(made.path)


def test_every_damaged_byte_of_the_log_is_detected(ledger):
    """Any byte of any line and line end; only the very last byte leaves an unfinished line."""
    whole = log(filled(ledger)).read_bytes()
    lines = whole.count(b"\n")
    assert lines == 4
    for at in range(len(whole) - 1):
        line = whole[:at].count(b"\n") + 1
        for wrong in {whole[at] ^ 1, *((10, 13, 0, 255) if at % 9 == 0 else ())} - {whole[at]}:
            log(ledger).write_bytes(whole[:at] + bytes([wrong]) + whole[at + 1 :])
            with pytest.raises(LedgerError, match=f"log.jsonl: line {line} of ") as found:
                journal.read(log(ledger), FINGERPRINT)
    assert "lost power" in str(found.value)  # for the last line only
    with pytest.raises(LedgerError, match="line 4 of"):  # and nothing is appended
        ledger.append(small_edit(4))
    assert len(files(ledger)) == 3


def test_removed_swapped_or_repeated_lines_are_detected(ledger):
    a, b, c, d = log(filled(ledger)).read_bytes().splitlines(keepends=True)
    for lines, bad in (((a, c, d), 2), ((b, c, d), 1), ((a, c, b, d), 2), ((a, a, b, c, d), 2)):
        log(ledger).write_bytes(b"".join(lines))
        with pytest.raises(LedgerError, match=f"line {bad} of "):
            Ledger.open(ledger.path)


def test_records_of_later_versions_are_refused(ledger):
    journal.append(log(ledger), FINGERPRINT, {"kind": "blessing"})
    with pytest.raises(LedgerError, match="kind 'blessing', which this version does not know"):
        Ledger.open(ledger.path)


def test_an_unfinished_last_line_is_ignored_and_then_cut_off(ledger):
    """After a crash at any byte of a line, or a lost disk page."""
    before = log(filled(ledger)).read_bytes()
    held = ledger.entries()
    ledger.append(small_edit(4))
    line = log(ledger).read_bytes()[len(before) :]
    tails = [line[:n] for n in range(len(line))] + [bytes(300), b"\xff\r" * 9]
    for i, tail in enumerate(tails):
        log(ledger).write_bytes(before + tail)
        assert Ledger.open(ledger.path).entries() == held
        if i % 16 == 0 or tail not in line:
            entry = ledger.append(small_edit(5))
            assert ledger.entries() == [*held, entry] and entry.number == 4
            whole = log(ledger).read_bytes()
            assert whole.startswith(before + b'{"sum') and whole.endswith(b"}}\n")


def test_damaged_swapped_and_missing_edit_files_are_refused(ledger):
    filled(ledger)
    one, three = (ledger.path / ledger.entries()[i].file for i in (0, 2))
    whole = one.read_bytes()
    for at in (0, 8, len(whole) // 2, len(whole) - 1):
        one.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        for act in (lambda: ledger.edit(1), ledger.composed):
            with pytest.raises(LedgerError, match=rf"{one.name}: not the file .* edit 1 \(sha256"):
                act()
    shutil.copy(three, one)
    with pytest.raises(LedgerError, match="not the file written as edit 1"):
        ledger.edit(1)
    one.write_bytes(whole[:-1])
    with pytest.raises(LedgerError, match="not the file written as edit 1"):
        ledger.edit(1)
    one.unlink()
    with pytest.raises(LedgerError, match=f"{one.name}: the file of edit 1 is missing"):
        ledger.edit(1)
    ledger.revert(1)  # as the message suggests; the others stay active
    assert bits(ledger.composed()) == bits(small_edit(3))


WRITES = {"open", "write", "flush", "fsync", "replace", "pwrite", "ftruncate", "flock"}


class Fault:
    """Raises an OSError in place of the nth C call among WRITES."""

    def __init__(self, n):
        self.left, self.reached = n, False

    def __call__(self, frame, event, arg):
        if event == "c_call" and arg.__name__ in WRITES and not self.reached:
            self.left -= 1
            if self.left < 0:
                self.reached = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def fault(n):
    found, before = Fault(n), sys.getprofile()
    sys.setprofile(found)
    try:
        yield found
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize("act", ["append", "revert"])
def test_a_full_disk_at_any_call_loses_nothing(ledger, act):
    """A LedgerError, an unchanged ledger, no file left behind, and the next edit is recorded."""
    filled(ledger)
    held, here, whole = ledger.entries(), files(ledger), log(ledger).read_bytes()
    for n in range(100):
        with fault(n) as found:
            try:
                ledger.append(small_edit(4)) if act == "append" else ledger.revert(1)
            except LedgerError as e:
                assert "No space left" in str(e)
                assert "was not recorded" in str(e) or "cannot be read" in str(e)
        if not found.reached:
            break
        # The last calls come after the line is on disk; only closing the file can fail.
        assert (ledger.entries(), files(ledger)) == (held, here)
        assert log(ledger).read_bytes() == whole
    assert n >= (12 if act == "append" else 5)
    assert len(ledger.entries()) == (4 if act == "append" else 3)
    assert ledger.append(small_edit(5)).number == len(files(ledger))
    ledger.composed()


@pytest.mark.parametrize("stuck", [False, True])
def test_a_disk_that_fills_up_within_a_line_loses_nothing(ledger, monkeypatch, stuck):
    """Part of the line is written; with `stuck` it cannot even be cut off again."""
    filled(ledger)
    held, here = ledger.entries(), files(ledger)
    size, room = log(ledger).stat().st_size, [0]
    pwrite, ftruncate = os.pwrite, os.ftruncate

    def short(file, data, offset):
        got = pwrite(file, data[: room[0]], offset) if room[0] else 0
        room[0] -= got
        if not got:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return got

    def cut(file, end):
        if os.fstat(file).st_size > size:
            raise OSError(errno.EIO, "cannot cut")
        ftruncate(file, end)

    line = log(ledger).read_bytes().index(b"\n")  # the next one is as long
    for fits in (*range(0, line, 23), line):  # up to all but its line end
        room[0] = fits
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", short)
            if stuck:
                patched.setattr(os, "ftruncate", cut)
            with pytest.raises(LedgerError, match="was not recorded.*(No space left|cannot cut)"):
                ledger.append(small_edit(4))
        assert (log(ledger).stat().st_size > size) == (stuck and fits > 0)
        assert (ledger.entries(), files(ledger)) == (held, here)
        if stuck:
            log(ledger).write_bytes(log(ledger).read_bytes()[:size])
    room[0] = 23
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:23], at))
        assert ledger.append(small_edit(4)).number == 4  # short writes are continued
    assert len(ledger.entries()) == 4


def test_a_line_that_could_not_be_cut_off_keeps_its_edit(ledger, monkeypatch):
    """The complete line is on disk, unconfirmed: the entry stays, and so must its file."""
    ledger.append(small_edit(1))
    size, ftruncate, fsync = log(ledger).stat().st_size, os.ftruncate, os.fsync

    def broken(real):
        def call(file, *args):
            if os.fstat(file).st_size > size and os.path.samestat(
                os.fstat(file), log(ledger).stat()
            ):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(file, *args)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken(fsync))
        patched.setattr(os, "ftruncate", broken(ftruncate))
        with pytest.raises(LedgerError, match="was not recorded.*Input/output error"):
            ledger.append(small_edit(2))
    assert [entry.facts[0][0] for entry in ledger.entries()] == ["fact 1", "fact 2"]
    assert bits(ledger.composed()) == bits(sum_edits([small_edit(1), small_edit(2)]))


def test_an_edit_is_on_disk_before_the_log_names_it(ledger, monkeypatch):
    """Power cuts require this order: file, name, line, each flushed before the next."""
    done = []

    def record_calls(name, at=0):
        real = getattr(os, name)

        def call(*args):
            where = args[at]
            path = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else where
            done.append((name, Path(path).name))
            return real(*args)

        monkeypatch.setattr(os, name, call)

    record_calls("fsync"), record_calls("pwrite"), record_calls("replace", at=1)
    entry = ledger.append(small_edit(1))
    name = entry.file.split("/")[1]
    (first, scratch), *rest = done
    assert first == "fsync" and scratch.startswith(f".{name}.")
    assert rest == [
        ("replace", name),
        ("fsync", "edits"),
        ("pwrite", "log.jsonl"),
        ("fsync", "log.jsonl"),
    ]
    done.clear()
    ledger.revert(1)
    assert done == [("pwrite", "log.jsonl"), ("fsync", "log.jsonl")]


def run_kills(kind, folder):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    path = os.pathsep.join([str(Path(ledger_kills.__file__).parents[1]), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-W", "error", ledger_kills.__file__, kind, str(folder)],
        env=env | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_kills_at_random_moments_lose_nothing(tmp_path):
    """200 of them with --full."""
    found = run_kills("random", tmp_path)
    assert found["kills"] == KILLS
    assert found["confirmed"] > KILLS / 2


def test_a_kill_at_any_call_loses_nothing(tmp_path):
    """The number of calls depends on the machine; the bounds show that calls are counted."""
    found = run_kills("calls", tmp_path)
    assert found["create"] > 20 and found["append"] > 20 and found["revert"] > 10


def test_concurrent_writers_lose_nothing(tmp_path):
    found = run_kills("many", tmp_path)
    assert found["confirmed"] == found["entries"] == ledger_kills.WRITERS * ledger_kills.EACH
    assert found["turns"] >= ledger_kills.WRITERS - 1


def test_edits_of_different_weights_compose_in_order(ledger):
    ledger.append(small_edit(1, names=(UP,)))
    ledger.append(small_edit(2, names=(DOWN,)))
    assert list(ledger.composed().deltas) == [UP, DOWN]


COMMANDS = """
import sys
from mend_jax.ledger.cli import main
for argv in (["log"], ["show"], ["show", "--json"], ["revert", "1"], ["log", "--json"]):
    assert main([*argv, "--ledger", sys.argv[1]]) == 0, argv
heavy = {"jax", "numpy", "scipy", "transformers", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_what_needs_no_arrays_imports_no_jax(ledger):
    """`log`, `show` and `revert` take a fraction of a second."""
    ledger.append(small_edit(1))
    argv = [sys.executable, "-c", COMMANDS, str(ledger.path)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
