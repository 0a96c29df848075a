"""Every number of the original MEND program, in `compat="code"` mode.

The folder `MEND_GOLDEN_DIR` holds one complete tiny run of the original a file, listed by
`index.json`: model, batches, captured factors, transformed factors, updates, statistics, logits,
losses, meta-gradients and one Adam step. The test runs over whatever files the folder lists.
"""

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiers import in_tiers

from mend_jax import models
from mend_jax.core.edit_problem import make_problem
from mend_jax.core.editor_protocol import group_weights
from mend_jax.core.factors import zero_moments
from mend_jax.core.forward import top_logits, trunk_states
from mend_jax.core.meta_loss import meta_loss
from mend_jax.core.token_batch import TokenBatch
from mend_jax.editors import LinkContext, make_editor, original_checkpoints
from mend_jax.editors.chain_links import normalize
from mend_jax.editors.low_rank_mlp import low_rank_mlp
from mend_jax.models.params import stack_trunk

FOLDER = Path(os.environ.get("MEND_GOLDEN_DIR", Path(__file__).parents[3] / "shared/golden_mend"))
INDEX = FOLDER / "index.json"
CASES = sorted(json.loads(INDEX.read_text())) if INDEX.exists() else []
SLOW = [name for name in CASES if name == "gpt2_default"]

# Ten times (largest absolute difference, largest difference / largest value of the array) that the
# folder's README states between the original in float32 and in float64.
TOLERANCE = {
    "captured": (3.5e-5, 9e-6),
    "factors": (3.2e-4, 2.9e-5),
    "update": (1.5e-5, 2.4e-5),
    "logits": (4.6e-5, 9e-6),
    "loss": (7.4e-6, 2.1e-4),
    "stats": (3.7e-4, 1.1e-5),
    "grad": (3.8e-4, 6.8e-5),
    "info": (1.8e-2, 2.3e-3),
    "adam": (4.1e-4, 7.8e-4),
}


def sequences(batch, score_all):
    """The original's (input_ids, attention_mask, labels) as TokenBatch with leading axes [1, n]."""
    tokens = batch["input_ids"].astype(np.int32)[None]
    mask = batch["attention_mask"].astype(bool)[None]
    n, T = tokens.shape[1:]
    if score_all:
        pos, target, scored = np.arange(T), np.zeros((1, n, T), np.int32), mask
    else:
        labels = batch["labels"][None, :, 1:]
        pos, scored = np.arange(T - 1), labels != -100
        target = np.where(scored, labels, 0).astype(np.int32)
    pos = np.broadcast_to(pos.astype(np.int32), target.shape)
    return TokenBatch(tokens, mask, pos, target, scored)


SIDES = {"x_only": "x_only", "delta_only": "delta_only", "one_sided": "one_sided"}


def mend_options(c):
    """The original's `mend` config as our options."""
    flags = [ours for theirs, ours in SIDES.items() if c[theirs]]
    sides = "combined" if c["combine"] else (flags[0] if flags else "separate")
    return dict(
        rank=c["rank"], n_hidden=c["n_hidden"], shared=c["shared"], norm=c["norm"],
        sides=sides, init=c["init"], compat="code",
    )  # fmt: skip


class Golden:
    """One file of the folder, its model and editor as ours, and what was compared so far."""

    def __init__(self, case):
        self.meta = json.loads(INDEX.read_text())[case]
        self.arrays = dict(np.load(FOLDER / f"{case}.npz"))
        self.seen = set()
        self.options = mend_options(self.meta["mend"])
        self.shared = self.options["shared"]
        hf = self.meta["model_config"]
        family = models.find_family(hf)
        config = models.parse_config(family, hf)
        specs = family.tensor_specs(config)
        by_hf = {s.hf: s for s in specs}
        flat = {}
        for s in specs:
            value = self.take(f"model/{s.hf}")
            flat[s.path] = value.T if s.transpose else value
        weights = models.editable_weights(specs)
        self.hf_of = {s.path.removesuffix("/kernel"): s.hf for s in specs}
        self.transposed = {s.path.removesuffix("/kernel"): s.transpose for s in specs}
        self.weights = tuple(
            weights[by_hf[name].path.removesuffix("/kernel")] for name in self.meta["inner_params"]
        )
        self.model = family.model_class(
            config, models.count_top_blocks(family, config, self.weights)
        )
        self.base = stack_trunk(flat, self.model.stacks)

    def take(self, key):
        self.seen.add(key)
        return self.arrays[key]

    def group(self, prefix):
        """The arrays below a prefix, by the rest of their names."""
        found = {k.removeprefix(prefix): k for k in self.arrays if k.startswith(prefix)}
        return {rest: self.take(key) for rest, key in found.items()}

    def check(self, kind, key, ours):
        theirs = self.take(key)
        ours = np.asarray(ours)
        assert ours.shape == theirs.shape, key
        gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
        largest = np.abs(theirs).max(initial=0.0)
        absolute, relative = TOLERANCE[kind]
        assert gap <= absolute and gap <= relative * max(largest, 1e-3), (key, gap, largest)


@pytest.mark.skipif(not CASES, reason="no golden files at MEND_GOLDEN_DIR")
@pytest.mark.parametrize("case", in_tiers((), CASES, SLOW))
def test_every_array_equals_the_original_programs(case):
    g = Golden(case)
    params, state = original_checkpoints.import_state_dict(
        g.group("editor/"), g.weights, g.hf_of, shared=g.shared
    )
    editor = make_editor("mend", g.options)
    run, grads = make_step(g, editor), {}
    for step in ("step1", "step2", "eval"):
        state, grads[step] = check_step(g, step, run, params, state, train=step != "eval")
    check_adam(g, params, state, grads["step2"])
    assert g.seen == set(g.arrays), sorted(set(g.arrays) - g.seen)[:5]


def make_step(g, editor):
    """Return a function of all that one step of the original records; `train` is static."""
    links = (
        normalize(g.shared, one_by_one=True, pass_through=not g.options["norm"]),
        low_rank_mlp(*(g.options[k] for k in ("rank", "n_hidden", "shared", "sides", "init"))),
    )

    @functools.partial(jax.jit, static_argnames="train")
    def everything(params, state, base, batch, train):
        run = LinkContext(g.weights, train)
        problem = make_problem(g.model, base, g.weights, batch["edit"])
        factors = transformed = problem.factors()
        for link in links:
            transformed, _ = link.apply(params[link.name], state[link.name], transformed, run)
        (total, (metrics, new_state, edit)), grad = jax.value_and_grad(meta_loss, has_aux=True)(
            params, state, base, batch, editor=editor, model=g.model, weights=g.weights,
            c_edit=g.meta["cedit"], c_loc=g.meta["cloc"], train=train,
        )  # fmt: skip
        one = edit.at(0)
        logits = {
            key: logits_everywhere(g, base, batch[name], under)
            for key, name, under in (
                ("inner", "edit", None), ("pre_edit", "rephrase", None),
                ("post_edit", "rephrase", one), ("base_loc", "near", None),
                ("post_loc", "near", one),
            )
        }  # fmt: skip
        losses = {
            "inner": problem.loss()[0], "total": total,
            "edit": metrics["nll_rephrase"], "loc": metrics["kl"],
        }  # fmt: skip
        return factors, transformed, losses, new_state, edit, grad, logits

    return everything


def logits_everywhere(g, base, seqs, under):
    """Logits at every position, padding included."""
    seqs = jax.tree.map(lambda a: a[0], seqs)
    n, T = seqs.tokens.shape
    seqs = seqs.replace(score_pos=jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (n, T)))
    return top_logits(g.model, base, trunk_states(g.model, base, seqs), seqs, under)


def check_step(g, step, run, params, state, train):
    fields = ("input_ids", "attention_mask", "labels")
    batches = {
        name: {k: g.take(f"{step}/batch/{name}/{k}") for k in fields}
        for name in ("edit_inner", "edit_outer", "loc")
    }  # fmt: skip
    batch = {
        "edit": sequences(batches["edit_inner"], False),
        "rephrase": sequences(batches["edit_outer"], False),
        "near": sequences(batches["loc"], True),
    }
    factors, transformed, losses, new_state, edit, grad, logits = run(
        params, state, g.base, batch, train=train
    )
    check_factors(g, step, factors, transformed)
    for name, value in losses.items():
        g.check("loss", f"{step}/loss/{name}", value)
    for name, value in logits.items():
        g.check("logits", f"{step}/logits/{name}", value)
    for i, w in enumerate(g.weights):
        update = np.asarray(edit.at(0).deltas[w.name].dense())
        theirs = update.T if g.transposed[w.name] else update
        g.check("update", f"{step}/update/{g.hf_of[w.name]}", theirs)
        true = np.asarray(factors[w.name].gradient()[0])
        check_info(g, f"{step}/info/grad", i, true, update / params["scale_by_layer_lr"][w.name])
    ours = original_checkpoints.export_state_dict(
        params, new_state, g.weights, g.hf_of, shared=g.shared
    )
    for key in [k for k in g.arrays if k.startswith(f"{step}/stats/")]:
        g.check("stats", key, ours[key.removeprefix(f"{step}/stats/")])
    if train:
        for name, value in as_original(g, grad).items():
            g.check("grad", f"{step}/grad/{name}", value)
    return new_state, grad


def check_factors(g, step, factors, transformed):
    """Captured factors with padding, modes, and the rows after the network."""
    groups = [group.members for group in group_weights(g.weights, g.shared)]
    for w in g.weights:
        name, f, t = g.hf_of[w.name], factors[w.name], transformed[w.name]
        lead = g.arrays[f"{step}/captured/{name}/x"].shape[:2]
        kept = np.asarray(t.mask)
        for theirs, ours in (("x", "u"), ("delta", "delta")):
            captured = np.asarray(getattr(f, ours))
            captured = captured.reshape(lead[0], -1, captured.shape[-1])
            if captured.shape[1] < lead[1]:  # ours has no row for the last, unscored position
                original = g.arrays[f"{step}/captured/{name}/{theirs}"][:, captured.shape[1] :]
                rest = original if ours == "u" else np.zeros_like(original)
                captured = np.concatenate([captured, rest], axis=1)
            g.check("captured", f"{step}/captured/{name}/{theirs}", captured)
            g.check(
                "factors", f"{step}/factors/{name}/{theirs}", np.asarray(getattr(t, ours))[kept]
            )
        mode = next(m.index(w) for m in groups if w in m) if g.shared else -1
        assert g.take(f"{step}/mode/{name}") == mode


def check_info(g, prefix, i, true, pseudo):
    """The original's diagnostics: true gradient against the sum of transformed outer products."""
    ours = {
        "true_mag": np.linalg.norm(true), "pseudo_mag": np.linalg.norm(pseudo),
        "true_std": true.std(ddof=1), "pseudo_std": pseudo.std(ddof=1),
        "diff": np.linalg.norm(true - pseudo),
        "cos": (true * pseudo).sum() / (np.linalg.norm(true) * np.linalg.norm(pseudo)),
    }  # fmt: skip
    for kind, value in ours.items():
        g.check("info", f"{prefix}/{kind}{i}", value)


def as_original(g, tree):
    """A tree shaped like the editor's parameters, under the original's names."""
    empty = {"u": zero_moments(1), "delta": zero_moments(1)}
    state = {"normalize": {group.key: empty for group in group_weights(g.weights, g.shared)}}
    out = original_checkpoints.export_state_dict(tree, state, g.weights, g.hf_of, shared=g.shared)
    return {k: v for k, v in out.items() if k == "edit_lrs" or ".layers." in k}


def check_adam(g, params, state, grad):
    norm = optax.tree.norm(grad)
    g.check("grad", "adam/grad_norm", norm)
    optimizer = optax.chain(
        optax.clip_by_global_norm(float(g.take("adam/clip"))),
        optax.adam(float(g.take("adam/lr"))),
    )
    params = jax.tree.map(jnp.asarray, params)
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an int32 step count
        updates, _ = optimizer.update(grad, optimizer.init(params), params)
    after = as_original(g, optax.apply_updates(params, updates))
    for name, value in after.items():
        g.check("adam", f"adam/editor/{name}", value)
    g.take("adam/lr_lr")  # the original's second optimiser finds no gradient and does nothing
