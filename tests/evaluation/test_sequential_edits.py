"""Sequential edits: made on the edited model, scored, resumed; and edits of several facts."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiers import in_tiers
from support.tiny import random_sequences, save_tiny, tiny
from test_train_and_evaluate import SETTINGS

import mend_jax
from mend_jax.apps.run_command import parse
from mend_jax.core.combined_edits import SolveOptions
from mend_jax.core.edit_problem import Problem, make_problem
from mend_jax.core.editor_protocol import EditTransform, Predictor, with_strength
from mend_jax.core.weight_edit import Dense, Edit, merge
from mend_jax.data.encoded_rows import EncodedRows
from mend_jax.data.sequential_rows import choose_sequential_rows
from mend_jax.editors import make_editor
from mend_jax.errors import ConfigError
from mend_jax.evaluation import sequential_edits
from mend_jax.evaluation.general_ability import AbilityTexts, base_ability, score_ability
from mend_jax.evaluation.scored_batches import ScoredBatches
from mend_jax.evaluation.sequential_edits import (
    Ability,
    Combination,
    evaluate_sequential_edits,
    next_edit,
    no_edits,
    padded_blocks,
    retention_windows,
)
from mend_jax.evaluation.sequential_state import SequentialState

N = 12
MODULE, BASE, WEIGHTS = tiny("llama")
ON_DEVICE = jax.device_put(BASE, jax.devices()[0])
MODEL = SimpleNamespace(params=ON_DEVICE, module=MODULE, weights=WEIGHTS)


@functools.cache
def encoded():
    """Twelve rows; row 3 may change the near text of row 0, and row 11 that of row 1."""
    texts = {
        name: random_sequences(seed, E=N).reshape(N)
        for seed, name in enumerate(("edit", "rephrase", "near", "far"))
    }
    near = [frozenset({"else"})] * N
    near[:2] = [frozenset({"s3"}), frozenset({"s11"})]
    scopes = tuple(f"s{i}" for i in range(N))
    return EncodedRows(texts, np.arange(N, dtype=np.int32), scopes, tuple(near), {})


def mend_editor():
    """Return an editor, its parameters and state, on a device as in a run."""
    editor = make_editor("mend", dict(rank=8, step_size=0.1))
    return editor, *jax.device_put(editor.init(jax.random.key(0), WEIGHTS), jax.devices()[0])


def pass_of(editor, tmp_path=None, turns=(1, 3, 8), n=1, **options):
    of = {"turns": list(turns)}
    files = [tmp_path and tmp_path / name for name in ("s.jsonl", "s.safetensors")]
    found = evaluate_sequential_edits(
        *editor, MODEL, encoded(), checkpoints=turns, facts_per_edit=n,
        log=ScoredBatches(files[0], of), saved=SequentialState(files[1], of), **options,
    )  # fmt: skip
    assert all((after.pop("seconds_per_fact") or 1) > 0 for after in found.values())  # time varies
    return found


def test_general_ability_is_that_of_all_edits_so_far():
    editor = mend_editor()
    texts = random_sequences(5, E=3).reshape(3)
    inputs = AbilityTexts(texts, random_sequences(6, E=4).reshape(4))
    base = jax.jit(functools.partial(base_ability, model=MODULE))(ON_DEVICE, inputs)
    found = pass_of(editor, turns=(1, 3), ability=Ability(inputs, base))
    assert found["1"]["ability"]["before"] == found["3"]["ability"]["before"]
    transform, params, state = editor
    first = jax.jit(lambda base, seqs: transform.edit(
        params, state, make_problem(MODULE, base, WEIGHTS, seqs), False)[0])(
            ON_DEVICE, rows_of(encoded().texts["edit"], 0))  # fmt: skip
    alone = jax.jit(functools.partial(score_ability, model=MODULE))(ON_DEVICE, first, inputs, base)
    expected = np.exp(float(alone["nll"][0]) / float(base.n_tokens))
    assert found["1"]["ability"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert found["3"]["ability"]["perplexity"] != found["1"]["ability"]["perplexity"]
    assert "ability" not in pass_of(editor, turns=(1,))["1"]


def rows_of(texts, *numbers):
    return jax.tree.map(lambda leaf: leaf[np.asarray(numbers)][None], texts)


def test_each_edit_is_made_on_the_edited_model():
    """The second equals the edit of a base with the first merged in, to float32's rounding of the
    merged weights (values around 1, deltas around 0.1)."""
    editor, params, state = mend_editor()
    one = sequential_edits._programs(editor, MODULE, WEIGHTS).next_edit
    alone = jax.jit(lambda base, seqs: editor.edit(
        params, state, make_problem(MODULE, base, WEIGHTS, seqs), False)[0])  # fmt: skip
    first, second = (rows_of(encoded().texts["edit"], i) for i in (0, 1))
    so_far, _ = one(params, state, no_edits(WEIGHTS), BASE, first)
    so_far, _ = one(params, state, so_far, BASE, second)
    merged = merge(BASE, alone(BASE, first).at(0))
    for name, delta in so_far.deltas.items():
        parts = alone(BASE, first), alone(merged, second)
        wanted = sum(part.deltas[name].dense() for part in parts)
        np.testing.assert_allclose(delta.w, wanted, atol=2e-4 * np.abs(wanted).max())
        apart = alone(BASE, first).deltas[name].dense() + alone(BASE, second).deltas[name].dense()
        assert np.abs(delta.w - apart).max() > 1e-2 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def whole():
    return pass_of(mend_editor())


def test_the_scores_of_each_checkpoint(whole):
    assert list(whole) == ["1", "3", "8"]
    for k, found in whole.items():
        assert found["edits"] == found["facts"] == int(k)
        assert [found[w]["n"] for w in ("first", "middle", "last", "all")] == [int(k)] * 4
        for window in ("first", "all"):
            assert found[window]["edit_token"] >= found[window]["edit_exact"]
            both = found[window]["edit_exact"] + found[window]["paraphrase_exact"]
            assert found[window]["success"] == pytest.approx(both / 2)
    norms = [found["relative_norm"] for found in whole.values()]
    assert 0 < norms[0] < norms[1] < norms[2] and set(whole["1"]["relative_norm_by_weight"]) == {
        w.name for w in WEIGHTS
    }


def test_hard_neighbours_are_scored_at_each_checkpoint(whole, monkeypatch):
    """Two a fact, of which the second of row 0 is missing; other scores stay as they are."""
    rows = encoded()
    near, target = (random_sequences(seed, E=N, n=2) for seed in (7, 8))
    mask = near.score_mask.copy()
    mask[0, 1] = False
    absent = target.score_mask & mask[..., :1]
    hard = {
        "hard_near": near.replace(score_mask=mask),
        "hard_target": target.replace(score_mask=absent),
    }
    more = dataclasses.replace(rows, texts={**rows.texts, **hard})
    monkeypatch.setattr("test_sequential_edits.encoded", lambda: more)
    found = pass_of(mend_editor())
    for k, scores in found.items():
        hard_near = scores.pop("hard_near")
        assert (hard_near["n"], hard_near["texts"]) == (8, 15)  # of the eight edited facts
        assert 0 <= hard_near["kept"] <= 1 and hard_near["kl"] > 0
        assert {"leak", "before"} < hard_near.keys()
        assert scores == whole[k]


def test_locality_is_of_the_same_texts_against_the_unedited_base(whole):
    """Row 3 may change row 0's near text; row 11, which may change row 1's, is edited too late."""
    tokens = encoded().texts["near"].score_mask.sum(-1)[:8]
    for found in whole.values():
        assert found["locality"]["near"]["n_tokens"] == tokens[1:].sum()
        assert found["locality"]["far"]["n_tokens"] == encoded().texts["far"].score_mask[:8].sum()
    kl = [found["locality"]["kl"] for found in whole.values()]
    assert 0 < kl[0] < kl[2]


def test_an_interrupted_pass_is_resumed(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(sequential_edits, "SAVE_EVERY", 5)
    calls = []

    def stop_after(edits):
        calls.clear()

        def between():
            calls.append(1)
            if len(calls) > edits:
                raise InterruptedError

        return between

    with pytest.raises(InterruptedError):
        pass_of(mend_editor(), tmp_path, between=stop_after(4))
    assert len(ScoredBatches(tmp_path / "s.jsonl", {"turns": [1, 3, 8]}).batches) == 2
    with pytest.raises(InterruptedError):  # goes on from checkpoint 3: edits 4 and 5
        pass_of(mend_editor(), tmp_path, between=stop_after(2))
    assert pass_of(mend_editor(), tmp_path, between=stop_after(3)) == whole  # 6, 7 and 8
    assert not (tmp_path / "s.safetensors").exists()
    assert pass_of(mend_editor(), tmp_path, between=stop_after(0)) == whole  # nothing is left to do


COMBINATIONS = {
    "base": Combination("base", SolveOptions(0.05)),
    "current": Combination(
        "current", SolveOptions(0.05, 2.0), True,
        covariance={w.name: jnp.eye(w.d_in) for w in WEIGHTS},
    ),
}  # fmt: skip


@pytest.mark.parametrize("made_on", in_tiers(["current"], COMBINATIONS))
def test_a_combined_pass_is_resumed_with_its_sums(made_on, tmp_path, monkeypatch):
    """The sums of all edits, in float64, are part of what an interrupted pass keeps."""
    monkeypatch.setattr(sequential_edits, "SAVE_EVERY", 2)
    wanted = pass_of(mend_editor(), turns=(1, 6), combination=COMBINATIONS[made_on])
    calls = []

    def stop():
        calls.append(1)
        if len(calls) > 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pass_of(mend_editor(), tmp_path, (1, 6), combination=COMBINATIONS[made_on], between=stop)
    assert pass_of(mend_editor(), tmp_path, (1, 6), combination=COMBINATIONS[made_on]) == wanted


def test_combined_edits_of_the_base_are_one_solve_over_their_rows():
    """Whatever the order: an edit on the base depends on no other."""
    editor, params, state = mend_editor()
    combination = COMBINATIONS["base"]
    run = sequential_edits._Pass(editor, params, MODEL, encoded().texts, 1, 4, combination)
    orders, found = ((1, 2, 3, 4), (3, 1, 4, 2)), []
    for order in orders:
        applied, kept = no_edits(WEIGHTS), run.start(state)
        for k in order:
            applied, kept = run.edit(k, applied, kept)
        found.append(run.together(applied, kept))
    for name in found[0].deltas:
        one, other = (np.asarray(edit.deltas[name].w) for edit in found)
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())
    name = WEIGHTS[0].name
    keys, changes = [], []
    for i in range(4):
        problem = make_problem(MODULE, BASE, WEIGHTS, rows_of(encoded().texts["edit"], i))
        delta = editor.edit(params, state, problem, False)[0].deltas[name].dense()[0]
        f = problem.factors()[name]
        keys.append(np.asarray(f.u[0], np.float64)[np.asarray(f.mask[0])])
        changes.append(keys[-1] @ np.asarray(delta, np.float64))
    k, r = np.concatenate(keys), np.concatenate(changes)
    system = k.T @ k + 0.05 * np.square(k).sum(-1).mean() * np.eye(k.shape[1])
    wanted = np.linalg.solve(system, k.T @ r)
    np.testing.assert_allclose(found[0].deltas[name].w[0], wanted, atol=1e-4 * np.abs(wanted).max())


def test_edits_of_the_base_can_be_added():
    """What a ledger of plain edits does: their sum."""
    editor, params, state = mend_editor()
    run = sequential_edits._Pass(
        editor, params, MODEL, encoded().texts, 1, 2, Combination("base", None)
    )
    applied, kept = no_edits(WEIGHTS), run.start(state)
    for k in (1, 2):
        applied, kept = run.edit(k, applied, kept)
    alone = [
        editor.edit(params, state, make_problem(
            MODULE, BASE, WEIGHTS, rows_of(encoded().texts["edit"], i)), False)[0]
        for i in (0, 1)
    ]  # fmt: skip
    for name, delta in run.together(applied, kept).deltas.items():
        wanted = sum(one.deltas[name].dense() for one in alone)
        np.testing.assert_allclose(delta.w, wanted, atol=1e-5 * np.abs(wanted).max())


def test_changes_on_an_edited_model_are_limited_to_those_on_the_base():
    editor, params, state = mend_editor()
    rng = np.random.default_rng(3)
    large = {
        w.name: Dense(jnp.asarray(rng.normal(size=(1, w.d_in, w.d_out)), jnp.float32))
        for w in WEIGHTS
    }
    program = sequential_edits._programs(editor, MODULE, WEIGHTS).request_change
    facts = rows_of(encoded().texts["edit"], 0)

    def lengths(made_on, limited):
        rows, _ = program(
            params, state, Edit(large), BASE, facts, made_on=made_on, limited=limited, rows="all"
        )
        return {n: np.linalg.norm(np.asarray(r.change), axis=-1) for n, r in rows.items()}

    base, free, limited = (
        lengths("base", False),
        lengths("current", False),
        lengths("current", True),
    )
    assert any((free[n] > 1.01 * base[n] + 1e-6).any() for n in base)
    for name in base:
        wanted = np.minimum(free[name], base[name])
        np.testing.assert_allclose(limited[name], wanted, rtol=1e-4, atol=1e-6)


def test_the_state_of_another_pass_is_not_used(tmp_path):
    edit = no_edits(WEIGHTS)
    SequentialState(tmp_path / "s", {"a": 1}).save(3, edit, {"x": jnp.ones(2)})
    state = {"x": jnp.zeros(2)}
    k, _, kept = SequentialState(tmp_path / "s", {"a": 1}).load(edit, state, 3)
    assert k == 3 and kept["x"].tolist() == [1, 1]
    for other, latest in (({"a": 2}, 3), ({"a": 1}, 2)):
        k, _, kept = SequentialState(tmp_path / "s", other).load(edit, state, latest)
        assert k == 0 and kept["x"].tolist() == [0, 0]
    whole = (tmp_path / "s").read_bytes()
    for damaged in (b"PK\x03\x04cut off", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        (tmp_path / "s").write_bytes(damaged)
        assert SequentialState(tmp_path / "s", {"a": 1}).load(edit, state, 3)[0] == 0


def test_edits_so_far_of_an_older_run_are_read_and_forgotten(tmp_path):
    edit, state = no_edits(WEIGHTS), {"x": jnp.zeros(2)}
    leaves = [np.ones_like(leaf) for leaf in jax.tree.leaves((edit, state))]
    np.savez(tmp_path / "s.npz", *leaves, k=np.asarray(3), of=np.asarray('{"a": 1}'))
    saved = SequentialState(tmp_path / "s.safetensors", {"a": 1})
    k, so_far, kept = saved.load(edit, state, 3)
    assert k == 3 and kept["x"].tolist() == [1, 1]
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(so_far))
    other = SequentialState(tmp_path / "s.safetensors", {"a": 2})
    assert other.load(edit, state, 3)[0] == 0
    saved.forget()
    assert not list(tmp_path.iterdir())


def counting(reader=None):
    """Return an editor whose state counts the facts it has edited."""

    def edit(params, state, problem, train):
        shape = {w.name: (problem.n_edits, w.d_in, w.d_out) for w in problem.weights}
        size = jnp.asarray(0.0 if reader else 0.01)
        return Edit({n: Dense(jnp.full(s, size * (1 + state))) for n, s in shape.items()}), state

    def lifelong_edit(params, state, problem):
        return edit(params, state, problem, False)[0], state + problem.corrections.batch_shape[1]

    editor = EditTransform(lambda key, w: ({}, jnp.zeros(())), edit, False)
    return editor._replace(lifelong_edit=lifelong_edit, predictor=reader), {}, jnp.zeros(())


def test_a_lifelong_editor_accumulates_after_each_edit():
    """Edit k of 2 facts each is 0.01 (1 + 2 (k - 1)): 0.01, then 0.03."""
    editor, params, state = counting()
    facts = rows_of(encoded().texts["edit"], 0, 1)
    so_far = no_edits(WEIGHTS)
    for size, n_facts in ((0.01, 2), (0.04, 4)):
        fixed = dict(editor=editor, model=MODULE, weights=WEIGHTS)
        so_far, state = jax.jit(functools.partial(next_edit, **fixed))(
            params, state, so_far, BASE, facts
        )
        assert float(state) == n_facts
        np.testing.assert_allclose(next(iter(so_far.deltas.values())).w, size, rtol=1e-6)


@pytest.mark.parametrize("name", in_tiers([], ["ultraedit", "rledit"], ["ultraedit"]))
def test_a_lifelong_edit_is_made_once_and_accumulated(name, monkeypatch):
    """It has evaluation's edit and training's state, from one capture of the factors."""
    editor = with_strength(make_editor(name, {"rank": 8} if name == "rledit" else {}), 0.5)
    params, state = editor.init(jax.random.key(0), WEIGHTS)
    facts = rows_of(encoded().texts["edit"], 0, 1)
    captures = []
    factors = Problem.factors
    monkeypatch.setattr(Problem, "factors", lambda *a, **k: captures.append(1) or factors(*a, **k))

    @jax.jit
    def run(state, base, facts):
        problem = make_problem(MODULE, base, WEIGHTS, facts)
        apart = [editor.edit(params, state, problem, train) for train in (False, True)]
        captures.clear()
        fixed = dict(editor=editor, model=MODULE, weights=WEIGHTS)
        return apart, next_edit(params, state, no_edits(WEIGHTS), base, facts, **fixed)

    ((edit, _), (_, trained)), (so_far, after) = run(state, BASE, facts)
    assert len(captures) == 1
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, after, trained)
    for at, delta in so_far.deltas.items():
        np.testing.assert_allclose(delta.w, edit.deltas[at].dense(), atol=1e-6)
    assert all(m["u"].count > 0 for m in after["normalize"].values())


def test_norms_are_relative_to_the_whole_base():
    """Whatever weights may be edited, |W| is that of the whole base."""
    whole = np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(BASE)))
    for weights in (WEIGHTS, WEIGHTS[1:2]):
        zero = no_edits(weights)
        first = weights[0]
        edit = zero.replace(deltas={**zero.deltas, first.name: Dense(
            np.full((1, first.d_in, first.d_out), 0.5, np.float32))})  # fmt: skip
        delta, of = np.asarray(sequential_edits.edit_norms(BASE, edit)[""])
        np.testing.assert_allclose(of, whole, rtol=1e-5)
        np.testing.assert_allclose(delta, 0.5 * np.sqrt(first.d_in * first.d_out), rtol=1e-5)


def test_a_predictor_receives_all_corrections_so_far():
    shapes = []

    def logits(params, problem, seqs, h):
        shapes.append(problem.corrections.batch_shape)
        shape = (*seqs.batch_shape, seqs.target.shape[-1], 300)
        return jax.nn.one_hot(seqs.target, shape[-1]) * 9.0  # knows every answer

    found = pass_of(counting(Predictor(logits, None)), turns=(1, 3), n=2)
    assert {(1, 2), (1, 6)} == set(shapes)
    assert found["3"]["facts"] == 6 and found["3"]["all"]["success"] == 1.0
    assert found["3"]["relative_norm"] == 0 and found["3"]["locality"]["kl"] > 0


def test_retention_windows_and_blocks():
    found = retention_windows(100, 16, 10)
    assert found["first"].tolist() == list(range(16))
    assert found["middle"].tolist() == list(range(42, 58))
    assert found["last"].tolist() == list(range(84, 100))
    assert found["all"].tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert {tuple(v) for v in retention_windows(3, 16, 10).values()} == {(0, 1, 2)}
    blocks = [(block.tolist(), new) for block, new in padded_blocks(np.arange(5), 3)]
    assert blocks == [([0, 1, 2], 3), ([3, 4, 3], 2)]


def test_sequential_rows_have_different_scopes():
    rows = [{"key": str(i), "scope": f"s{i % 7}", "subject": "x"} for i in range(50)]
    found = choose_sequential_rows(rows, 99)
    assert sorted(row["scope"] for row in found) == [f"s{i}" for i in range(7)]
    assert [r["key"] for r in found] != sorted(r["key"] for r in found)
    assert choose_sequential_rows(rows, 3) == found[:3]
    other = choose_sequential_rows(rows, 99, order=1)
    assert other != found and len(other) == len(found)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The flags and the folder of a run with edits of two facts, also sequential ones.

    Editor and baseline are the same, so that they share what is compiled.
    """
    settings = {"model.spec": save_tiny(tmp_path_factory.mktemp("base"))} | SETTINGS
    settings = {k: v for k, v in settings.items() if not k.startswith(("editor.", "eval.base"))}
    ft = {"lr": 1.0, "max_steps": 3}
    more = {"editor": "fine_tune", "edits": 4, "edits_per_step": 2, "sequential": (2,)}
    settings |= {
        "model.last_n_blocks": 1, "data.edits_per_batch": 2, "train.steps": 0, "eval.edits": 5,
        "eval.hard_neighbours": 0,
        "eval.edits_per_step": 2, "eval.sequential": "(1,3)", "editor.name": "fine_tune",
        "editor.options": ft, "eval.baselines": {"ft": ft | more},
    }  # fmt: skip
    return [f"--config.{k}={v}" for k, v in settings.items()], tmp_path_factory.mktemp("run")


@pytest.mark.full
def test_a_run_with_edits_of_several_facts_and_sequential_edits(ran):
    flags, workdir = ran
    config, _, _ = parse(["--config=quickstart.py", *flags])
    results = mend_jax.train_and_evaluate(config, workdir)
    entry = results["eval"]
    assert entry["n"] == 5 and entry["facts_per_edit"] == 2
    assert np.isfinite(entry["edit"]["nll"]) and np.isfinite(entry["locality"]["near"]["kl"])
    assert [found["facts"] for found in entry["sequential"].values()] == [2, 6]
    assert list(results["baselines"]["ft"]["sequential"]) == ["2"]
    assert results["baselines"]["ft"]["sequential"]["2"]["relative_norm"] > 0
    names = {p.name for p in workdir.iterdir()}
    assert {"sequential.jsonl", "sequential_ft.jsonl"} <= names and "sequential.npz" not in names
    assert json.loads((workdir / "results.json").read_text())["eval"] == entry


def test_more_sequential_edits_than_facts_are_refused(ran):
    flags, workdir = ran
    config, _, _ = parse(["--config=quickstart.py", *flags, "--config.eval.sequential=(1,99999)"])
    with pytest.raises(ConfigError, match="needs 199998 facts for a sequence of edits, and the"):
        mend_jax.train_and_evaluate(config, workdir / "other")


@pytest.mark.parametrize("turns", ["(0,)", "(3,1)", "(2,2)", "('a',)"])
def test_numbers_of_edits_that_do_not_rise_are_refused(turns):
    from mend_jax.training.config_check import check_editing_config

    config, _, _ = parse(["--config=quickstart.py", f"--config.eval.sequential={turns}"])
    with pytest.raises(ConfigError, match="numbers of edits that rise"):
        check_editing_config(config)
