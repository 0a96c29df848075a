"""Editors that change no weight: logits and generated text against plain computations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiers import in_tiers
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import Problem, make_problem
from mend_jax.core.forward import trunk_states
from mend_jax.editors import cache_threshold, make_editor
from mend_jax.editors.in_context import prepend_corrections
from mend_jax.errors import ConfigError
from mend_jax.evaluation.scoring import edit_and_score
from mend_jax.models.editable_model import Inputs

E, M, N, S = 2, 2, 3, 3  # edits, corrections of each, texts of each, scored positions


@functools.cache
def base(kind):
    return tiny(kind, n_top=1)


@functools.cache
def texts_of(kind):
    """(corrections, texts); the texts of a causal model are padded on the left."""
    kind = base(kind)[0].kind
    corrections, texts = random_sequences(0, E, M, kind=kind), random_sequences(1, E, N, kind=kind)
    if kind == "causal":
        pad = ((0, 0), (0, 0), (4, 0))
        texts = texts.replace(
            tokens=np.pad(texts.tokens, pad), mask=np.pad(texts.mask, pad),
            score_pos=texts.score_pos + 4,
        )  # fmt: skip
    return corrections, texts


def logits_and_text(name, options, kind, corrections, texts, max_new=4, eos=0):
    """Return an editor's logits and generated tokens, by one program."""
    module, params, weights = base(kind)
    editor = make_editor(name, options)
    own, _ = editor.init(jax.random.key(0), weights)

    @jax.jit
    def run(params, corrections, texts):
        problem = make_problem(module, params, weights, corrections)
        h = trunk_states(module, params, texts)
        return (
            editor.predictor.logits(own, problem, texts, h),
            editor.predictor.generate(own, problem, texts, max_new, eos),
        )

    return jax.tree.map(np.asarray, run(params, corrections, texts))


@functools.cache
def runner(kind, of):
    """Return a whole pass to logits, or to the states before a final norm that keys average."""
    module = base(kind)[0]

    @jax.jit
    def run(params, inputs):
        if of == "logits":
            return module.apply({"params": params}, inputs)
        if module.kind == "seq2seq":
            return module.apply({"params": params}, inputs, method="_encode")
        h = module.apply({"params": params}, inputs, method="run_trunk")
        return module.apply({"params": params}, h, inputs, method="run_top")

    return run


def plain_pass(kind, tokens, source=None, of="logits"):
    """Return [T, V] or [T, D] of one text (padded to one length, to compile less)."""

    def filled(ids, width=100):
        ids, n = np.asarray(ids), len(ids)
        return np.pad(ids, (0, width - n))[None].astype(np.int32), (np.arange(width) < n)[None]

    inputs = Inputs(*filled(tokens), *(() if source is None else filled(source)))
    return np.asarray(runner(kind, of)(base(kind)[1], inputs))[0]


def plain_logits(kind, tokens, source=None):
    return plain_pass(kind, tokens, source)[: len(tokens)]


def greedy(kind, tokens, source=None, max_new=4):
    tokens = list(tokens)
    for _ in range(max_new):
        tokens.append(int(plain_logits(kind, tokens, source)[-1].argmax()))
    return tokens[-max_new:]


@pytest.mark.parametrize("kind", in_tiers(["gpt2"], ["gpt2", "llama", "t5"], ["llama"]))
def test_in_context_reads_the_corrections_before_the_text(kind):
    """As one plain text each; float32 logits of some 60 tokens agree to 1e-4."""
    separator, times, marks = (7, 8), 2, 1
    corrections, texts = texts_of(kind)
    options = dict(separator=separator, times=times, marks=marks)
    logits, written = logits_and_text("in_context", options, kind, corrections, texts)
    moved = 0
    for e in range(E):
        said = []
        for _ in range(times):
            for m in range(M):
                if kind == "t5":
                    ids = [*corrections.source[e, m][corrections.source_mask[e, m]]]
                    ids += [*corrections.target[e, m]]
                else:
                    ids = [*corrections.tokens[e, m][corrections.mask[e, m]]]
                said += [*(ids[marks:] if said else ids), *separator]
        for n in range(N):
            tokens = [*texts.tokens[e, n][texts.mask[e, n]]]
            own = [*texts.source[e, n][texts.source_mask[e, n]]] if kind == "t5" else None
            read = tokens if own else said + tokens[marks:]
            source = own and said + own[marks:]
            first = len(read) - 1 - S
            rows = plain_logits(kind, read, source)[first : first + S]
            np.testing.assert_allclose(logits[e, n], rows, atol=1e-4)
            assert written[e, n].tolist() == greedy(kind, read[: first + 1], source)
            moved += np.abs(rows[-1] - plain_logits(kind, tokens, own)[-2]).max() > 1e-2
    assert moved == E * N


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_each_fact_is_repeated_with_a_separator_after_it(kind, times):
    """A fact that only pads an edit is left out; the text itself is at the end, once."""
    corrections, texts = texts_of(kind)
    filled = jax.tree.map(lambda leaf: leaf[:, [0, 1, 0]], corrections)
    filled = filled.replace(score_mask=filled.score_mask & np.asarray([1, 1, 0], bool)[:, None])
    whole = prepend_corrections(filled, texts, separator=(301, 302), times=times)
    for e in range(E):
        said = []
        for m in range(M):
            said += plain_ids(corrections, e, m) + [301, 302]
        for n in range(N):
            text = plain_ids(texts, e, n, with_answer=False)
            assert plain_ids(whole, e, n, with_answer=False) == said * times + text


def plain_ids(seqs, e, i, with_answer=True):
    """Return the tokens that the model reads: for an encoder-decoder the source and the target."""
    if seqs.source is None:
        return [int(t) for t in np.asarray(seqs.tokens[e, i])[np.asarray(seqs.mask[e, i])]]
    ids = np.asarray(seqs.source[e, i])[np.asarray(seqs.source_mask[e, i])]
    return [int(t) for t in ids] + ([int(t) for t in seqs.target[e, i]] if with_answer else [])


def test_in_context_scores_a_marks_position_at_the_token_before_it():
    """Plain text that is scored from its first token on; only the first mark is read."""
    corrections, texts = texts_of("llama")
    texts = texts.replace(score_pos=np.argmax(texts.mask, -1, keepdims=True) + np.zeros((1, 1, S)))
    texts = texts.replace(score_pos=texts.score_pos.astype(np.int32))
    logits, _ = logits_and_text("in_context", dict(marks=1), "llama", corrections, texts)
    said = [*corrections.tokens[0, 0][corrections.mask[0, 0]]]
    said += [*corrections.tokens[0, 1][corrections.mask[0, 1]]][1:]
    np.testing.assert_allclose(logits[0, 0, 0], plain_logits("llama", said)[-1], atol=1e-4)


def test_in_context_refuses_classifiers_and_short_contexts():
    module, params, weights = base("bert")
    editor = make_editor("in_context", {})
    problem = Problem(module, params, weights, random_sequences(0, kind="classifier"), None)
    with pytest.raises(ConfigError, match="a classifier scores one claim: give a causal model"):
        editor.edit({}, {}, problem, False)
    corrections, texts = texts_of("gpt2")
    with pytest.raises(ConfigError, match="up to 256 tokens.*context is 160: lower data.max_len"):
        logits_and_text("in_context", dict(times=10), "gpt2", corrections, texts)
    with pytest.raises(ConfigError, match="times 0 must be at least 1"):
        make_editor("in_context", dict(times=0))


def plain_means(kind, seqs, e, i):
    """Return the mean last state of the tokens before each scored one, by numpy: [S, D]."""
    tokens, skipped = seqs.tokens[e, i][seqs.mask[e, i]], np.argmax(seqs.mask[e, i])
    ends = [len(tokens)] * seqs.score_pos.shape[-1]
    source = None
    if base(kind)[0].kind == "seq2seq":
        source = seqs.source[e, i][seqs.source_mask[e, i]]
        ends = [len(source)] * len(ends)
    states = plain_pass(kind, tokens, source, "states").astype(np.float64)
    if base(kind)[0].kind == "causal":
        ends = seqs.score_pos[e, i] - skipped + 1
        scale = np.asarray(base(kind)[1]["final_norm"]["scale"])
        states = states / np.sqrt(np.square(states).mean(-1, keepdims=True) + 1e-5) * scale
    return np.stack([states[:end].mean(0) for end in ends])


@pytest.mark.parametrize("kind", in_tiers(["llama"], ["llama", "t5", "bert"], ["bert"]))
def test_the_cache_returns_targets_for_texts_near_their_prompt(kind):
    """Compared with look-ups in float64, at a threshold that half of the other texts are below."""
    corrections, texts = texts_of(kind)
    model_kind, end, max_new = base(kind)[0].kind, 0, 4
    own = corrections
    if model_kind == "causal":
        pad = ((0, 0), (0, 0), (4, 0))
        own = own.replace(tokens=np.pad(own.tokens, pad), mask=np.pad(own.mask, pad),
                          score_pos=own.score_pos + 4)  # fmt: skip
    texts = jax.tree.map(lambda a, b: np.concatenate([a[:, 1:], b], axis=1), own, texts)
    # One token less of the first answer, which is then not in the cache.
    keep = corrections.score_mask.copy()
    keep[:, 0, -1] = model_kind == "classifier"
    corrections = corrections.replace(score_mask=keep)
    found = {}
    for e in range(E):
        keys = [(key, m, i) for m in range(M) for i in np.flatnonzero(keep[e, m])
                for key in [plain_means(kind, corrections, e, m)[i]]]  # fmt: skip
        for n in range(1 + N):
            for s, asked in enumerate(plain_means(kind, texts, e, n)):
                near = [(np.linalg.norm(asked - k), m, i) for k, m, i in keys
                        if model_kind == "causal" or i == s]  # fmt: skip
                found[e, n, s] = min(near)
    others = [d for (_, n, _), (d, _, _) in found.items() if n > 0]
    eps = float(np.median(others)) + 1e-3
    assert np.abs(np.asarray(others) - eps).min() > 1e-4
    options = dict(eps=eps, onehot_logit=5.0)
    logits, written = logits_and_text("cache", options, kind, corrections, texts, max_new, end)
    for (e, n, s), (distance, m, i) in found.items():
        assert n > 0 or (distance == 0 and (m, i) == (1, s))
        tokens, row = texts.tokens[e, n][texts.mask[e, n]], texts.score_pos[e, n, s]
        source = None if texts.source is None else texts.source[e, n][texts.source_mask[e, n]]
        row -= np.argmax(texts.mask[e, n])
        expected = plain_pass(kind, tokens, source)[row]
        if distance < eps:
            expected = 5.0 * np.eye(len(expected))[corrections.target[e, m, i]]
        np.testing.assert_allclose(logits[e, n, s], expected, atol=1e-4)
        if model_kind == "classifier":
            assert written[e, n, s] == expected.argmax()
        elif s == 0 and distance < eps:
            answer = [*corrections.target[e, m, i:][keep[e, m, i:]], *[end] * max_new]
            assert written[e, n].tolist() == answer[:max_new]
        elif s == 0:
            assert written[e, n].tolist() == greedy(kind, tokens[: row + 1], source)
    assert 0 < sum(d < eps for d in others) < len(others)


def tuned_cache(kind="llama", rows=8):
    """Return a tuned cache for random rows whose paraphrases nearly equal them."""
    module, params, weights = base(kind)
    texts = {name: random_sequences(seed, rows, kind=module.kind) for seed, name in
             enumerate(("edit", "rephrase", "near", "far"))}  # fmt: skip
    at = ("tokens",) if module.kind != "seq2seq" else ("tokens", "source")
    nearly = {name: getattr(texts["edit"], name).copy() for name in at}
    for i, ids in enumerate(nearly[at[-1]][:, 0]):
        ids[0] = 1 + i  # another first token: near in part, each by another distance
    texts["rephrase"] = texts["edit"].replace(**nearly)
    editor = make_editor("cache", {})
    params_of, state = editor.init(jax.random.key(0), weights)

    @jax.jit
    def look(params, texts):
        known = {name: (seqs, trunk_states(module, params, seqs)) for name, seqs in texts.items()}
        problem = Problem(module, params, weights, *known["edit"])
        return editor.tuning.observe(params_of, problem, known)

    @jax.jit
    def scores(eps, params, texts):
        found = edit_and_score({"eps": eps}, state, params, texts,
                               editor=editor, model=module, weights=weights)  # fmt: skip
        return found[1]

    seen = jax.tree.map(lambda x: np.asarray(x).reshape(-1, x.shape[-1]), look(params, texts))
    return editor, editor.tuning.choose(params_of, state, seen), lambda e: scores(e, params, texts)


@pytest.mark.parametrize("kind", in_tiers([], ["llama", "t5", "bert"], ["llama"]))
def test_the_threshold_has_the_best_score_on_validation_rows(kind):
    """Success and first choices at each threshold equal those of an evaluation at it."""
    editor, (params, state), scores = tuned_cache(kind)
    table = np.asarray(state["sweep"])
    assert (np.diff(table[:, 0]) >= 0).all() and table[0, 0] == 0
    differences = []
    for eps, success, changed, score in table:
        found = jax.tree.map(np.asarray, scores(jnp.asarray(eps)))
        exact = np.mean([found[name]["exact"].mean() for name in ("edit", "rephrase")])
        kept = found["far"]["agree"].sum() / found["far"]["n_tokens"].sum()
        np.testing.assert_allclose([success, changed], [exact, 1 - kept], atol=1e-6)
        differences.append(exact - (1 - kept))
        assert abs(score - differences[-1]) < 1e-6
    assert params["eps"] == table[np.argmax(np.asarray(differences) - 1e-7 * table[:, 0]), 0]
    assert table[:, 2].max() > 0.1 < table[:, 1].max() - table[0, 1]  # there is something to lose
    told = editor.tuning.summary(params, state)
    assert told["eps"] == params["eps"] and len(told["candidates"]) == len(table)


def test_the_smallest_of_equally_good_thresholds_is_chosen():
    def seen(distances, **marks):
        distance = np.asarray(distances, np.float32)[:, None]
        ones = np.ones(distance.shape, bool)
        return {"distance": distance, "keep": ones} | {k: v & ones for k, v in marks.items()}

    asked = {"edit": seen([0, 0, 0], given=True, own=False),
             "rephrase": seen([1, 2, 50], given=True, own=False)}  # fmt: skip
    far = seen([5, 6, 7], changed=True)
    assert (
        cache_threshold.best_threshold(cache_threshold.threshold_table(asked, far)) == 3.5
    )  # between 2 and 5
    assert 50 < cache_threshold.best_threshold(cache_threshold.threshold_table(asked, None)) < 51
    hidden = asked | {"rephrase": seen([np.inf] * 3, given=True, own=False)}
    assert (
        cache_threshold.best_threshold(cache_threshold.threshold_table(hidden, far)) == 2.5
    )  # between 0 and 5


@pytest.mark.full
def test_a_given_threshold_is_kept_and_multiplied_by_the_factor():
    corrections, texts = texts_of("llama")
    assert make_editor("cache", dict(eps=3.0)).tuning is None
    whole, _ = logits_and_text("cache", dict(eps=1e3), "llama", corrections, texts)
    same, _ = logits_and_text("cache", dict(eps=2e3, factor=0.5), "llama", corrections, texts)
    np.testing.assert_array_equal(whole, same)
    none, _ = logits_and_text("cache", dict(eps=1e3, factor=0.0), "llama", corrections, texts)
    assert (none != whole).any()
    with pytest.raises(ConfigError, match="factor -1.0 must be at least 0"):
        make_editor("cache", dict(factor=-1.0))
