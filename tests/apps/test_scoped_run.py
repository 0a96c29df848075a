"""A run that learns a scope, and trains and evaluates its editor under it, on a tiny base."""

import json

import pytest
from support.tiny import save_tiny

import mend_jax
from mend_jax.apps.run_command import parse
from mend_jax.core import scope_file

SETTINGS = {
    "data.name": "world_facts/offline", "data.train_edits": 16, "data.max_len": 96,
    "data.max_target": 24, "data.far_len": 16, "data.length_buckets": (), "train.steps": 2,
    "train.edits_per_step": 4, "train.val_every": 2, "train.val_edits": 4,
    "train.checkpoint_every": 2, "eval.edits": 4, "eval.hard_neighbours": 2,
    "eval.edits_per_step": 4, "eval.max_new_tokens": 24, "eval.continuation_tokens": 8,
    "eval.examples": 1, "eval.baselines": "{}", "editor.options.rank": 4,
    "model.last_n_blocks": 1, "train.doctor": False, "scope.file": "", "scope.learn": True,
    "eval.sequential": (1, 3), "scope.facts": 16, "scope.wordings": 2, "scope.steps": 3,
    "scope.validation_facts": 24,
}  # fmt: skip


@pytest.mark.slow
def test_a_run_learns_a_scope_and_edits_under_it(tmp_path):
    spec = save_tiny(tmp_path / "base")
    flags = [f"--config.{k}={v}" for k, v in SETTINGS.items()]
    flags += ["--config=quickstart.py", f"--workdir={tmp_path / 'run'}"]
    results = mend_jax.train_and_evaluate(*parse([*flags, f"--config.model.spec={spec}"]))
    assert {"hard_near", "after_answer", "locality"} < results["eval"].keys()
    turns = results["eval"]["sequential"]  # kept apart in one bank: no weight changes for all texts
    assert list(turns) == ["1", "3"] and turns["3"]["relative_norm"] == 0.0
    learned = scope_file.load(tmp_path / "run" / "scope.safetensors")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    trained = [m for m in metrics if m["kind"] == "train"]
    assert all(m["kl_after"] > 0 for m in trained)  # of the edits that are plain in training
    assert any(m["edit_norm"] > 0 for m in metrics if m["kind"] == "validation")
    editor = mend_jax.Editor.restore(tmp_path / "run")
    assert editor.scope.scope.fingerprint() == learned.scope.fingerprint()
    edit = editor.edit([("The capital of France is", "Lyon")])
    assert edit.bank.scope == learned.scope.fingerprint()
