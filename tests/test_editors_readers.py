"""Editors that change no weight: what they read and write, against plain computations."""

import functools

import jax
import numpy as np
import pytest
from tiny import random_sequences, tiny

from mend_jax.editors import make_editor
from mend_jax.errors import ConfigError
from mend_jax.forward import Problem, make_problem, trunk_states
from mend_jax.models.base import Inputs

E, M, N, S = 2, 2, 3, 3  # edits, corrections of each, texts of each, scored positions


@functools.cache
def base(kind):
    return tiny(kind)


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


def read_and_written(name, options, kind, corrections, texts, max_new=4, eos=0):
    """(logits, what is freely written) of an editor, by one program."""
    module, params, weights = base(kind)
    reader = make_editor(name, options).reader

    @jax.jit
    def run(params, corrections, texts):
        problem = make_problem(module, params, weights, corrections)
        h = trunk_states(module, params, texts)
        return (
            reader.logits({}, problem, texts, h),
            reader.write({}, problem, texts, max_new, eos),
        )

    return jax.tree.map(np.asarray, run(params, corrections, texts))


@functools.cache
def runner(kind):
    return jax.jit(base(kind)[0].apply)


def plain_logits(kind, tokens, source=None):
    """The model's logits [T, V] of one text without padding (filled up, to compile less)."""

    def filled(ids, width):
        ids, n = np.asarray(ids), len(ids)
        return np.pad(ids, (0, width - n))[None].astype(np.int32), (np.arange(width) < n)[None]

    more = () if source is None else filled(source, 100)
    inputs = Inputs(*filled(tokens, 100), *more)
    return np.asarray(runner(kind)({"params": base(kind)[1]}, inputs))[0, : len(tokens)]


def greedy(kind, tokens, source=None, max_new=4):
    tokens = list(tokens)
    for _ in range(max_new):
        tokens.append(int(plain_logits(kind, tokens, source)[-1].argmax()))
    return tokens[-max_new:]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_in_context_reads_the_corrections_then_the_text(kind):
    """As one plain text each; float32 logits of some 60 tokens agree to 1e-4."""
    separator, times, marks = (7, 8), 2, 1
    corrections, texts = texts_of(kind)
    options = dict(separator=separator, times=times, marks=marks)
    logits, written = read_and_written("in_context", options, kind, corrections, texts)
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


def test_in_context_scores_a_marks_position_on_what_stands_before_it():
    """Plain text, scored from its first token on: the mark is read in the first place alone."""
    corrections, texts = texts_of("llama")
    texts = texts.replace(score_pos=np.argmax(texts.mask, -1, keepdims=True) + np.zeros((1, 1, S)))
    texts = texts.replace(score_pos=texts.score_pos.astype(np.int32))
    logits, _ = read_and_written("in_context", dict(marks=1), "llama", corrections, texts)
    said = [*corrections.tokens[0, 0][corrections.mask[0, 0]]]
    said += [*corrections.tokens[0, 1][corrections.mask[0, 1]]][1:]
    np.testing.assert_allclose(logits[0, 0, 0], plain_logits("llama", said)[-1], atol=1e-4)


def test_in_context_refuses_classifiers_and_short_contexts():
    module, params, weights = base("bert")
    editor = make_editor("in_context", {})
    problem = Problem(module, params, weights, random_sequences(0, kind="classifier"), None)
    with pytest.raises(ConfigError, match="a classifier judges one claim: give a causal model"):
        editor.edit({}, {}, problem, False)
    corrections, texts = texts_of("gpt2")
    with pytest.raises(ConfigError, match="up to 256 tokens.*context is 160: lower data.max_len"):
        read_and_written("in_context", dict(times=10), "gpt2", corrections, texts)
    with pytest.raises(ConfigError, match="times 0 must be at least 1"):
        make_editor("in_context", dict(times=0))
