"""General ability under edits, against a direct computation; and its texts and facts."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.raw_files import ROOT
from support.tiers import in_tiers
from support.tiny import random_sequences, tiny
from test_wikitext import article, sentence

from mend_jax.core.forward import scored_logits
from mend_jax.core.weight_edit import Edit, LowRank, merge
from mend_jax.data.sources import pararel
from mend_jax.errors import DataError
from mend_jax.evaluation import general_ability
from mend_jax.hub.tokenizer import Tokenizer

E = 3
OPTION_LENGTHS = np.float32([[4, 90, 5], [3, 2, 0]])  # the second question has two options
GOLD = np.int32([1, 0])


@functools.cache
def base(kind):
    return tiny(kind)


@functools.cache
def runner(kind):
    return jax.jit(base(kind)[0].apply)


def flat(seed, n, kind, **options):
    found = random_sequences(seed, E=1, n=n, kind=base(kind)[0].kind, **options).flat()
    keep = np.random.default_rng(seed).random(found.score_mask.shape) < 0.8
    keep[:, 0] = True
    return found.replace(score_mask=found.score_mask & keep)


def ability_inputs(kind):
    """Return 5 texts and 7 facts, of which the base recalls at least the first four."""
    params = base(kind)[1]
    texts, facts = flat(0, 5, kind, T=9, S=6), flat(1, 7, kind, S=2)
    logits = runner(kind)({"params": params}, facts.inputs)
    answered = np.asarray(jnp.argmax(logits, -1))[np.arange(7)[:, None], facts.score_pos]
    target = np.where(np.arange(7)[:, None] < 4, answered, facts.target).astype(np.int32)
    return general_ability.AbilityTexts(
        texts, facts.replace(target=target), flat(2, 6, kind, S=3), OPTION_LENGTHS, GOLD
    )


def edits_of(kind, size, n=E):
    rng = np.random.default_rng(5)
    return Edit({
        w.name: LowRank(*(jnp.asarray(rng.normal(0, size, (n, 2, d)), jnp.float32)
                          for d in (w.d_in, w.d_out)))
        for w in base(kind)[2]
    })  # fmt: skip


@functools.cache
def programs(kind, chunk, most=general_ability._MAX_LOGITS):
    """`base_ability` and `score_ability`, compiled; `most` only distinguishes programs."""
    options = dict(model=base(kind)[0], chunk=chunk)
    return [
        jax.jit(functools.partial(f, **options))
        for f in (general_ability.base_ability, general_ability.score_ability)
    ]


def measured(kind, size, *how):
    base_ability, score_ability = programs(kind, *how)
    params, inputs = base(kind)[1], ability_inputs(kind)
    known = base_ability(params, inputs)
    scores = score_ability(params, edits_of(kind, size), inputs, known)
    return known, jax.tree.map(np.asarray, scores)


def plainly(kind, params):
    """Run one text at a time through the whole model: (nll, best tokens, recalled, right)."""
    run, inputs, nll, best, recalled = runner(kind), ability_inputs(kind), 0.0, [], []
    options = []
    for name in ("texts", "facts", "choices"):
        seqs = getattr(inputs, name)
        for i in range(len(seqs.tokens)):
            one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], seqs)
            logits = np.asarray(run({"params": params}, one.inputs))[0, one.score_pos[0]]
            keep, target = one.score_mask[0], one.target[0]
            log_p = np.asarray(jax.nn.log_softmax(logits.astype(np.float64)))
            own = -log_p[np.arange(len(target)), target][keep].sum()
            if name == "choices":
                options.append(own)
            elif name == "texts":
                nll += own
                best.append(log_p.argmax(-1)[keep].tolist())
            else:
                recalled.append(bool((log_p.argmax(-1) == target)[keep].all()))
    first, second = np.divide(options[:3], [4, 90, 5]), np.divide(options[3:5], [3, 2])
    right = int(first.argmin() == 1) + int(second.argmin() == 0)
    return nll, sum(best, []), recalled, right


@pytest.mark.parametrize("case", in_tiers([], [("llama", 2), ("t5", 100)], [("llama", 2)]), ids=str)
def test_scores_equal_a_plain_computation(case):
    """Float32 against float32 on about 30 tokens: sums of nll agree to 1e-3."""
    kind, chunk = case
    _, params, _ = base(kind)
    known, scores = measured(kind, 0.25, chunk)
    nll, best, recalled, right = plainly(kind, params)
    assert np.asarray(known.right).sum() == right and bool(known.right[0])
    np.testing.assert_allclose(known.nll, nll, atol=1e-3)
    assert int(known.n_tokens) == len(best) > 15
    assert np.asarray(known.recalled).tolist() == recalled and 4 <= sum(recalled) < 7
    for i in range(E):
        edit = jax.tree.map(lambda leaf, i=i: leaf[i], edits_of(kind, 0.25))
        nll_i, best_i, recalled_i, right_i = plainly(kind, merge(params, edit))
        assert scores["right"][i] == right_i
        np.testing.assert_allclose(scores["nll"][i], nll_i, atol=1e-3)
        assert scores["agree"][i] == sum(a == b for a, b in zip(best, best_i, strict=True))
        assert scores["recalled"][i] == sum(recalled_i)
        kept = [a and b for a, b in zip(recalled, recalled_i, strict=True)]
        assert scores["kept"][i] == sum(kept)
    assert (scores["agree"] < len(best)).any() and len(set(scores["nll"].tolist())) == E


def test_no_edit_changes_nothing():
    known, scores = measured("llama", 0.0, 2)
    np.testing.assert_allclose(scores["nll"], np.repeat(known.nll, E), rtol=1e-6)
    assert (scores["agree"] == int(known.n_tokens)).all()
    assert (scores["recalled"] == np.asarray(known.recalled).sum()).all()
    assert (scores["kept"] == scores["recalled"]).all()
    found = general_ability.summarise_ability(scores, ability_inputs("llama"), known)
    assert found["perplexity"] == pytest.approx(found["before"]["perplexity"], rel=1e-5)
    assert found["recall"] == found["before"]["recall"] and found["recall_kept"] == 1
    assert found["argmax_agreement"] == 1 and found["ci95"]["argmax_agreement"] == [1, 1]
    assert found["choices"] == found["before"]["choices"] == np.asarray(known.right).mean()
    assert found["n_choices"] == 2


def test_a_predictor_that_applies_the_edits_scores_as_they_do(monkeypatch):
    """Two of the 5 texts at a time, 6 of the 7 facts."""
    module, params, _ = base("llama")
    known, expected = measured("llama", 0.25, 2)
    monkeypatch.setattr(general_ability, "_MAX_LOGITS", 2 * E * 6 * 300)

    @jax.jit
    def run(params, edits, inputs, known):
        def read(texts, h):
            return scored_logits(module, params, h, texts, edits)

        return general_ability.score_predictor_ability(read, E, inputs, known, model=module)

    scores = run(params, edits_of("llama", 0.25), ability_inputs("llama"), known)
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values, rtol=1e-5, err_msg=name)


def test_chunk_sizes_change_no_score(monkeypatch):
    """Chunks of 3 of 5 texts and 7 facts, the head at 4 of 6 positions and at 2 of 2."""
    expected = measured("llama", 0.25, 2)[1]
    monkeypatch.setattr(general_ability, "_MAX_LOGITS", 4 * E * 3 * 300)
    _, scores = measured("llama", 0.25, 3, general_ability._MAX_LOGITS)
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values, rtol=1e-5, err_msg=name)


def test_the_number_of_logits_held_at_once_is_limited(monkeypatch):
    """Two texts under 3 edits: 1, 2 or all 6 positions at a time."""
    shapes = []
    module, params, _ = base("llama")
    states = jnp.zeros((3, 2, 6, module.config.d_model)), jnp.zeros((3, 2, 6), jnp.int32)
    plain = type(module).head
    monkeypatch.setattr(
        type(module), "head", lambda self, h: shapes.append(h.shape[:-1]) or plain(self, h)
    )
    for most in (1, 5000, 2**25):
        monkeypatch.setattr(general_ability, "_MAX_LOGITS", most)
        jax.eval_shape(
            functools.partial(general_ability._score_states, params, model=module), *states
        )
    assert shapes == [(3, 2, 1), (3, 2, 2), (3, 2, 6)]


def test_summary_over_edits():
    inputs = ability_inputs("llama")
    known = general_ability.BaseAbility(
        None, None, nll=np.float32(20), n_tokens=np.int32(10), best=None,
        recalled=np.asarray([True] * 4 + [False] * 3),
    )  # fmt: skip
    scores = {"nll": [20, 30], "agree": [10, 5], "recalled": [5, 4], "kept": [4, 3]}
    scores = {name: np.asarray(values, np.float32) for name, values in scores.items()}
    found = general_ability.summarise_ability(scores, inputs, known)
    assert found["before"]["perplexity"] == pytest.approx(np.exp(2))
    assert found["perplexity"] == pytest.approx(np.exp(2.5))
    low, high = found["ci95"]["perplexity"]
    assert low == pytest.approx(np.exp(2.5 - 0.98), rel=1e-3) and high > found["perplexity"]
    assert found["before"]["recall"] == 4 / 7 and found["recall"] == pytest.approx(4.5 / 7)
    assert found["recall_kept"] == 3.5 / 4 and found["argmax_agreement"] == 0.75
    assert (found["n_edits"], found["n_texts"], found["n_facts"]) == (2, 5, 7)
    assert found["n_recalled_before"] == 4
    unknown = known.replace(recalled=np.zeros(7, bool))
    assert np.isnan(general_ability.summarise_ability(scores, inputs, unknown)["recall_kept"])
    ruined = general_ability.summarise_ability(scores | {"nll": scores["nll"] * 1e4}, inputs, known)
    assert ruined["perplexity"] == np.inf


def test_facts_that_the_base_recalls_are_preferred():
    inputs = ability_inputs("llama")
    known = programs("llama", 2)[0](base("llama")[1], inputs)
    mixed = known.replace(recalled=jnp.asarray([False, True, False, False, True, True, False]))
    for count, numbers in ((5, [0, 1, 2, 4, 5]), (2, [1, 4]), (9, range(7))):
        fewer, less = general_ability.prefer_recalled_facts(inputs, mixed, count)
        np.testing.assert_array_equal(fewer.facts.tokens, inputs.facts.tokens[np.asarray(numbers)])
        h = zip(*map(jax.tree.leaves, (less.facts, mixed.facts)), strict=True)
        assert all((a == b[np.asarray(numbers)]).all() for a, b in h)
        assert less.recalled.tolist() == [bool(mixed.recalled[i]) for i in numbers]
        assert fewer.texts is inputs.texts and less.nll == known.nll


def write_root(root):
    (root / "wikitext-2").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        words = " ".join(sentence(word, 30) for word in ("ash", "elm", "oak"))
        text = article(f"About {split}", words, words.replace("ash", "fir"), sentence("yew", 27))
        (root / "wikitext-2" / f"{split}.txt").write_text(text)
    (root / "pararel").mkdir()
    facts = [("P1", f"S{i}", f"O{i}") for i in range(5)] + [("P2", "T", "U"), ("P3", "V", "W")]
    facts += [("P1", "Two", "A"), ("P1", "Two", "B")]
    patterns = [("P1", "[Y] has [X]."), ("P1", "[X] is of [Y] ."), ("P1", "[X] of [Y]."),
                ("P2", "So [X] likes [Y]."), ("P3", "[Y] of [X]")]  # fmt: skip
    names = ("relation_id", "sub_label", "obj_label"), ("relation_id", "pattern")
    for file, keys, rows in zip(("facts", "patterns"), names, (facts, patterns), strict=True):
        lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
        (root / f"pararel/{file}.jsonl").write_text("\n".join(lines))
    return root


def test_statements_use_all_patterns_and_alternate_between_relations(tmp_path):
    found = pararel.statements(write_root(tmp_path))
    assert [s.relation for s in found] == ["P1", "P2", "P1", "P1", "P1", "P1"]
    assert found[1] == ("P2", "So T likes", "U")
    assert {s[1:] for s in found if s.relation == "P1"} == {
        (f"S{i} is of", f"O{i}") for i in range(5)
    }
    assert pararel.statements(tmp_path, 1) != found == pararel.statements(tmp_path)


def test_ability_texts_are_loaded_from_files(tmp_path):
    write_root(tmp_path / "root")
    load = functools.partial(
        general_ability.load_ability_texts,
        tmp_path / "root",
        Tokenizer.tiny(),
        folder=tmp_path / "prepared",
    )
    module = base("llama")[0]
    found = load(module, n_texts=2, text_len=150, n_facts=6)
    assert found.texts.tokens.shape == (2, 150) and found.texts.score_mask.sum() == 2 * 149
    assert found.facts.tokens.shape == (6, 32) and (found.facts.score_mask.sum(-1) >= 2).all()
    answered = bytes(found.facts.target[1][found.facts.score_mask[1]].astype(np.uint8))
    assert len(answered) == 2  # " U", and no end of text
    other = load(base("t5")[0], n_texts=1, text_len=100, n_facts=2)
    assert other.texts.score_mask.sum() == 50 and other.facts.source.shape == (2, 32)
    with pytest.raises(DataError, match="none of its files is there.*general/arc_easy.jsonl"):
        load(module, n_texts=1, text_len=150, n_facts=2, n_choices=1)
    (tmp_path / "root/general").mkdir()
    lines = [
        {"query": "Question: a?", "choices": ["b", "cc", "ddd"], "gold": 2},
        {"query": "Question: a?", "choices": ["b", "c" * 99], "gold": 0},  # too long
    ]
    path = tmp_path / "root/general/arc_easy.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    (path.parent / "piqa.jsonl").write_text('{"query": "x", "choices": ["y", "z"], "gold": 1}')
    found = load(module, n_texts=1, text_len=150, n_facts=2, n_choices=1)
    assert found.option_lengths.tolist() == [[1, 2, 3], [1, 1, 0]]
    assert found.gold.tolist() == [2, 1] and found.choices.tokens.shape == (6, 64)
    text = Tokenizer.tiny().decode(found.choices.tokens[2][found.choices.mask[2]].tolist())
    assert text.endswith("Question: a?\nAnswer: ddd")
    assert found.choices.score_mask.sum(-1).tolist() == [2, 3, 4, 2, 2, 2]
    with pytest.raises(DataError, match="2 questions of arc_easy .*lower eval.ability_choices"):
        load(module, n_texts=1, text_len=150, n_facts=2, n_choices=2)
    with pytest.raises(DataError, match="9 passages of 150 tokens are required, and there are"):
        load(module, n_texts=9, text_len=150)
    with pytest.raises(DataError, match="7 facts of at most 32 tokens, 4 .* and there are 6"):
        load(module, n_texts=1, text_len=150, n_facts=7)
    with pytest.raises(DataError, match="a classifier has no perplexity"):
        load(tiny("bert")[0])
    (tmp_path / "root/pararel/patterns.jsonl").write_text('{"relation_id": "P1", "pattern": "[X]"}')
    with pytest.raises(DataError, match=r"no pattern in it ends in \[Y\]"):
        load(module, n_texts=1, text_len=150, n_facts=1)


@pytest.mark.skipif(not (ROOT / "pararel").is_dir(), reason=f"no ParaRel files below {ROOT}")
def test_the_published_pararel_facts():
    found = pararel.statements(ROOT)
    assert len(found) > 10_000 and len({s.relation for s in found[:39]}) == 39
    assert not any("[" in s.prompt or s.prompt.endswith(" ") for s in found)
