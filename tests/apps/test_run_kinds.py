"""Whole runs, from a checkpoint folder to a report, for models that are not causal."""

import numpy as np
import pytest
from support.tiny import save_tiny
from test_train_and_evaluate import SETTINGS

import mend_jax
from mend_jax.apps.run_command import parse
from mend_jax.errors import ConfigError

pytestmark = pytest.mark.full

PREDICTORS = {"t5": ("cache", "in_context"), "bert": ("cache",)}
"""Baselines that change no weight, by kind of model."""


@pytest.fixture(scope="module", params=sorted(PREDICTORS))
def ran(request, tmp_path_factory):
    """(kind, run folder, results) of a short run."""
    base = save_tiny(tmp_path_factory.mktemp("base"), request.param)
    workdir = tmp_path_factory.mktemp("run")
    settings = {"model.spec": base, "model.last_n_blocks": 1} | SETTINGS
    settings |= {"train.steps": 2, "train.val_every": 2, "eval.edits": 4, "model.remat": True}
    settings |= {"eval.baselines": {name: {"edits": 2} for name in PREDICTORS[request.param]}}
    config, _, _ = parse(
        ["--config=quickstart.py"] + [f"--config.{k}={v}" for k, v in settings.items()]
    )
    return request.param, workdir, mend_jax.train_and_evaluate(config, workdir)


def test_a_run_trains_evaluates_and_reports(ran):
    kind, workdir, results = ran
    assert results["training"]["steps"] == 2
    found = results["eval"]
    for name in ("edit", "paraphrase"):
        for score in ("success_exact", "success_token", "success_generated", "nll"):
            assert np.isfinite(found[name][score])
    assert found["locality"]["kl"] >= 0 and 0 <= found["locality"]["argmax_agreement"] <= 1
    if kind == "bert":
        assert found["edit"]["success_generated"] == found["edit"]["success_exact"]
    for name in PREDICTORS[kind]:
        scores = results["baselines"][name]
        assert scores["n"] == 2 and np.isfinite(scores["paraphrase"]["nll"])
        assert "seconds_per_edit" not in scores and found["seconds_per_edit"] > 0
        if name == "cache":  # it remembers its own prompts
            assert scores["edit"]["success_exact"] == scores["edit"]["success_generated"] == 1
    page = (workdir / "report.html").read_text()
    assert "success" in page


def test_the_restored_editor_edits(ran):
    kind, workdir, _ = ran
    editor = mend_jax.Editor.restore(workdir)
    model = editor.model
    if kind == "bert":
        edit = editor.edit([("Rome is the capital of France", "false")])
        claims = ["Rome is the capital of France", "Rome"]
        before, after = (
            model.score_claims(claims),
            model.with_edit(edit.scale(50.0)).score_claims(claims),
        )
        assert all(0 <= p <= 1 for p in before + after) and before != after
        with pytest.raises(ConfigError, match="is a classifier and generates no text"):
            model.generate("Rome", 3)
    else:
        edit = editor.edit([("The capital of France is", "Lyon")])
        assert edit.editor == editor.id and edit.editor.startswith("mend@")
        assert {w.name.split("_")[0] for w in model.weights} == {"encoder", "decoder"}
        before = model.generate(["The capital of France is"], 5)
        after = model.with_edit(edit.scale(500.0)).generate(["The capital of France is"], 5)
        assert before != after
        with pytest.raises(ConfigError, match="is not a classifier"):
            model.score_claims(["Rome"])
