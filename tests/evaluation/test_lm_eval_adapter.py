"""A model under an edit in lm-eval: the same scores as lm-eval's own model of transformers."""

import json
from types import SimpleNamespace

import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager
from support.tiny import save_tiny

import mend_jax
from mend_jax.editors import make_editor
from mend_jax.errors import ConfigError
from mend_jax.evaluation.lm_eval_adapter import EditedModel

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is ", "Lyon, and not Paris"),  # the blank goes to the continuation
    ("", "A text without a context"),
    ("Oslo", " lies in Norway"),
    ("x " * 200, "y"),  # longer than the model's context
]


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    return mend_jax.load_model(str(folder), last_n_blocks=1)


@pytest.fixture(scope="module")
def theirs(folder):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)


@pytest.mark.slow
def test_scores_are_those_of_lm_evals_own_model(model, theirs):
    ours = EditedModel(model, batch_size=2)
    assert ours.max_length == theirs.max_length
    found, wanted = (lm.loglikelihood(requests(*PAIRS), disable_tqdm=True) for lm in (ours, theirs))
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in wanted], rtol=1e-4)
    assert [g for _, g in found] == [g for _, g in wanted]
    texts = [("A text of some length. " * 30,), ("Short",)]
    found, wanted = (
        lm.loglikelihood_rolling(requests(*texts), disable_tqdm=True) for lm in (ours, theirs)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.slow
def test_texts_are_those_of_lm_evals_own_model(model, theirs):
    prompts = [
        ("The capital of", {"until": ["\n"], "max_gen_toks": 8}),
        ("Oslo lies in the", {"until": [], "max_gen_toks": 8}),
        ("One", {"until": ["e"], "max_gen_toks": 4}),
    ]
    found, wanted = (
        lm.generate_until(requests(*prompts), disable_tqdm=True)
        for lm in (EditedModel(model, batch_size=2), theirs)
    )
    assert found == wanted


def test_a_text_ends_before_its_first_stop_text(model, monkeypatch):
    monkeypatch.setattr(type(model), "generate", lambda self, prompts, *a: ["one. two; three"])
    lm = EditedModel(model)
    for until, wanted in ([";", "."], "one"), (";", "one. two"), (["?"], "one. two; three"):
        options = {"until": until, "max_gen_toks": 9}
        found = lm.generate_until(requests(("x", options)), disable_tqdm=True)
        assert found == [wanted]


@pytest.mark.slow
def test_an_edit_changes_what_lm_eval_measures(model, tmp_path):
    """A task of one's own, read by lm-eval from a folder; nothing is fetched."""
    rows = [
        {"question": "The capital of France is", "choices": ["Paris", "Lyon"], "answer": 1},
        {"question": "The capital of Norway is", "choices": ["Oslo", "Bergen"], "answer": 0},
    ]
    data = tmp_path / "capitals.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "capitals.yaml").write_text(
        f"""task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
    )
    fine_tune = make_editor("fine_tune", {"lr": 0.1, "max_steps": 60})
    editor = mend_jax.Editor(model, fine_tune, {}, {}, append_eos=False, name="fine_tune")
    edit = editor.edit([("The capital of France is", "Lyon")])
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    scores = {}
    for name, lm in (("base", model), ("edited", model.with_edit(edit))):
        found = lm_eval.simple_evaluate(
            model=EditedModel(lm), tasks=["capitals"], task_manager=manager, bootstrap_iters=0,
            log_samples=True, verbosity="ERROR",
        )  # fmt: skip
        samples = sorted(found["samples"]["capitals"], key=lambda s: s["doc_id"])
        scores[name] = [float(response[0][0]) for s in samples for response in s["resps"]]
    assert scores["edited"][1] > scores["base"][1] + 1  # the new answer is likelier


def test_more_new_tokens_than_the_context_are_refused(model):
    with pytest.raises(ConfigError, match=r"256 new tokens.*160.*max_gen_toks"):
        EditedModel(model).generate_until(requests(("x", {})), disable_tqdm=True)


def test_other_kinds_of_models_are_refused(tmp_path):
    seq2seq = mend_jax.load_model(str(save_tiny(tmp_path, "t5")), last_n_blocks=1)
    with pytest.raises(ConfigError, match="seq2seq.*causal"):
        EditedModel(seq2seq)
