"""The paper's tables as grids, at the scale of a laptop: SmolLM2-135M on zsRE questions.

What `configs/paper_table*.py` name is made here: how each editor is set for this base, and which
cells a table has. An editor that is not in `EDITORS` has no cells. Settings of the rivals are
starting points by their papers or by MEND's here; tuned are the cache's threshold and which blocks
UltraEdit edits.

A training step of 8 edits takes about a second on two cores, so `BUDGET` is about four minutes of
training a cell, and some two of evaluation. The cells of a table read the same rows, and keep their
trunk states on disk for one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mend_jax.apps.grid import cell, new_grid
from mend_jax.core.chunking import round_up
from mend_jax.editors import EDITORS, make_editor

BASES = {"": "qa_smollm2.py", "smoke": "qa_smollm2.py:smoke"}
BUDGET = {
    "train.steps": 240, "train.val_every": 240, "train.checkpoint_every": 60,
    "train.val_edits": 20, "train.trunk_cache": "disk", "eval.edits": 200,
    "eval.edits_per_step": 10, "eval.examples": 0, "eval.extra_data_sets": (), "eval.baselines": {},
    "train.doctor": False,
}  # fmt: skip
SEEDS = (0, 1, 2)
"""Of MEND where methods are compared; rivals have seed 0 alone."""

_NET = dict(
    rank=512, n_hidden=1, shared=True, norm=True, sides="combined", init="id", v_init="xavier",
    step_size=7e-4, log_step_size=True,
)  # fmt: skip
_DESCENT = dict(lr=1e-2, max_steps=100)
_FEW = {"eval.edits_per_step": 2}
"""Of editors that descend until each fact is met: those of one step wait for the slowest."""
_FAR = dict(length=26)  # as long as data.far_len: all further positions would be padding
_DOWN = {"model.edit_roles": ("mlp/down",)}  # the matrix that ROME and MEMIT are about
_SEARCH = dict(steps=40, n_prefixes=2)
_MIDDLE = {"model.edit_roles": tuple(f"block_{i}/mlp/down" for i in range(20, 25))}
_SWEPT = {"train.val_edits": 64}  # on which the cache's threshold is chosen
_SHOWN = {"train.calibration_texts": 2048}  # some 30,000 keys for a second moment of 1536 x 1536

NEWLINE = 198
"""The token of a new line in SmolLM2's vocabulary: it stands between a fact and the text."""

# For each editor its cells, by what is added to its name: options, and further settings.
_CELLS: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "mend": {"": (_NET, {})},
    "fine_tune": {
        "": (_DESCENT, _FEW),
        "_adam": (dict(optimizer="adam", lr=5e-5, max_steps=100), _FEW),
        # Of a block in the middle, as peers do, where the subject is read and not the answer.
        "_m": (
            dict(optimizer="adam", lr=5e-4, max_steps=100, only=("block_20/mlp/down",)),
            _DOWN | _FEW | {"model.last_n_blocks": 10},
        ),
    },
    "fine_tune_kl": {
        "": (_DESCENT | _FAR, _FEW),
        # The original code's weight.
        "_100": (dict(optimizer="adam", lr=5e-5, max_steps=100, c_kl=100.0) | _FAR, _FEW),
    },
    "fine_tune_ewc": {"": (_DESCENT, _FEW), "_tenth": (_DESCENT | dict(c_ewc=0.1), _FEW)},
    "fine_tune_lora": {"": (dict(rank=8, lr=5e-3, max_steps=100), _FEW)},
    "fine_tune_constrained": {
        "_l0": (_DESCENT | dict(ball="l0", radius=2000), _FEW),
        "_l2": (_DESCENT | dict(ball="l2", radius=0.3), _FEW),
        "_linf": (_DESCENT | dict(ball="linf", radius=3e-3), _FEW),
    },
    "enn": {"": (dict(step_size=0.1, log_step_size=True), {"train.lr": 1e-4})},
    # sigma(eta) can but double a step, and gamma starts at -init_lr d_in / (max_scale / 2).
    "ke": {"": (dict(init_lr=0.1, max_scale=10.0), {"train.lr": 1e-3})},
    # One step each: they begin where ENN's and KE's does.
    "meta_sgd": {"": (dict(lr=0.1, log_lr=True), {})},
    "meta_curvature": {"": (dict(step_size=0.1, log_step_size=True), {"train.lr": 1e-4})},
    # A tenth of a key's |k|^2, which is about 60 behind the norms of the last blocks.
    "malmen": {"": (_NET | dict(ridge=6.0), {})},
    # The original's 1e-6 is for keys of 14,336 numbers; the shift grows with |u^|^2, their number.
    # As its authors say, its blocks matter most: of seven choices on 20 to 40 validation rows these
    # are best, about where theirs are in Llama-3; in the last blocks it hardly edits.
    "ultraedit": {
        "": (dict(lr=2e-3), _MIDDLE),
        "_low": (dict(lr=1e-3), _MIDDLE),
        "_high": (dict(lr=3e-3), _MIDDLE),
        "_last": (dict(lr=3e-4), {}),
    },
    # A step is a stream of edits, each asked with those before it: dearer by their number.
    "rledit": {
        "": (
            {k: v for k, v in _NET.items() if k not in ("norm", "sides")} | dict(depth=4),
            {"train.edits_per_step": 8},
        )
    },
    # They edit blocks in the middle, where the subject's facts are read out, not the last ones.
    # With 4 prefixes ROME meets .7 of 20 validation facts in 20 steps, and all in 40. The more
    # prefixes, the longer each step: the 8 of its default take three times as long as 2.
    "rome": {"": (_SEARCH, _DOWN | _SHOWN | {"model.last_n_blocks": 18})},
    "memit": {
        "": (
            _SEARCH | dict(blocks=(10, 11, 12, 13, 14)),
            _DOWN | _SHOWN | {"model.last_n_blocks": 20},
        )
    },
    "in_context": {"": (dict(separator=(NEWLINE,)), {})},
    "cache": {"": ({}, _SWEPT)},
}
_STREAM = {"train.edits_per_step": 20, "train.c_loc": 0.6, "train.steps": 160}
"""Of RLEdit for edits in turn: as its paper, but for the steps, of which `_SHARE` are made: 800
edits, each asked with the nine before it."""
_SHARE = {"enn": 1 / 2, "meta_sgd": 1 / 2, "rledit": 1 / 4}
"""Of the steps, for editors whose steps cost more; ENN's and Meta-SGD's edits are dense."""
NAMES = {
    "mend": "MEND", "fine_tune": "FT", "fine_tune_adam": "FT, Adam", "fine_tune_m": "FT-M",
    "fine_tune_kl": "FT+KL", "fine_tune_kl_100": "FT+KL, 100", "fine_tune_ewc": "FT+EWC",
    "fine_tune_ewc_tenth": "FT+EWC, 0.1",
    "fine_tune_lora": "LoRA", "fine_tune_constrained_l0": "FT, l0",
    "fine_tune_constrained_l2": "FT, l2", "fine_tune_constrained_linf": "FT, l-infinity",
    "enn": "ENN", "ke": "KE", "meta_sgd": "Meta-SGD", "meta_curvature": "Meta-Curvature",
    "malmen": "MALMEN", "rledit": "RLEdit", "ultraedit": "UltraEdit",
    "ultraedit_low": "UltraEdit, 0.001", "ultraedit_high": "UltraEdit, 0.003",
    "ultraedit_last": "UltraEdit, last blocks", "rome": "ROME",
    "memit": "MEMIT", "cache": "cache",
    "in_context": "in context", "point_repair": "point repair",
}  # fmt: skip

LEARN = ("mend", "enn", "malmen")
BATCHED = ("mend", "enn", "fine_tune", "malmen", "ultraedit", "memit")
IN_TURN = (*BATCHED, "rledit")
SIZES = (1, 5, 25, 75, 125)
MANY = 500
"""Facts an edit, of editors that meet them in least squares and search for nothing.

The test split of zsRE has 581 subjects, and no edit may hold two facts of one.
"""
OF_MANY = ("malmen", "ultraedit")
CHUNK = 125
"""Texts of an edit that pass at once, where it has more: its memory grows with them. The fewer at a
time, the more is computed twice."""

# By facts an edit: edits a step, whether from paraphrases too, steps, and the size whose editor
# they go on from. A step takes longer by the facts in it (of 125 some 40 seconds on two cores), so
# most of what is learned is learned at 25.
_PACE = {5: (1, True, 120, 1), 25: (1, False, 100, 1), 75: (1, False, 30, 25),
         125: (1, False, 30, 25), MANY: (1, False, 6, 125)}  # fmt: skip
_TOGETHER = {
    # A step size that n facts together bear.
    "fine_tune": {"editor.options": dict(optimizer="adam", lr=1e-4, max_steps=100)},
    # Matrices of 1,536 inputs, for many facts in least squares; of one fact success is .902.
    "malmen": _DOWN | {"model.last_n_blocks": 10},
}
"""Of editors in Table 5, at every n."""
_SUMS = ("mend",)
"""Editors whose edit of n normalised facts is their plain sum: it grows with n. They go on with
step sizes of 1 / sqrt(n) times those of one fact, as if the parts were independent."""
_ON = {"train.warmup": 10, "train.decay": False, "train.c_edit_start": 1.0, "train.c_edit": 1.0,
       "train.c_loc": 0.6}  # fmt: skip
"""Of editors that go on: Adam begins anew, few steps count, and success weighs as in MALMEN's own
training: with the end of the schedule for one fact many facts are held back for the sake of KL."""


def method_cells(
    variant: str = "", editors: Iterable[str] = (), more: Mapping[str, Any] | None = None,
    start: str = "", options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A cell or more for each of these editors (all by default), settings `more` on top of its own.

    Those that need no training get 0 steps. With `start` they go on from that cell's editor.
    `options` of the editors go on top of their own.
    """
    further = dict(options or {})
    found = {}
    for editor in editors or EDITORS:
        for suffix, (own, settings) in _CELLS.get(editor, {"": ({}, {})}).items():
            if editor in EDITORS:
                name, options = editor + suffix, own | further
                values = settings_of(variant, editor, options, settings) | dict(more or {})
                if "train.steps" in values and not start:
                    values["train.steps"] = round(values["train.steps"] * _SHARE.get(editor, 1))
                transform = make_editor(editor, options)
                if not transform.trainable:
                    values["train.steps"] = 0
                if (
                    transform.sequential_training is not None
                ):  # a step is a stream, of two edits at least
                    values["train.edit_from_paraphrase"] = False
                    edits = values.get("train.edits_per_step", 4)
                    values["train.edits_per_step"] = max(2, edits)
                seeds = SEEDS if editor == "mend" and not variant else (0,)
                found[name] = cell(BASES[variant], NAMES.get(name, name), values, seeds, start)
    return found


def settings_of(
    variant: str, editor: str, options: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """All settings of a cell's runs; a smoke variant keeps the sizes of the smoke that it is of."""
    smoke = variant == "smoke"
    small = {"rank": 32} if smoke and "rank" in options and "n_hidden" in options else {}
    sizes = {
        k: v
        for k, v in BUDGET.items()
        if not smoke or k in ("eval.extra_data_sets", "eval.baselines")
    }
    kept = {k: v for k, v in settings.items() if not (smoke and k in BUDGET)}
    return sizes | {"editor.name": editor, "editor.options": dict(options) | small} | kept


def table4(variant: str = "") -> Any:
    """Every editor, one fact an edit."""
    return new_grid("Every editor, one fact an edit (the paper's Table 4)", method_cells(variant))


def table5(variant: str = "") -> Any:
    """Facts that one edit brings in together, trained and evaluated at that size.

    Editors that learn go on from their cell of a smaller size (`_PACE`): what they learn has the
    same shapes, and the steps add up.
    "sequential": edits that follow one another instead, up to five hundred.
    """
    if variant.endswith("sequential"):
        return _in_turn("smoke" if variant.startswith("smoke") else "")
    small = variant == "smoke"
    cells = {}
    for editor in BATCHED:
        sizes = (1, 5) if small else SIZES + ((MANY,) if editor in OF_MANY else ())
        for n in sizes:
            more = batch_settings(n, small) | _TOGETHER.get(editor, {})
            start = f"{editor}_{_PACE[n][3]}" if n > 1 and editor in LEARN else ""
            more |= _ON if start and not small else {}
            if start and editor in _SUMS:
                more |= {"editor.init_step_size_scale": round((_PACE[n][3] / n) ** 0.5, 4)}
            found = {editor: method_cells(variant, [editor], more, start)[editor]}
            cells |= {f"{name}_{n}": with_one_seed(one) for name, one in found.items()}
    return new_grid("Many facts in one edit (the paper's Table 5)", cells)


def batch_settings(n: int, small: bool) -> dict[str, Any]:
    """Training and evaluation at n facts an edit: the test facts fill whole edits."""
    values = {"data.edits_per_batch": n}
    if small:
        return values | {"train.edits_per_step": 2, "eval.edits_per_step": 2, "eval.edits": 10}
    if n == 1:  # as in Table 4, but for what `_TOGETHER` has
        return values
    edits, edit_from_paraphrase, steps, _ = _PACE[n]
    return values | {
        "train.edits_per_step": edits, "train.edit_from_paraphrase": edit_from_paraphrase,
        "train.steps": steps,
        "train.val_every": steps, "train.checkpoint_every": max(1, steps // 4),
        "train.log_every": 1 if n > 5 else 10, "train.val_edits": round_up(20, n),
        "data.length_buckets": (), "eval.edits": round_up(200, n),
        "model.text_chunk": CHUNK if n > CHUNK else 0,
        "eval.edits_per_step": max(1, 10 // n),
    }  # fmt: skip


def with_one_seed(one: Any) -> Any:
    """The cell with seed 0 alone."""
    one.seeds = (0,)
    return one


def _in_turn(variant: str) -> Any:
    """Edits of one fact that follow one another, for the editors of Table 5 and RLEdit.

    CounterFact has subjects for 1,000: --config.settings="('data.name=counterfact',)".
    """
    turns = (1, 3) if variant else (1, 10, 100, MANY)
    more = {"eval.sequential": turns, "eval.edits": 10}  # single edits are Table 4's
    found = method_cells(variant, [name for name in IN_TURN if name != "rledit"], more)
    stream = {k: v for k, v in _STREAM.items() if not (variant and k == "train.steps")}
    found |= method_cells(variant, ["rledit"], more | stream, options=dict(depth=10))
    cells = {name: with_one_seed(found[name]) for name in IN_TURN if name in found}
    return new_grid("Edits that follow one another on one model", cells)


ABLATIONS = {
    "mend": ("MEND", {}),
    "no_sharing": ("no sharing", dict(shared=False)),
    "no_norm": ("no norm", dict(norm=False)),
    "no_id_init": ("no identity init", dict(init="xavier")),
    "only_u": ("only u", dict(sides="x_only")),
    "only_delta": ("only delta", dict(sides="delta_only")),
    "only_smaller": ("only smaller", dict(sides="one_sided")),
    "no_norm_fast": ("no norm, step 0.1", dict(norm=False, step_size=0.1)),
    "no_id_init_slow": ("no identity init, step 7e-5", dict(init="xavier", step_size=7e-5)),
}
"""The paper's Table 6: options of MEND that are changed.

MEND's step size is one for normalised factors and the identity: what is without them is tried at
another too, so that it is not the step alone that fails it.
"""


def table6(variant: str = "") -> Any:
    """MEND without its parts, one at a time."""
    cells = {}
    for name, (method, options) in ABLATIONS.items():
        values = settings_of(variant, "mend", _NET | options, {})
        cells[name] = cell(BASES[variant], method, values)
    return new_grid("MEND without its parts (the paper's Table 6)", cells)


def table9(variant: str = "") -> Any:
    """MEND on matrices of attention instead of those of the MLP."""
    roles = {
        "mlp": ("MLP", ()),
        "attention": ("attention", ("attn/q", "attn/k", "attn/v", "attn/out")),
    }
    cells = {
        name: cell(
            BASES[variant], method,
            settings_of(variant, "mend", _NET, {"model.edit_roles": of}),
        )
        for name, (method, of) in roles.items()
    }  # fmt: skip
    return new_grid("Which matrices are edited (the paper's Table 9)", cells)


def table11(variant: str = "") -> Any:
    """MEND against look-up: a cache at its threshold, half and double, and in-context editing.

    Another threshold than that chosen on the validation rows: `editor.options={'eps': 3.0}` in
    `cells.cache.settings`.
    """
    cells = {name: with_one_seed(one) for name, one in method_cells(variant, ["mend"]).items()}
    thresholds = {"cache": ("cache, e*", 1.0), "cache_half": ("cache, e*/2", 0.5),
                  "cache_double": ("cache, 2 e*", 2.0)}  # fmt: skip
    for name, (method, factor) in thresholds.items() if "cache" in EDITORS else ():
        options = {} if factor == 1.0 else dict(factor=factor)  # e* is the cell of Table 4
        values = settings_of(variant, "cache", options, _SWEPT) | {"train.steps": 0}
        cells[name] = cell(BASES[variant], method, values)
    cells |= method_cells(variant, ["in_context"])
    return new_grid("MEND against look-up (the paper's Table 11)", cells)
