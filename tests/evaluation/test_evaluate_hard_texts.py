"""An evaluation with hard texts on a tiny base: what it scores is what the edited model does."""

import jax
import numpy as np
import pytest
from support.tiny import save_tiny

import mend_jax
from mend_jax.core.editor_protocol import EditTransform
from mend_jax.data.batches import iterate_batches
from mend_jax.data.encoded_rows import HARD_SETS, Lengths, encode_rows
from mend_jax.data.hard_texts import HardTextMaker
from mend_jax.data.rows import make_row
from mend_jax.editors import make_editor
from mend_jax.evaluation.evaluate_split import evaluate
from mend_jax.evaluation.examples import answer_matches
from mend_jax.evaluation.scored_batches import ScoredBatches
from mend_jax.evaluation.scoring import make_edit
from mend_jax.parallel.mesh import make_mesh, use_mesh

LENGTHS = Lengths(max_len=20, max_target=5, far_len=24, append_eos=False)
NAMES = ("Ulm", "Rom", "Bern", "Oslo")


def split():
    """Four facts of one relation, one of another about the same subject and about the target."""
    rows = [
        make_row(key=name, relation="of", subject=name, prompt=f"{name} is of", target="Xo",
                 truth=f"a{i}", rephrase=f"{name}, of", scope=name)
        for i, name in enumerate(NAMES)
    ]  # fmt: skip
    other = make_row(key="x", relation="in", subject="Ulm", prompt="Ulm is in", target="Xo",
                     truth="b", rephrase="Ulm, in", scope="Ulm")  # fmt: skip
    about = make_row(key="y", relation="in", subject="Xo", prompt="Xo is in", target="Ulm",
                     truth="c", rephrase="Xo, in", scope="Xo")  # fmt: skip
    every = [*rows, other, about]
    return HardTextMaker([*rows, other], every, 2).add_to(rows)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Return the model, the editor, the rows, the log and the results of an evaluation."""
    model = mend_jax.load_model(save_tiny(tmp_path_factory.mktemp("base")), last_n_blocks=1)
    editor: EditTransform = make_editor("fine_tune", {"lr": 0.3, "max_steps": 12})
    params, state = editor.init(jax.random.key(0), model.weights)
    rows, log, mesh = split(), ScoredBatches(), make_mesh({"data": 1})
    encoded = encode_rows(rows, model.tokenizer, LENGTHS, more=True)
    batches = iterate_batches(encoded, edits_per_step=2, shuffle=False, num_epochs=1)
    with use_mesh(mesh):
        results, cards = evaluate(
            editor, params, state, model, batches, rows, mesh, n_edits=4, max_new=5, n_examples=4,
            n_hard=2, continuation=9, log=log,
        )  # fmt: skip
        edits = make_edit(editor, model.module, model.weights, params, state, model.params,
                          jax.tree.map(lambda x: x[:2, None], encoded.texts["edit"]))  # fmt: skip
    return model, edits, rows, log, results, cards


@pytest.mark.slow
def test_only_the_chosen_batches_have_hard_texts(evaluated):
    *_, log, results, _ = evaluated
    assert ["hard_target.exact" in batch["scores"] for batch in log.batches] == [True, False]
    assert ["hard_near" in batch["answers"] for batch in log.batches] == [True, False]
    scores = log.scores()
    assert scores["hard_target", "n_tokens"].shape == (4, 2)
    assert not scores["hard_target", "n_tokens"][2:].any()
    assert results["n"] == 4 and results["hard_near"]["n"] == 2
    assert results["hard_near"]["texts"] == 4 and results["same_subject"]["n"] == 1
    assert results["target_facts"]["n"] == 2 and results["subject_text"]["texts"] == 6
    assert results["near_after_fact"]["texts"] == 4
    assert list(results)[:5] == [
        "hard_near", "near_after_fact", "same_subject", "target_facts", "subject_text"
    ]  # fmt: skip
    assert results["after_answer"]["edit"]["n"] == 4 and results["after_answer"]["tokens"] == 9
    assert results["after_answer"]["given"]["n"] == 4


@pytest.mark.slow
def test_the_base_goes_on_after_a_given_target(evaluated):
    model, _, rows, log, _, _ = evaluated
    scores = log.scores()
    for i, row in enumerate(rows):
        asked, answered = row["prompt"], f"{row['prompt']} {row['target']}"
        n = len(model.tokenizer.encode(answered)) - len(model.tokenizer.encode(asked))
        written = model.generate(answered, 9 - n)
        assert scores["after_edit", "occurrences_given"][i] == f" Xo{written}".count("Xo")


@pytest.mark.slow
def test_scores_are_those_of_the_edited_model(evaluated):
    model, edits, rows, log, _, _ = evaluated
    scores, answers = log.scores(), log.answers()
    for i in range(2):
        edited = model.with_edit(edits.at(i))
        for k, prompt in enumerate(rows[i]["hard_near_prompts"]):
            log_probs = [m.next_token_log_probs(prompt) for m in (model, edited)]
            kept = np.argmax(log_probs[0]) == np.argmax(log_probs[1])
            assert scores["hard_near", "agree_first"][i, k] == kept
            kl = float((np.exp(log_probs[0]) * (log_probs[0] - log_probs[1])).sum())
            assert scores["hard_near", "kl_first"][i, k] == pytest.approx(kl, rel=1e-3)
            written = edited.generate(prompt, 5)
            assert answers[i]["hard_near"][k] == written
            assert answers[i]["hard_near_before"][k] == model.generate(prompt, 5)
            assert scores["hard_target", "exact"][i, k] == written.startswith(" Xo")


def test_repetition_is_counted_in_what_the_model_writes(evaluated):
    model, edits, rows, log, _, _ = evaluated
    scores = log.scores()
    for i in range(2):
        for name, field in (("edit", "prompt"), ("rephrase", "rephrase")):
            written = model.with_edit(edits.at(i)).generate(rows[i][field], 9)
            assert scores[f"after_{name}", "occurrences"][i] == written.count("Xo")


def test_examples_show_a_neighbour_in_the_same_wording(evaluated):
    *_, log, results, cards = evaluated
    shown = [card for card in cards if "hard_prompt" in card]
    assert shown and all(
        card["hard_prompt"].replace(card["hard_prompt"].split()[0], "") == " is of"
        for card in shown
    )
    leaks = [any(answer_matches(text, "Xo") for text in a["hard_near"]) for a in log.answers()[:2]]
    assert results["faults"]["leak"] == sum(leaks) / 2


def test_the_kth_texts_of_two_sets_belong_together(evaluated):
    """A neighbour whose true answer is too long is scored by its target alone, in its place."""
    model, _, rows, *_ = evaluated
    long = rows[0] | {
        "hard_near_answers": ["much too long an answer", rows[0]["hard_near_answers"][1]]
    }
    encoded = encode_rows([long], model.tokenizer, LENGTHS, more=True).texts
    assert encoded["hard_near"].score_mask[0].any(-1).tolist() == [False, True]
    assert encoded["hard_target"].score_mask[0].any(-1).tolist() == [True, True]
    for k, prompt in enumerate(long["hard_near_prompts"]):
        target = jax.tree.map(lambda x, k=k: x[0, k], encoded["hard_target"])
        text = model.tokenizer.decode(target.tokens[target.mask].tolist())
        assert text == f"{prompt} Xo"
    nothing = {k: [] for k in rows[0] if isinstance(rows[0][k], list)}
    without = encode_rows([rows[0] | nothing], model.tokenizer, LENGTHS, more=True).texts
    assert not set(HARD_SETS) & set(without)


def test_a_neighbour_that_its_edit_changes_too_is_not_scored(evaluated):
    """Edits of two facts: a fact may be the neighbour of the other."""
    model, _, rows, *_ = evaluated
    encoded = encode_rows(rows, model.tokenizer, LENGTHS, more=True)
    (batch, _) = iterate_batches(
        encoded, edits_per_step=1, edits_per_batch=2, shuffle=False, num_epochs=1
    )
    edited = {"Ulm", "Rom"}  # the first two rows
    for name in ("hard_near", "hard_target", "near_after_fact"):
        scored = batch[name].score_mask.any(-1).reshape(2, 2)
        wanted = [[s not in edited for s in row["hard_near_scopes"]] for row in rows[:2]]
        assert scored.tolist() == wanted
    assert not all(all(w) for w in wanted)
    assert batch["target_facts"].score_mask.any(-1).all()
