"""Fuzzing in short, and of each kind of fault that it has found one input that stays."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pytest
from fuzzing import edit_readers, guard, request_readers, run_readers
from fuzzing.readers import READERS
from support.full_counts import FUZZED_INPUTS
from support.tiny import HF

from mend_jax.errors import DataError
from mend_jax.ledger import journal


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """The folder that the inputs of faults are saved in."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def tallies(faults):
    """Every reader on a share of the inputs, in a process of their own."""
    return fuzz.fuzz(list(READERS), FUZZED_INPUTS, seed=0, out=faults)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_rightly_or_refused_by_name(tallies, faults, name):
    found = tallies[name]
    said = [(faults / f"{fault}.txt").read_text(errors="replace") for fault in found.faults]
    assert found.faults == [], "\n".join(said)
    shares = fuzz.shares({n: r.share for n, r in READERS.items()}, FUZZED_INPUTS)
    assert found.inputs == shares[name]
    assert found.read + found.refused == found.inputs and found.read > 0


@pytest.mark.slow
def test_most_damaged_files_are_refused(tallies):
    """By nearly every reader; runs continue despite damaged logs, pictures and repeatable work."""
    never = {name for name, t in tallies.items() if not t.refused}
    repeatable = {"sequential edits", "sequential edits of an older run"}  # damaged: made again
    few = {"grid pictures"}  # of so few inputs that all may be read
    assert never - few == {"metrics.jsonl", "judged.jsonl", "report pictures"} | repeatable
    assert sum(t.refused for t in tallies.values()) > FUZZED_INPUTS / 2


def test_the_same_seed_makes_the_same_inputs():
    for name in ("facts", "GGUF", "wheel", "ledger log"):
        one, same, other = (fuzz.make_input(name, 40, seed) for seed in (3, 3, 4))
        assert one == same != other


def hangs(folder, data):
    while True:
        pass


def refuses_silently(folder, data):
    raise DataError("")


@pytest.mark.parametrize(
    "read,says",
    [
        (hangs, "TooSlow"), (refuses_silently, "has no message"),
        (lambda *_: {}["a"], "KeyError"), (lambda *_: exec("assert 1 == 2"), "AssertionError"),
    ],
)  # fmt: skip
def test_what_is_neither_read_nor_refused_is_a_fault(monkeypatch, read, says):
    monkeypatch.setattr(guard, "SECONDS", 0.2 if read is hangs else 10.0)
    outcome = guard.attempt(lambda: read(None, b""))
    assert outcome.kind == guard.FAULT and says in outcome.text


def test_an_input_that_takes_much_memory_is_a_fault():
    """In a process of its own: growth is above the most that a process ever had."""
    program = "from fuzzing import guard; print(guard.attempt(lambda: b'x' * (2 * guard.GROWTH)))"
    here = Path(__file__).parents[1]
    paths = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "kind='fault'" in done.stdout and "MiB of memory" in done.stdout


# --- one input for each kind of fault that was found


def hf(kind, **fields):
    return json.dumps(HF[kind] | fields).encode()


def tokenizer(change):
    """The byte tokenizer with a change of its JSON."""
    whole = json.loads(READERS["tokenizer.json"].seeds()[1])
    change(whole)
    return json.dumps(whole).encode()


def config(change):
    """The quickstart's config with a change."""
    whole = json.loads(request_readers._config_seed())
    change(whole)
    return json.dumps(whole).encode()


def forged(**fields):
    """The ledger's log with fields of its first record changed and all checksums right."""
    records = [json.loads(line)["record"] for line in edit_readers._log().splitlines()]
    records[0] |= fields
    return sealed(records)


def sealed(records):
    checksum, lines = edit_readers._BASE.fingerprint, []
    for record in records:
        line, checksum = journal._line(checksum, record)
        lines.append(line + b"\n")
    return b"".join(lines)


def wheel_with(at, value, method=zipfile.ZIP_DEFLATED):
    """A wheel whose first member's data is damaged."""
    i = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA).index(method)
    data = bytearray(READERS["wheel"].seeds()[i])
    data[at] = value
    return bytes(data)


def encrypted():
    data = bytearray(READERS["wheel"].seeds()[0])
    for sign, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.find(sign) + at] |= 1
    return bytes(data)


def safetensors(header):
    return struct.pack("<Q", len(header)) + header + bytes(200)


def empty_tensor(data):
    """A GGUF file, of which one tensor has the dimensions 0 and 2^62."""
    at = data.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4
    return data[:at] + struct.pack("<QQ", 32 << 57, 0) + data[at + 16 :]


def changed_line(data, number, line):
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:number], line + b"\n", *lines[number + 1 :]])


DEEP = b"[" * 100_000
WORSE = b"[" * 900 + b"]" * 900  # that Python parses, but does not walk through
JUDGED = READERS["judged.jsonl"].seeds()[0]
METRICS = READERS["metrics.jsonl"].seeds()[0]
KNOWEDIT = json.loads(READERS["zsRE, KnowEdit"].seeds()[0].splitlines()[0])
CLAIM = {"id": 1, "claim": "a b", "label": "SUPPORTS"}

REFUSED = {
    "deep index": ("sharded index", b'{"weight_map": ' + DEEP),
    "deep header": ("safetensors", safetensors(b'{"a": ' + DEEP)),
    "deep config": ("config.json", b'{"model_type": ' + DEEP),
    "deep results": ("report", b'{"eval": ' + DEEP),
    "deep but sound results": ("report", b'{"eval": {"a": ' + WORSE + b"}}"),
    "deep but sound record": ("zsRE, KnowEdit", json.dumps(
        KNOWEDIT | {"ground_truth": "@"}).encode().replace(b'"@"', WORSE)),
    "file name of 20,000 signs": ("sharded index", json.dumps(
        {"weight_map": {"c": "A" * 20000}}).encode()),
    "a billion blocks": ("config.json", hf("llama", num_hidden_layers=10**9)),
    "a billion blocks of two kinds": ("config.json", hf(
        "gpt_neo", attention_types=[[["global", "local"], 10**9]])),
    "a width that is a text": ("config.json", hf("gpt2", n_embd="32")),
    "heads of no width": ("config.json", hf("llama", hidden_size=0)),
    "a size beyond all models": ("config.json", hf("llama", vocab_size=2**40)),
    "an activation that is a list": ("config.json", hf("bert", hidden_act=["gelu"])),
    "rotary numbers that are lists": ("config.json", hf("llama3", rope_scaling=dict(
        rope_type="llama3", factor=[8.0], low_freq_factor=1.0, high_freq_factor=4.0))),
    "no heads": ("config.json", hf("gpt2", n_head=0)),
    "a norm's constant that is not finite": ("config.json", hf("llama", rms_norm_eps=float("inf"))),
    "nothing in a tensor": ("GGUF", empty_tensor(READERS["GGUF"].seeds()[0])),
    "a token's id that is large": ("tokenizer.json", tokenizer(
        lambda t: t["model"]["vocab"].update(ab=10**7))),
    "a mark without a token": ("tokenizer.json", tokenizer(
        lambda t: t["post_processor"]["special_tokens"].pop("[SEP]"))),
    "an end of text that is infinite": ("tokenizer_config.json", b'{"eos_token_id": 1e999}'),
    "an end of text that is a list": ("tokenizer_config.json", b'{"eos_token_id": [{}]}'),
    "an end of text that is no token": ("tokenizer_config.json", b'{"eos_token_id": 99999}'),
    "a damaged deflate stream": ("wheel", wheel_with(42, 0xFF)),
    "a damaged LZMA stream": ("wheel", wheel_with(60, 0xFF, zipfile.ZIP_LZMA)),
    "an encrypted member": ("wheel", encrypted()),
    "a label that is a list": ("FEVER, KILT", json.dumps(
        {"id": 1, "input": "a", "output": [{"answer": ["x"]}]}).encode()),
    "a page that is a number": ("FEVER, original", json.dumps(
        CLAIM | {"evidence": [[[1, 2, 3, 4]]]}).encode()),
    "a record that is a list": ("ledger log", sealed([[]])),
    "a record without fields": ("ledger log", sealed([{"kind": "edit"}])),
    "a number that is not the next": ("ledger log", forged(number=2)),
    "a revert of what is not there": ("ledger log", sealed(
        [{"kind": "revert", "number": 7, "made": ""}])),
    "a revert of half an edit": ("ledger log", forged(kind="revert", number=1.5)),
    "facts that are no pairs": ("ledger log", forged(facts=[["a"]])),
    "a file outside the ledger": ("ledger log", forged(file="../outside.safetensors")),
    "a file by its whole path": ("ledger log", forged(file="/etc/passwd")),
    "a base of odd types": ("ledger base", b'{"format": "mend_jax_ledger/1", "spec": [], '
                            b'"fingerprint": "0123456789abcdef", "dtype": "float32", '
                            b'"last_n_blocks": 2, "edit_roles": []}'),
    "a deep base": ("ledger base", DEEP),
    "an option of another type": ("config overrides", b"editor.options={'rank': 4, 'shared': 'a'}"),
    "an option that is a group": ("config overrides", b"editor.options={'step_size': {'a': 1}}"),
    "a number that is not finite": ("config overrides", b"data.length_buckets=(8, 1e999)"),
    "a value of many parentheses": ("config overrides", b"train.lr=" + b"-" * 100_000 + b"1"),
    "no baselines": ("config values", config(lambda c: c["eval"].pop("baselines"))),
    "a baseline that is a number": ("config values", config(
        lambda c: c["eval"].update(baselines={"fine_tune": 3}))),
}  # fmt: skip
READ = {  # what a run goes on beside
    "a fault that is a list": ("report", json.dumps([{"prompt": "a", "fault": [1]}]).encode()),
    "a line that is not UTF-8": ("metrics.jsonl", changed_line(METRICS, 2, b"\xff")),
    "a line that is a list": ("metrics.jsonl", changed_line(METRICS, 2, b"[1]")),
    "a line without a step": ("metrics.jsonl", changed_line(METRICS, 2, b'{"loss": 1}')),
    "a step that is a text": ("metrics.jsonl", changed_line(METRICS, 2, b'{"step": "3"}')),
    "a number of 5,000 digits": ("metrics.jsonl", changed_line(METRICS, 2, b"9" * 5000)),
    "a deep line": ("metrics.jsonl", changed_line(METRICS, 2, DEEP)),
    "a digit of a score": ("judged.jsonl", JUDGED.replace(b"0.25", b"0.26", 1)),
    "a batch twice": ("judged.jsonl", JUDGED + JUDGED.splitlines(keepends=True)[-1]),
    "a batch that is no batch": ("judged.jsonl", changed_line(JUDGED, 1, b'{"index": 3}')),
    "numbers that are not known": ("ledger log", forged(measured={"version": 1, "facts": [3]})),
    "numbers of half the form": ("ledger log", forged(measured={"version": 1, "verdict": {}})),
}  # fmt: skip


def outcome_of(name, data, folder):
    folder.mkdir(exist_ok=True)
    return guard.attempt(lambda: READERS[name].read(folder, data))


@pytest.mark.parametrize("what", REFUSED)
def test_a_fault_that_was_fixed_is_refused(tmp_path, what):
    name, data = REFUSED[what]
    outcome = outcome_of(name, data, tmp_path / "input")
    assert (outcome.kind, outcome.text) == (guard.REFUSED, "")


@pytest.mark.parametrize("what", READ)
def test_a_fault_that_was_mended_stops_no_run(tmp_path, what):
    name, data = READ[what]
    outcome = outcome_of(name, data, tmp_path / "input")
    assert (outcome.kind, outcome.text) == (guard.READ, "")


def test_a_kept_array_that_cannot_be_unpacked_is_begun_anew(tmp_path):
    data = bytearray(run_readers._so_far_seed())
    for sign, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.find(sign) + at] = 99  # a way of packing that there is not
    outcome = outcome_of("sequential edits", bytes(data), tmp_path / "input")
    assert (outcome.kind, outcome.text) == (guard.READ, "")


def test_a_small_gzip_file_does_not_fill_the_memory(tmp_path):
    """256 MiB of zeros in 1 MB: what is unpacked is bounded by what a text can be."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as file:
        for _ in range(256):
            file.write(bytes(1 << 20))
    outcome = outcome_of("packed records", packed.getvalue(), tmp_path / "input")
    assert outcome.kind == guard.REFUSED and outcome.grown < guard.GROWTH


class Trap:
    """What runs where it is unpickled: it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_in_place_of_any_file_is_not_unpickled(tmp_path, name):
    trap = tmp_path / "sprung"
    for i, data in enumerate((pickle.dumps(Trap(trap)), pickle.dumps(Trap(trap), protocol=0))):
        outcome = outcome_of(name, data, tmp_path / f"input{i}")
        assert outcome.kind != guard.FAULT, outcome.text
        assert not trap.exists()
    pickle.loads(data)
    assert trap.exists()  # it would have been seen


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    trap = tmp_path / "sprung"
    out = io.BytesIO()
    objects = np.empty((2, 3), object)
    objects[:] = Trap(trap)
    np.savez(out, objects, np.zeros(4, np.float32), k=np.asarray(3),
             of=np.asarray(json.dumps(run_readers._OF, sort_keys=True)))  # fmt: skip
    outcome = outcome_of("sequential edits", out.getvalue(), tmp_path / "input")
    assert outcome.kind == guard.READ and not trap.exists()
