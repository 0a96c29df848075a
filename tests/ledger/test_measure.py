"""Measurements of an edit against independent computations, and the verdict."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from support.tiny import save_tiny

import mend_jax
from mend_jax.core.weight_edit import Dense, Edit, LowRank, variables
from mend_jax.errors import CheckpointError, ConfigError, DataError
from mend_jax.hub.language_model import LanguageModel
from mend_jax.ledger import compare, evaluation_prompts, measure
from mend_jax.ledger.measure import describe_edit, measure_edit
from mend_jax.ledger.verdict import count_words, make_verdict, short_answer, succeeded
from mend_jax.models.editable_model import Inputs

PROMPTS = evaluation_prompts.EvaluationPrompts(
    "The capital of France is", "Lyon", "", ("France's capital is",),
    ("Oslo lies in", "Rome lies in"), ("Bees make",), ("paraphrases", "unrelated"),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mend_jax.load_model(str(save_tiny(tmp_path_factory.mktemp("base"))), last_n_blocks=2)


@pytest.fixture(scope="module")
def edit(model):
    """Low-rank deltas and a dense one, large enough to change what is written."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    deltas = {w.name: LowRank(normal(3, w.d_in), 0.1 * normal(3, w.d_out)) for w in model.weights}
    first = model.weights[0]
    deltas[first.name] = Dense(0.1 * normal(first.d_in, first.d_out))
    return Edit(deltas, base=model.fingerprint, editor="hand", created="2026-01-02T03:04:05+00:00")


@pytest.fixture(scope="module")
def measured(model, edit):
    return measure_edit(model, edit, [PROMPTS], strength=0.5)


def logits_of(model, edit, text):
    """Return the logits at every position, from one plain forward pass."""
    ids = model.tokenizer.encode(text)
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, : len(ids)] = ids
    mask = np.arange(64)[None] < len(ids)
    bare = None if edit is None else Edit(edit.deltas)
    logits = plain_pass(model.module, variables(model.params, bare), Inputs(tokens, mask))
    return np.asarray(logits[0, : len(ids)], np.float64)


@functools.partial(jax.jit, static_argnums=0)
def plain_pass(module, bound, inputs):
    return module.apply(bound, inputs)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl(before, after):
    before, after = log_softmax(before), log_softmax(after)
    return (np.exp(before) * (before - after)).sum(-1)


@pytest.mark.slow
def test_texts_are_the_models_continuations(model, edit, measured):
    lines = [line for f in measured["facts"] for line in f["asked"] + f["still"]]
    prompts, n = [line["prompt"] for line in lines], measured["max_new_tokens"]
    assert [line["before"] for line in lines] == model.generate(prompts, n)
    assert [line["after"] for line in lines] == model.with_edit(edit).generate(prompts, n)
    assert any(line["before"] != line["after"] for line in measured["facts"][0]["still"])


def test_numbers_match_a_plain_forward_pass(model, edit, measured):
    """Float32 sums of 300 words in other orders: six digits."""
    fact = measured["facts"][0]
    for line in fact["asked"]:
        n = len(model.tokenizer.encode(line["prompt"]))
        text = f"{line['prompt']} Lyon"
        tokens = model.tokenizer.encode(text)
        for key, one in (("nll_before", None), ("nll", edit)):
            found = log_softmax(logits_of(model, one, text))[n - 1 : -1]
            nll = -found[np.arange(len(tokens) - n), tokens[n:]].mean()
            np.testing.assert_allclose(line[key], nll, rtol=1e-5)
    for line in fact["still"]:
        two = [logits_of(model, one, line["prompt"])[-1] for one in (None, edit)]
        np.testing.assert_allclose(line["kl"], kl(*two), rtol=1e-4)
    by_kind = {k: [s["kl"] for s in fact["still"] if s["kind"] == k]
               for k in ("neighbour", "unrelated")}  # fmt: skip
    assert measured["kl"] == {
        "neighbours": np.mean(by_kind["neighbour"]),
        "unrelated": np.mean(by_kind["unrelated"]),
        "text": measured["text"]["kl"],
    }


def test_plain_text_is_compared_at_every_token(model, edit, measured):
    distances, kept = [], []
    for text in measure.TEXTS:
        text = model.tokenizer.decode(model.tokenizer.encode(text)[: measure.TEXT_LENGTH])
        before, after = (logits_of(model, one, text)[:-1] for one in (None, edit))
        distances += kl(before, after).tolist()
        kept += (before.argmax(-1) == after.argmax(-1)).tolist()
    assert measured["text"]["tokens"] == len(distances) == 3 * (measure.TEXT_LENGTH - 1)
    np.testing.assert_allclose(measured["text"]["kl"], np.mean(distances), rtol=1e-4)
    assert measured["text"]["kept"] == pytest.approx(np.mean(kept))


def test_an_edit_of_size_zero_changes_nothing(model, edit):
    found = measure_edit(model, edit.scale(0.0), [PROMPTS])
    assert found["kl"] == {"neighbours": 0.0, "unrelated": 0.0, "text": 0.0}
    assert found["text"]["kept"] == 1.0 and found["verdict"]["local"]
    for line in found["facts"][0]["asked"] + found["facts"][0]["still"]:
        assert line["before"] == line["after"]
        assert line.get("same", True) and line.get("nll") == line.get("nll_before")


def test_an_edit_that_the_model_carries_is_ignored(model, edit, measured):
    again = measure_edit(model.with_edit(edit), edit, [PROMPTS], strength=0.5)
    assert again == measured


def test_texts_before_an_edit_are_not_written_again(model, edit, measured, monkeypatch):
    written, generate = [], LanguageModel.generate

    def counted(self, prompts, *args):
        written.extend(prompts)
        return generate(self, prompts, *args)

    monkeypatch.setattr(LanguageModel, "generate", counted)
    again = measure_edit(model, edit, [PROMPTS], 0.5, earlier=[measured])
    assert again == measured
    n_texts = 1 + sum(map(len, (PROMPTS.paraphrases, PROMPTS.neighbours, PROMPTS.unrelated)))
    assert len(dict.fromkeys(written)) == n_texts
    assert len(written) <= compare._MAX_TEXTS  # once, under the edit
    longer = measured | {"max_new_tokens": measured["max_new_tokens"] + 4}
    written.clear()
    measure_edit(model, edit, [PROMPTS], 0.5, earlier=[longer])  # of another length: written again
    assert [written.count(text) >= 2 for text in dict.fromkeys(written)] == [True] * n_texts


@pytest.mark.full
def test_facts_measured_together_match_facts_measured_alone(model, edit, measured):
    """Batches of other sizes may round differently."""
    many = [
        PROMPTS,
        *(
            dataclasses.replace(
                PROMPTS, prompt=f"fact {i} is", target="so", paraphrases=(f"{i}: fact is",),
                neighbours=(f"{i} is",), unrelated=(), generated=(),
            )
            for i in range(12)
        ),
    ]  # fmt: skip
    found = measure_edit(model, edit, many)
    assert len(found["facts"]) == 13
    assert sum(len(f["asked"]) + len(f["still"]) for f in found["facts"]) > compare._MAX_TEXTS
    for mine, alone in zip(
        found["facts"][0]["asked"] + found["facts"][0]["still"],
        measured["facts"][0]["asked"] + measured["facts"][0]["still"],
        strict=True,
    ):
        for key in ("nll_before", "nll", "kl"):
            if key in alone:
                assert mine.pop(key) == pytest.approx(alone[key], rel=1e-4)
        assert mine.items() <= alone.items()
    last = measure_edit(model, edit, many[-1:])["facts"][0]
    assert last["asked"][0]["nll"] == pytest.approx(found["facts"][-1]["asked"][0]["nll"], rel=1e-4)


def test_padding_ranks_does_not_change_an_edit(edit):
    for name, delta in compare.pad_ranks(edit).deltas.items():
        # Sums of more rows may be ordered differently: the last digits of float32.
        np.testing.assert_allclose(delta.dense(), edit.deltas[name].dense(), atol=1e-6)
        if isinstance(delta, LowRank):
            assert delta.a.shape[0] % 32 == 0


def test_the_reported_size_of_an_edit(model, edit):
    found = describe_edit(edit, model)
    assert (found["editor"], found["made"]) == ("hand", "2026-01-02T03:04:05+00:00")
    assert found["blocks"] == ["block_2", "block_3"]
    total = 0.0
    for weight in found["weights"]:
        dense = np.asarray(edit.deltas[weight["name"]].dense(), np.float64)
        block, mlp, role = weight["name"].split("/")
        kernel = np.asarray(model.params[block][mlp][role]["kernel"], np.float64)
        # Factors are float32: six digits.
        assert weight["norm"] == pytest.approx(np.linalg.norm(dense), rel=1e-6)
        assert weight["relative"] == pytest.approx(
            np.linalg.norm(dense) / np.linalg.norm(kernel), rel=1e-6
        )
        assert weight["rank"] == (None if weight["kind"] == "dense" else 3)
        total += np.linalg.norm(dense) ** 2
    assert [w["kind"] for w in found["weights"]].count("dense") == 1
    assert found["norm"] == pytest.approx(np.sqrt(total), rel=1e-6)
    assert all(w["relative"] is None for w in describe_edit(edit)["weights"])


def test_test_prompts_are_recovered_from_a_measurement(measured):
    assert evaluation_prompts.recorded_prompts(measured["facts"][0]) == PROMPTS
    rules = {line["prompt"]: line["rule"] for line in measured["facts"][0]["asked"]}
    rules |= {line["prompt"]: line["rule"] for line in measured["facts"][0]["still"]}
    assert rules == {
        "The capital of France is": False, "France's capital is": True, "Oslo lies in": False,
        "Rome lies in": False, "Bees make": True,
    }  # fmt: skip
    assert measured["strength"] == 0.5 and measured["version"] == 1


def test_edits_that_cannot_be_measured_are_refused(model, edit, tmp_path):
    with pytest.raises(DataError, match="at least one fact"):
        measure_edit(model, edit, [])
    bad = jax.tree.map(lambda leaf: leaf * np.float32("nan"), edit)
    with pytest.raises(ConfigError, match=f"{model.weights[0].name}.* not finite"):
        measure_edit(model, bad, [PROMPTS])
    with pytest.raises(CheckpointError, match="for base 0123"):
        measure_edit(model, edit.replace(base="0123"), [PROMPTS])
    with pytest.raises(DataError, match="do not fit the model's context"):
        measure_edit(model, edit, [dataclasses.replace(PROMPTS, prompt="long " * 100)])
    classifier = mend_jax.load_model(str(save_tiny(tmp_path / "bert", "bert")), last_n_blocks=2)
    with pytest.raises(ConfigError, match="writes no text"):
        measure_edit(classifier, edit, [PROMPTS])


@pytest.mark.full
@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_models_of_other_families_are_measured(kind, tmp_path):
    model = mend_jax.load_model(str(save_tiny(tmp_path / kind, kind)), last_n_blocks=2)
    rng = np.random.default_rng(0)
    deltas = {
        w.name: LowRank(*(rng.normal(size=(2, d)).astype(np.float32) for d in (w.d_in, w.d_out)))
        for w in model.weights
    }
    found = measure_edit(model, Edit(deltas, base=model.fingerprint), [PROMPTS])
    for line in found["facts"][0]["still"]:
        before, after = (
            model.with_edit(one).next_token_log_probs(line["prompt"]).astype(np.float64)
            for one in (None, Edit(deltas))
        )
        np.testing.assert_allclose(line["kl"], kl(before, after), rtol=1e-3)
    assert found["text"]["kl"] > 0 and found["facts"][0]["asked"][0]["nll"] > 0


@pytest.mark.parametrize(
    "text, wanted",
    [
        (" Paris.\n\nThe answer is", "paris"),
        (" Lyon, France", "lyon"),
        (" a very long way off", "a very long"),
        ('\n\n"Yes!" she said', "yes"),
        ("", ""),
        (" ...", ""),
    ],
)
def test_the_answer_is_the_start_of_a_continuation(text, wanted):
    assert short_answer(text) == wanted


def fact(says=(True, True, True), still=()):
    kinds = ("prompt", *["paraphrase"] * (len(says) - 1))
    asked = [{"kind": k, "says": s, "says_before": False, "after": " Rome"}
             for k, s in zip(kinds, says, strict=True)]  # fmt: skip
    return {
        "prompt": "p",
        "target": "Lyon",
        "took": succeeded(asked),
        "asked": asked,
        "still": still,
    }


def kept(kind="unrelated", **changes):
    return {"kind": kind, "prompt": "q", "before": " a", "after": " a", "same": True,
            "says": False, "says_before": False} | changes  # fmt: skip


FINE = {"neighbours": 0.5, "unrelated": 0.1, "text": 0.1}


@pytest.mark.parametrize(
    "says, wanted",
    [
        ((True,), True), ((False,), False), ((True, True, False), True),
        ((True, False, False), False), ((False, True, True), False), ((True, False), False),
    ],
)  # fmt: skip
def test_when_an_edit_succeeds(says, wanted):
    verdict, warnings = make_verdict([fact(says)], FINE)
    assert succeeded(fact(says)["asked"]) == verdict["took"] == wanted
    assert bool(warnings) != wanted
    assert verdict["line"].startswith("succeeded" if wanted else "failed")


@pytest.mark.parametrize(
    "still, kl, warning",
    [
        ([kept()], FINE, ""),
        (
            [kept("neighbour", same=False, after=" b")],
            FINE,
            "the answer to 'q' changed from 'a' to 'b'",
        ),
        ([], FINE | {"neighbours": None, "unrelated": None}, ""),
        ([kept()], FINE | {"unrelated": 0.11}, "KL of 0.110 nats on unrelated prompts"),
        ([kept()], FINE | {"text": 0.2}, "KL of 0.200 nats on plain text"),
        ([kept()], FINE | {"text": float("nan")}, "KL of nan nats on plain text"),
        ([kept(same=False, after=" b")], FINE, "the answer to 'q' changed from 'a' to 'b'"),
        ([kept("neighbour", says=True, same=False)], FINE, "'q' is answered with 'Lyon' as well"),
        ([kept("neighbour", says=True)], FINE, ""),  # "lyon" before
        ([kept("neighbour", says=True, says_before=True)], FINE, ""),
    ],
)
def test_when_locality_is_bad(still, kl, warning):
    verdict, warnings = make_verdict([fact(still=still)], kl)
    assert verdict["local"] == (not warning) and ("BAD" in verdict["line"]) == bool(warning)
    assert [warning in w for w in warnings] == ([True] if warning else [])
    assert any("0.1 nats" in threshold for threshold in verdict["thresholds"])


@pytest.mark.parametrize(
    "text, count",
    [
        (" Lyon. It is", 1), (" Lyon Lyon lyon", 3), (" Lyonesse and Lyon", 1), ("", 0),
        (" Lyon-Lyon, Lyon", 3),
    ],
)  # fmt: skip
def test_a_repeated_answer_gives_a_warning(text, count):
    assert count_words(text, " Lyon ") == count
    one = fact()
    one["asked"][0]["after"] = text
    _, warnings = make_verdict([one], FINE)
    assert [w[:22] for w in warnings] == ["the answer is repeated"] * (count > 1)
    one["asked"][0]["says"] = False  # it failed: that is said instead
    assert not any("repeated" in w for w in make_verdict([one], FINE)[1])


@pytest.mark.parametrize(
    "text, says, why",
    [
        ("Lyon", True, ""), ("Rome", False, "not 'Lyon'"), ("Lyon Lyon Lyon", False, "goes on"),
        ("Lyon, Lyon, Lyon, Lyon", False, "repeats itself"), ("Lyon is not it", False, "denies it"),
    ],
)  # fmt: skip
def test_only_a_whole_answer_makes_an_edit_succeed(monkeypatch, model, edit, text, says, why):
    """Texts that a model might write; a neighbour that takes the target in a loop leaks too."""
    writes = {PROMPTS.prompt: text, PROMPTS.paraphrases[0]: text, "Oslo lies in": text}
    monkeypatch.setattr(
        measure, "generate_both",
        lambda model, edit, texts, max_new, known: [
            ("Paris", writes.get(text, "Paris")) for text in texts
        ],
    )  # fmt: skip
    found = measure_edit(model, edit, [PROMPTS])
    assert [line["says"] for line in found["facts"][0]["asked"]] == [says, says]
    assert found["verdict"]["took"] == says
    failures = [w for w in found["warnings"] if w.startswith("failed")]
    assert [why in w for w in failures] == [True] * (not says)
    neighbour = found["facts"][0]["still"][0]
    assert neighbour["says"] == (text != "Rome") and not found["verdict"]["local"]


def test_a_fact_that_the_base_knows_gives_a_warning():
    known = fact()
    known["asked"][0]["says_before"] = True
    _, warnings = make_verdict([known], FINE)
    assert warnings == ["nothing to learn: the base model writes 'Lyon' after 'p'"]
