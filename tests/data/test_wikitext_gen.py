"""Targets that a base model samples after passages: samples, unusable ones, the command."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from support.tiny import HF, save_tiny
from test_wikitext import article

from mend_jax import data, hub, models
from mend_jax.data import prepared_files
from mend_jax.data.sources import wikitext
from mend_jax.data.sources import wikitext_gen as gen
from mend_jax.data.sources.wikitext_gen import continuations
from mend_jax.data.sources.wikitext_gen.__main__ import main
from mend_jax.errors import DataError
from mend_jax.hub import text_encoding
from mend_jax.hub.language_model import load_model
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.models.params import random_params

ROOT = Path(__file__).parents[2]
WORDS = ("ash", "elm", "oak", "fir", "yew", "larch", "Pine")
SIZES = {
    "default": dict(train=24, validation=4, test=4),
    "small": dict(train=5, validation=2, test=2),
}


def word_tokenizer():
    """Return a tokenizer with one token a byte, and one for each of WORDS with a space before."""
    vocab = dict(Tokenizer.tiny().inner.get_vocab())
    merges = []
    for word in WORDS:
        known = "Ġ"
        for letter in word:
            if (known, letter) not in merges:
                merges.append((known, letter))
            known += letter
            vocab.setdefault(known, len(vocab))
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    eos = tokenizers.AddedToken("<|eos|>", special=True, normalized=False)
    inner.add_special_tokens([eos])
    return Tokenizer(inner, eos_id=vocab["<|eos|>"])


def save_base(folder, seed=0, liked=9.0):
    """Save a tiny GPT-2 that mostly says WORDS: their embeddings follow the last norm's bias."""
    tokenizer = word_tokenizer()
    assert tokenizer.vocab_size <= HF["gpt2"]["vocab_size"]
    family = models.find_family(HF["gpt2"])
    specs = family.tensor_specs(models.parse_config(family, HF["gpt2"]))
    flat = random_params(specs, seed, 0.2)
    ids = [tokenizer.encode(f" {word}")[0] for word in WORDS]
    flat["embedding"][ids] += 1.0
    flat["final_norm/bias"][:] = liked / flat["final_norm/bias"].size
    hub.save_hf(folder, HF["gpt2"], flat, specs)
    tokenizer.save(folder)
    return str(folder)


def save_texts(root):
    """Save articles of four passages of made-up words: 15 for training, 4 for each other split."""
    rng = np.random.default_rng(0)

    def line():
        return " ".join(["Pine", *rng.choice(WORDS[:-1], 54), "."])

    (root / "wikitext-2").mkdir()
    for split, n in (("train", 15), ("valid", 4), ("test", 4)):
        text = "".join(article(f"{split} {i}", *(line() for _ in range(4))) for i in range(n))
        (root / "wikitext-2" / f"{split}.txt").write_text(text)
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_model(save_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return save_texts(tmp_path_factory.mktemp("root"))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(gen, "SIZES", SIZES)


@functools.cache
def passages(root):
    return wikitext.recipe("default", root).build().splits["train"]


def a_start(text, tokenizer, rest=("ash",) * 12):
    return continuations.Start("k", "s", text, tuple(tokenizer.encode(text)), rest)


def test_rows_are_made_of_passages(base, root, tmp_path):
    found = data.load("wikitext_gen", root, tmp_path, base)
    assert {name: len(held) for name, held in found.splits.items()} == SIZES["default"]
    assert found.task == "gen" and found.name == "wikitext_gen"
    texts = {row["key"]: row for row in passages(root)}
    for row in found.split("train"):
        passage = texts[row["key"]]["far"].split()
        prompt, target = row["prompt"].split(), row["target"].split()
        assert passage[: len(prompt)] == prompt and row["subject"] == texts[row["key"]]["subject"]
        assert " ".join(passage[len(prompt) :]).startswith(row["truth"])
        assert len(row["truth"].split()) == len(target)
        assert (
            continuations.LEAST <= len(base.tokenizer.encode(row["prompt"])) <= continuations.MOST
        )
        kept = row["rephrase"].split()
        assert prompt[-len(kept) :] == kept and len(prompt) > len(kept) >= len(prompt) / 2
        seqs = text_encoding.encode_fact(
            base.tokenizer, row["prompt"], row["target"], 64, 12, False
        )
        assert seqs.score_mask.sum() == continuations.NEW
        assert not row["far"] and not row["near_prompt"]
    assert len({row["target"] for row in found.split("train")}) > 12
    subjects = [{row["subject"] for row in held} for held in found.splits.values()]
    assert not subjects[0] & subjects[1] and not subjects[0] & subjects[2]


def test_small_holds_the_first_rows_of_default(base, root, tmp_path, monkeypatch):
    default = data.load("wikitext_gen", root, tmp_path, base)
    small = data.load("wikitext_gen/small", root, tmp_path, base)
    for name, held in small.splits.items():
        assert list(held) == list(default.split(name))[: SIZES["small"][name]]
    monkeypatch.setattr(continuations, "sample", lambda *_: pytest.fail("sampled again"))
    again = data.load("wikitext_gen/small", root, tmp_path, base)
    assert again.fingerprint == small.fingerprint


@pytest.mark.full
def test_samples_do_not_depend_on_the_batch(base, root):
    some = list(continuations.cut_passages(passages(root), base.tokenizer))[:8]
    together = continuations.sample(base, some, 8)
    assert together.shape == (8, continuations.NEW) and len({tuple(ids) for ids in together}) == 8
    for order in ([3, 0, 7], [5]):
        alone = continuations.sample(base, [some[i] for i in order], 3)
        np.testing.assert_array_equal(alone, together[order])
    rows = [gen.sample_rows(base, passages(root), 10, size)[0] for size in (8, 3)]
    assert rows[0] == rows[1]


def test_another_seed_or_base_samples_something_else(base, root, tmp_path, monkeypatch):
    some = list(continuations.cut_passages(passages(root), base.tokenizer))[:4]
    drawn = continuations.sample(base, some, 4)
    stamp = gen.recipe("small", root, base).stamp
    other = load_model(save_base(tmp_path, seed=1))
    assert (continuations.sample(other, some, 4) != drawn).any()
    assert gen.recipe("small", root, other).stamp != stamp
    monkeypatch.setattr(continuations, "SEED", 1)
    assert (continuations.sample(base, some, 4) != drawn).any()
    assert gen.recipe("small", root, base).stamp != stamp


def test_samples_that_do_not_encode_to_the_same_tokens_are_unusable(base):
    tokenizer = base.tokenizer
    start = a_start("Pine ash", tokenizer)
    ten = [tokenizer.encode(f" {w}")[0] for w in (*WORDS, *WORDS[:3])]
    space, end, letter = (tokenizer.encode(c)[0] for c in (" ", "\n", "q"))
    assert continuations.usable_target(tokenizer, start, ten) == (
        " ".join((*WORDS, *WORDS[:3])),
        "",
    )
    half = tokenizer.encode("é")[0]
    split_word = tokenizer.encode("a") + tokenizer.encode("s") + tokenizer.encode("h")
    cases = {
        "ends the text": [*ten[:9], tokenizer.eos_id],
        "holds a line end or half a character": [*ten[:4], end, *ten[:5]],
        "begins without a space": [letter, *ten[:9]],
        "other tokens when read again": [space, *split_word, *ten[:6]],
    }
    for why_not, ids in cases.items():
        assert continuations.usable_target(tokenizer, start, ids) == ("", why_not)
    assert continuations.usable_target(tokenizer, start, [*ten[:9], half])[1] == (
        "holds a line end or half a character"
    )
    assert (
        continuations.usable_target(tokenizer, start, [*ten[:9], space])[1]
        == "other tokens when read again"
    )


def test_unusable_samples_are_counted(base, root, monkeypatch):
    ten = [base.tokenizer.encode(f" {w}")[0] for w in (*WORDS, *WORDS[:3])]
    ended = [*ten[:9], base.tokenizer.eos_id]

    def every_third(model, batch, size):
        return np.asarray([ended if int(s.key[-1]) % 3 == 0 else ten for s in batch], np.int32)

    monkeypatch.setattr(continuations, "sample", every_third)
    found, counts = gen.sample_rows(base, passages(root), 10)
    assert len(found) == 10 and counts["sampled"] == 10 + counts["ends the text"] > 10
    assert not any(int(row["key"][-1]) % 3 == 0 for row in found)
    everything, counts = gen.sample_rows(base, passages(root), 1000)
    assert counts["sampled"] == len(passages(root)) == len(everything) + counts["ends the text"]


def test_a_split_without_usable_samples_is_an_error(base, root, tmp_path, monkeypatch):
    ended = np.full((1, continuations.NEW), base.tokenizer.eos_id, np.int32)
    monkeypatch.setattr(
        continuations, "sample", lambda m, batch, size: np.repeat(ended, len(batch), axis=0)
    )
    with pytest.raises(DataError, match="wrote for train none can be used .*'ends the text': "):
        data.load("wikitext_gen", root, tmp_path, base)
    assert not list(tmp_path.rglob("*.array_record*"))


def test_passages_are_cut_by_the_tokens_of_the_base(base):
    words = ["ash"] * 70
    starts = [
        continuations.cut_passage(
            {"key": f"k{i}", "subject": "", "far": " ".join(words)}, base.tokenizer
        )
        for i in range(60)
    ]
    sizes = {len(start.ids) for start in starts}
    assert min(sizes) < continuations.LEAST + 4 and max(sizes) > continuations.MOST - 4
    assert all(
        continuations.LEAST <= len(s.ids) <= continuations.MOST
        and len(s.rest) >= continuations.LEFT
        for s in starts
    )
    for short in (["ash"] * 25, ["quartz" * 10] * 40):
        row = {"key": "k", "subject": "", "far": " ".join(short)}
        assert continuations.cut_passage(row, base.tokenizer) is None


def test_rows_are_sampled_again_where_another_process_lacks_them(base, root, tmp_path, monkeypatch):
    first = data.load("wikitext_gen/small", root, tmp_path, base)
    calls = []
    monkeypatch.setattr(prepared_files, "holds_everywhere", lambda ready: calls.append(ready))
    again = data.load("wikitext_gen/small", root, tmp_path, base)
    assert calls == [True] and again.fingerprint == first.fingerprint
    data.load("wikitext", root, tmp_path)  # which no model makes
    assert calls == [True]


TOGETHER = """
import sys
from mend_jax import data
from mend_jax.data.sources import wikitext_gen
from mend_jax.hub.language_model import load_model
from mend_jax.parallel import distributed
from mend_jax.parallel.mesh import make_mesh

base, root, folder, out = sys.argv[1:]
wikitext_gen.SIZES["small"] = dict(train=5, validation=2, test=2)
distributed.initialize()
model = load_model(base, mesh=make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
found = data.load("wikitext_gen/small", root, folder, model)
print(found.fingerprint, file=open(out, "w"))
"""


@pytest.mark.slow
def test_the_processes_of_a_run_sample_together(root, tmp_path, base):
    """Each keeps the rows in its own folder; one has them already, and none waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    alone = data.load("wikitext_gen/small", root, tmp_path / "folder1", base)
    folder = save_base(tmp_path / "base")
    started = []
    for i in range(2):
        env = os.environ | {
            "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4",
            "MEND_COORDINATOR": f"127.0.0.1:{port}", "MEND_NUM_PROCESSES": "2",
            "MEND_PROCESS_ID": str(i),
        }  # fmt: skip
        command = [sys.executable, "-c", TOGETHER, folder, str(root)]
        command += [str(tmp_path / f"folder{i}"), str(tmp_path / f"out{i}")]
        started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
    assert [(tmp_path / f"out{i}").read_text().strip() for i in range(2)] == [alone.fingerprint] * 2


def test_bases_that_cannot_sample_are_refused(base, root, tmp_path):
    with pytest.raises(DataError, match="no config 'zork': use one of default, small"):
        data.load("wikitext_gen/zork", root, tmp_path, base)
    other = load_model(str(save_tiny(tmp_path / "t5", "t5")))
    with pytest.raises(DataError, match="t5 is a seq2seq model: choose another"):
        data.load("wikitext_gen", root, tmp_path, other)
    with pytest.raises(DataError, match="made with the base model"):
        data.load("wikitext_gen", root, tmp_path)


def test_the_command_prepares_and_writes_rows(base, root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MEND_DATA_DIR", str(root))
    out = tmp_path / "rows.jsonl"
    argv = [f"--model={base.spec}", "--config=small", f"--out={out}"]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert "train: 5 rows; left out: {'sampled': " in said.out and str(out) in said.out
    assert "sample train targets 5/5" in said.err
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    found = data.load("wikitext_gen/small", root, None, base)
    expected = [{"split": s, **row} for s, held in found.splits.items() for row in held]
    assert rows == expected and len(rows) == 9
    monkeypatch.delenv("MEND_DATA_DIR")
    assert main(argv) == 2
    assert "DataError: wikitext is made from wikitext-2/train.txt" in capsys.readouterr().err
