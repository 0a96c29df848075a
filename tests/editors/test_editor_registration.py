"""Editors are added in one place: declarations, registration from outside, plug-ins."""

import ast
import dataclasses
import importlib.metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import random_batch, tiny
from test_editor_contract import OPTIONS

import mend_jax
from mend_jax.core.editor_protocol import Link, StepSizes, chain, factor_editor
from mend_jax.editors import (
    EDITORS,
    make_editor,
    register_editor,
    untrained_editors,
    usable_untrained,
)
from mend_jax.editors.chain_links import outer_sum
from mend_jax.errors import ConfigError
from mend_jax.io import registry
from mend_jax.parallel.mesh import make_mesh
from mend_jax.parallel.sharding import Rule, place
from mend_jax.training.optimizer import make_optimizer
from mend_jax.training.step import init_state, make_train_step, success_weight
from mend_jax.training.step_sizes import step_sizes

PACKAGE = Path(mend_jax.__file__).parent
GENERIC = [
    "parallel/sharding.py", "training/optimizer.py", "training/step_sizes.py",
    "ledger/editor_choice.py",
]  # fmt: skip


def names_of_editors_and_their_parts():
    """Return the names of editors, their links, parameters and state."""
    names = {*EDITORS, *untrained_editors()}
    for name, options in OPTIONS.items():
        editor = make_editor(name, options)
        weights = tiny("gpt2", n_top=2)[2]
        for tree in editor.init(jax.random.key(0), weights):
            names |= tree.keys()
    return names - {"texts"}  # an ordinary word


@pytest.mark.parametrize("path", GENERIC)
def test_modules_for_all_editors_name_no_editor(path):
    """Neither in strings nor in identifiers."""
    names = names_of_editors_and_their_parts()
    assert {"mend", "ridge", "low_rank_mlp", "value_shift", "fisher", "second_moment"} <= names
    tree = ast.parse((PACKAGE / path).read_text())
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                found |= names & set(ast_words(node.value))
        elif isinstance(node, ast.Name):
            found |= names & {node.id}
    assert not found


def ast_words(text):
    return "".join(c if c.isalnum() or c == "_" else " " for c in text).split()


def gain(init_gain):
    """A link of another package: u times a learned gain for each input of each weight."""

    def init(key, weights):
        return {w.name: jnp.full((w.d_in,), jnp.log(init_gain)) for w in weights}, {}

    def apply(params, state, signal, context):
        gains = {n: jnp.exp(p)[None, None] for n, p in params.items()}  # for u[E, N, d_in]
        return {n: dataclasses.replace(f, u=f.u * gains[n]) for n, f in signal.items()}, state

    return Link("gain", init, apply, (Rule(".*", ("tensor",)),), (StepSizes(log=True),))


@usable_untrained("one step of gradient descent", name="one_step", init_gain=0.25)
def gained(*, init_gain: float = 0.5):
    return factor_editor(chain(gain(init_gain), outer_sum(-1.0)))


@pytest.fixture
def registered():
    register_editor("gained", gained)
    yield
    EDITORS.unregister("gained")


def test_an_editor_registered_from_outside_trains_on_a_mesh(registered):
    """Its arrays are split as declared, and its step sizes have their own learning rate."""
    module, base, weights = tiny("llama", n_top=1)
    editor = make_editor("gained", {"init_gain": 0.125})
    tx = make_optimizer(
        lr=1e-9, step_size_lr=1e-2, clip=100.0, accumulate=1, warmup=0, steps=1, decay=False,
        step_sizes=editor.step_sizes,
    )  # fmt: skip
    state = place(make_mesh(dict(tensor=4)), init_state(editor, weights, tx, 0),
                  editor.sharding_rules)  # fmt: skip
    before = jax.tree.map(np.array, state.params["gain"])
    assert all("tensor" in leaf.sharding.spec for leaf in state.params["gain"].values())
    state = init_state(editor, weights, tx, 0)
    step = make_train_step(
        editor, tx, model=module, weights=weights, c_edit=success_weight(0.1, 0.1, 1), c_loc=1.0
    )
    state, _ = step(state, base, random_batch(0), np.int32(1))
    moved = [np.abs(state.params["gain"][n] - x).max() for n, x in before.items()]
    np.testing.assert_allclose(moved, 1e-2, rtol=1e-2)
    sizes = step_sizes({"gain": {"w": jnp.log(0.5)}}, editor.step_sizes)
    assert sizes["gain/w"] == pytest.approx(0.5)


def test_an_editor_registered_from_outside_is_offered_untrained(registered):
    name, declared = untrained_editors()["one_step"]
    assert name == "gained" and declared.options == {"init_gain": 0.25}
    assert EDITORS[name] is gained


def test_a_name_that_is_taken_is_refused(registered):
    for name in ("mend", "gained"):
        with pytest.raises(ConfigError, match=f"editor {name!r} is registered already"):
            register_editor(name, gained)


def test_an_editor_of_an_installed_package_is_found_by_its_entry_point(monkeypatch):
    point = importlib.metadata.EntryPoint(
        "gained", f"{__name__}:gained", "mend_jax.editors"
    )  # fmt: skip
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    monkeypatch.setattr(EDITORS, "_entries", dict(EDITORS._entries))
    monkeypatch.setattr(EDITORS, "_plugins_loaded", False)
    assert "gained" in EDITORS and "one_step" in untrained_editors()
    assert make_editor("gained", {}).step_sizes[0].path == "gain"
