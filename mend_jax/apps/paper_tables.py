"""The paper's tables as grids, at the scale of a laptop: SmolLM2-135M on zsRE questions.

`configs/paper_table*.py` use this module: the settings of each editor for this base, and the cells
of each table. An editor that is not in `EDITORS` has no cells. Settings of the other editors are
starting points from their papers or MEND's; tuned are only the cache's threshold and the blocks
that UltraEdit edits.

A training step of 8 edits needs about a second on two cores, so `BUDGET` is about four minutes of
training for a cell, and two of evaluation. The cells of a table read the same rows, and share
their trunk states on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mend_jax.apps.grid import cell, new_grid
from mend_jax.core.chunking import round_up
from mend_jax.editors import EDITORS, make_editor

BASES = {"": "qa_smollm2.py", "smoke": "qa_smollm2.py:smoke"}
BUDGET = {
    "train.steps": 240, "train.val_every": 240, "train.checkpoint_every": 60,
    "train.val_edits": 20, "train.trunk_cache": "disk", "train.trunk_cache_gib": 8.0,
    "eval.edits": 200,
    "eval.edits_per_step": 10, "eval.examples": 0, "eval.extra_data_sets": (), "eval.baselines": {},
    "train.doctor": False,
}  # fmt: skip
SEEDS = (0, 1, 2)
"""Seeds of MEND; other editors have seed 0 alone."""

_NET: dict[str, Any] = dict(
    rank=512, n_hidden=1, shared=True, norm=True, sides="combined", init="id", v_init="xavier",
    step_size=7e-4, log_step_size=True,
)  # fmt: skip
_DESCENT = dict(lr=1e-2, max_steps=100)
_FEW = {"eval.edits_per_step": 2}
"""For editors that descend until each fact is met: the edits of a step wait for the slowest."""
_FAR = dict(length=26)  # data.far_len: all later positions would be padding
_DOWN = {"model.edit_roles": ("mlp/down",)}  # the matrix that ROME and MEMIT edit
_SEARCH = dict(steps=40, n_prefixes=2)
_MIDDLE = {"model.edit_roles": tuple(f"block_{i}/mlp/down" for i in range(20, 25))}
_TUNED = {"train.val_edits": 64}  # on which the cache's threshold is tuned
_CALIBRATED = {"train.calibration_texts": 2048}  # 30,000 keys for a second moment of 1536 x 1536

NEWLINE = 198
"""The token of a new line in SmolLM2's vocabulary, which separates a fact from the text."""

# For each editor its cells, by the suffix of the name: options, and further settings.
_CELLS: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "mend": {"": (_NET, {})},
    "fine_tune": {
        "": (_DESCENT, _FEW),
        "_adam": (dict(optimizer="adam", lr=5e-5, max_steps=100), _FEW),
        # One block in the middle, as other libraries do, where the subject is read.
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
    # sigma(eta) at most doubles a step, and gamma starts at -init_lr d_in / (max_scale / 2).
    "ke": {"": (dict(init_lr=0.1, max_scale=10.0), {"train.lr": 1e-3})},
    # One step each, which starts as ENN's and KE's does.
    "meta_sgd": {"": (dict(lr=0.1, log_lr=True), {})},
    "meta_curvature": {"": (dict(step_size=0.1, log_step_size=True), {"train.lr": 1e-4})},
    # A tenth of a key's |k|^2, which is about 60 after the norms of the last blocks.
    "malmen": {
        "": (_NET | dict(ridge=6.0), {}),
        "_kept": (_NET | dict(ridge=6.0, ordinary=30.0), _CALIBRATED),
    },
    # The original's 1e-6 is for keys of 14,336 numbers; the shift grows with |u^|^2, their number.
    # Its authors say that the choice of blocks matters most. Of seven choices on 20 to 40
    # validation rows these are best, about where theirs are in Llama-3; in the last blocks it
    # hardly edits.
    "ultraedit": {
        "": (dict(lr=2e-3), _MIDDLE),
        "_low": (dict(lr=1e-3), _MIDDLE),
        "_high": (dict(lr=3e-3), _MIDDLE),
        "_last": (dict(lr=3e-4), {}),
    },
    # A step is a sequence of edits, each scored with those before it: it costs that much more.
    "rledit": {
        "": (
            {k: v for k, v in _NET.items() if k not in ("norm", "sides")} | dict(depth=4),
            {"train.edits_per_step": 8},
        )
    },
    # They edit blocks in the middle, where the subject's facts are read out, not the last ones.
    # With 4 prefixes ROME meets .7 of 20 validation facts in 20 steps, and all in 40. More
    # prefixes make each step longer: its default of 8 needs three times as long as 2.
    "rome": {"": (_SEARCH, _DOWN | _CALIBRATED | {"model.last_n_blocks": 18})},
    "memit": {
        "": (
            _SEARCH | dict(blocks=(10, 11, 12, 13, 14)),
            _DOWN | _CALIBRATED | {"model.last_n_blocks": 20},
        )
    },
    **{
        name: {
            "": (
                _SEARCH | dict(blocks=(10, 11, 12, 13, 14)),
                _DOWN | _CALIBRATED | {"model.last_n_blocks": 20},
            )
        }
        for name in ("rlsedit", "encore", "alphaedit", "betaedit")
    },
    "in_context": {"": (dict(separator=(NEWLINE,)), {})},
    "cache": {"": ({}, _TUNED)},
}
_RLEDIT_SEQUENTIAL = {"train.edits_per_step": 20, "train.c_loc": 0.6, "train.steps": 160}
"""RLEdit for sequential edits, as in its paper but for the steps (times `_STEPS_SHARE`): 800 edits,
each scored with the nine before it."""
_STEPS_SHARE = {"enn": 1 / 2, "meta_sgd": 1 / 2, "rledit": 1 / 4}
"""Share of the steps for editors whose steps cost more; ENN's and Meta-SGD's edits are dense."""
METHODS = {
    "mend": "MEND", "fine_tune": "FT", "fine_tune_adam": "FT, Adam", "fine_tune_m": "FT-M",
    "fine_tune_kl": "FT+KL", "fine_tune_kl_100": "FT+KL, 100", "fine_tune_ewc": "FT+EWC",
    "fine_tune_ewc_tenth": "FT+EWC, 0.1",
    "fine_tune_lora": "LoRA", "fine_tune_constrained_l0": "FT, l0",
    "fine_tune_constrained_l2": "FT, l2", "fine_tune_constrained_linf": "FT, l-infinity",
    "enn": "ENN", "ke": "KE", "meta_sgd": "Meta-SGD", "meta_curvature": "Meta-Curvature",
    "malmen": "MALMEN", "malmen_kept": "MALMEN, ordinary keys kept",
    "rledit": "RLEdit", "ultraedit": "UltraEdit",
    "ultraedit_low": "UltraEdit, 0.001", "ultraedit_high": "UltraEdit, 0.003",
    "ultraedit_last": "UltraEdit, last blocks", "rome": "ROME",
    "memit": "MEMIT", "rlsedit": "RLSEdit", "encore": "ENCORE", "alphaedit": "AlphaEdit",
    "betaedit": "BetaEdit", "cache": "cache",
    "in_context": "in context", "point_repair": "point repair",
}  # fmt: skip

SCOPED = ("mend", "malmen", "fine_tune_lora")
UNDER_THE_SCOPE = {"scope.file": "shipped", "scope.plain_in_training": False}
"""Settings of cells whose edits apply where the scope that comes with the package finds them."""
TRAINED = ("mend", "enn", "malmen")
BATCHED = ("mend", "enn", "fine_tune", "malmen", "ultraedit", "memit")
MEMORIES = ("rlsedit", "encore", "alphaedit", "betaedit")
"""Editors as MEMIT whose solve counts what earlier turns wrote."""
SEQUENTIAL = (*BATCHED, "malmen_kept", "rledit", *MEMORIES)
SIZES = (1, 5, 25, 75, 125)
MAX_SIZE = 500
"""Facts per edit, for `LEAST_SQUARES`, whose editors solve for them and do not search.

The test split of zsRE has 581 subjects, and no edit may have two facts of one subject.
"""
LEAST_SQUARES = ("malmen", "ultraedit")
TEXT_CHUNK = 125
"""How many texts of a larger edit pass at once. Memory grows with it; recomputation shrinks."""


class _SizeSettings(NamedTuple):
    """How to train on n facts per edit: for `steps` from the editor of size `start`."""

    steps: int
    start: int
    edit_from_paraphrase: bool = False


# The time of a step grows with its facts (125: some 40 seconds on two cores), so most of the
# training is done at 25.
_BY_SIZE = {5: _SizeSettings(120, 1, True), 25: _SizeSettings(100, 1), 75: _SizeSettings(30, 25),
            125: _SizeSettings(30, 25), MAX_SIZE: _SizeSettings(6, 125)}  # fmt: skip
_TABLE5: dict[str, dict[str, Any]] = {
    # A learning rate that suits n facts together.
    "fine_tune": {"editor.options": dict(optimizer="adam", lr=1e-4, max_steps=100)},
    # Matrices of 1,536 inputs, for many facts in least squares; of one fact success is .902.
    "malmen": _DOWN | {"model.last_n_blocks": 10},
}
"""Settings of editors in Table 5, at every size."""
_SUMS = ("mend",)
"""Editors whose edit of n normalised facts is their plain sum, which grows with n. A larger size
starts with step sizes of 1 / sqrt(n) times those of one fact, as if the parts were independent."""
_CONTINUED = {
    "train.warmup": 10, "train.decay": False, "train.c_edit_start": 1.0, "train.c_edit": 1.0,
    "train.c_loc": 0.6,
}  # fmt: skip
"""Settings of editors that start from a smaller size: Adam starts fresh, every one of the few steps
counts, and success has the weight of MALMEN's own training. With the final weight of the schedule
for one fact, KL would hold many facts back."""


def method_cells(
    variant: str = "", editors: Iterable[str] = (), more: Mapping[str, Any] | None = None,
    start: str = "", options: Mapping[str, Any] | None = None, config: str = "",
) -> dict[str, ConfigDict]:  # fmt: skip
    """Return the cells of these editors (default: all), with 0 steps if they need no training.

    Args:
      config: of their runs; default: the variant's of `BASES`.
      more: settings that override the cells' own.
      start: a cell whose editor they begin with.
      options: editor options that override the cells' own.
    """
    cells = {}
    for editor in editors or EDITORS:
        for suffix, (own, settings) in _CELLS.get(editor, {"": ({}, {})}).items():
            if editor in EDITORS:
                name, all_options = editor + suffix, own | dict(options or {})
                values = cell_settings(variant, editor, all_options, settings) | dict(more or {})
                values |= _training_settings(editor, all_options, values, bool(start))
                seeds = SEEDS if editor == "mend" and not variant else (0,)
                base = config or BASES[variant]
                cells[name] = cell(base, METHODS.get(name, name), values, seeds, start)
    return cells


def _training_settings(
    editor: str, options: Mapping[str, Any], values: Mapping[str, Any], continued: bool
) -> dict[str, Any]:
    """Return the settings of training that depend on the editor."""
    settings: dict[str, Any] = {}
    if "train.steps" in values and not continued:
        settings["train.steps"] = round(values["train.steps"] * _STEPS_SHARE.get(editor, 1))
    transform = make_editor(editor, options)
    if not transform.trainable:
        settings["train.steps"] = 0
    if transform.sequential_training is not None:  # a step is a sequence of at least two edits
        settings["train.edit_from_paraphrase"] = False
        settings["train.edits_per_step"] = max(2, values.get("train.edits_per_step", 4))
    return settings


def cell_settings(
    variant: str, editor: str, options: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all settings of a cell's runs; a smoke variant keeps the sizes of its base config."""
    budget = BUDGET
    if variant == "smoke":
        budget = {k: BUDGET[k] for k in ("eval.extra_data_sets", "eval.baselines")}
        settings = {k: v for k, v in settings.items() if k not in BUDGET}
        if "rank" in options and "n_hidden" in options:
            options = {**options, "rank": 32}
    return budget | {"editor.name": editor, "editor.options": dict(options)} | dict(settings)


def table4(variant: str = "") -> ConfigDict:
    """Return the grid of every editor, with one fact per edit, and of some under a scope."""
    cells = method_cells(variant) | scoped_cells(variant)
    return new_grid("Every editor, one fact an edit (the paper's Table 4)", cells)


def scoped_cells(
    variant: str = "", editors: Iterable[str] = SCOPED, more: Mapping[str, Any] | None = None
) -> dict[str, ConfigDict]:
    """Return cells of editors that are trained and evaluated under the shipped scope."""
    cells = {}
    settings = UNDER_THE_SCOPE | dict(more or {})
    for name, found in method_cells(variant, editors, settings).items():
        found.method, found.seeds = f"{found.method}, scoped", (0,)
        cells[f"{name}_scoped"] = found
    return cells


def table5(variant: str = "") -> ConfigDict:
    """Return the grid of edits with several facts, trained and evaluated at each size.

    Editors that are trained start from their cell of a smaller size (`_BY_SIZE`): their parameters
    have the same shapes, and the steps add up. Variant "sequential": sequential edits instead, up
    to five hundred.
    """
    if variant.endswith("sequential"):
        return _sequential_grid("smoke" if variant.startswith("smoke") else "")
    small = variant == "smoke"
    cells = {}
    for editor in BATCHED:
        sizes = (1, 5) if small else SIZES + ((MAX_SIZE,) if editor in LEAST_SQUARES else ())
        for n in sizes:
            more = batch_settings(n, small) | _TABLE5.get(editor, {})
            start = ""
            if n > 1 and editor in TRAINED:
                first = _BY_SIZE[n].start
                start = f"{editor}_{first}"
                more |= {} if small else _CONTINUED
                if editor in _SUMS:
                    more["editor.init_step_size_scale"] = round((first / n) ** 0.5, 4)
            one = method_cells(variant, [editor], more, start)[editor]
            cells[f"{editor}_{n}"] = with_one_seed(one)
    return new_grid("Many facts in one edit (the paper's Table 5)", cells)


def batch_settings(n: int, small: bool) -> dict[str, Any]:
    """Return the settings for n facts per edit: the test facts fill whole edits."""
    values: dict[str, Any] = {"data.edits_per_batch": n}
    if small:
        return values | {"train.edits_per_step": 2, "eval.edits_per_step": 2, "eval.edits": 10}
    if n == 1:  # as in Table 4, but for `_TABLE5`
        return values
    steps, _, edit_from_paraphrase = _BY_SIZE[n]
    return values | {
        "train.edits_per_step": 1, "train.edit_from_paraphrase": edit_from_paraphrase,
        "train.steps": steps,
        "train.val_every": steps, "train.checkpoint_every": max(1, steps // 4),
        "train.log_every": 1 if n > 5 else 10, "train.val_edits": round_up(20, n),
        "data.length_buckets": (), "eval.edits": round_up(200, n),
        "model.text_chunk": TEXT_CHUNK if n > TEXT_CHUNK else 0,
        "eval.edits_per_step": max(1, 10 // n),
    }  # fmt: skip


def with_one_seed(one: ConfigDict) -> ConfigDict:
    """Return the cell with seed 0 alone."""
    one.seeds = (0,)
    return one


COMBINED = {"eval.combine": "base", "eval.combine_ridge": 0.01}
"""Edits made on the base, combined by least squares (`core.combined_edits`)."""
IN_SEQUENCE: dict[str, tuple[str, dict[str, Any]]] = {
    "added": ("added on the base", {"eval.combine": "sum"}),
    "combined": ("combined", COMBINED),
    "kept": ("combined, ordinary keys kept", COMBINED | {"eval.combine_covariance": 30.0}),
    "current": (
        "combined, made on the edited model",
        COMBINED | {"eval.combine": "current", "eval.combine_limited": True},
    ),
    "lifelong": ("lifelong statistics", {"eval.lifelong_rows": 200}),
}
"""Ways to make a trained editor's edits in sequence, by the suffix of the cell; each begins with
the editor of the plain cell, whose edits are made on the edited model and added."""
A_HUNDRED = ("ultraedit", "memit", "rlsedit", "alphaedit")
"""Editors without training that also have a cell of a hundred facts a turn."""
TRUE_ANSWERS = ("mend_scoped", "malmen_kept", "ultraedit_hundred", "alphaedit_hundred")
"""Cells of sequences that are measured with true answers too, as most of the field's tables are."""
ORDERS = (1, 2)
"""Further orders of the facts, for the cell of scoped edits."""


def _measured_again(one: ConfigDict, name: str, how: str, setting: str) -> ConfigDict:
    """Return a cell with one more setting, which begins with the editor that the cell has."""
    again = ConfigDict(one)
    again.method, again.settings = f"{one.method}, {how}", (*one.settings, setting)
    if "train.steps=0" not in one.settings:  # it is trained there
        again.start, again.settings = name, (*again.settings, "train.steps=0")
    return again


def _sequential_grid(variant: str) -> ConfigDict:
    """Return the grid of sequential edits: the editors of Table 5, and those made for sequences.

    One fact a turn, and for `A_HUNDRED` also a hundred. CounterFact has subjects for 1,000:
    --config.settings="('data.name=counterfact',)".
    """
    lengths = (1, 3) if variant else (1, 10, 100, MAX_SIZE)
    more = {"eval.sequential": lengths, "eval.edits": 10}  # single edits are in Table 4
    cells = method_cells(variant, BATCHED, more)
    rledit = {k: v for k, v in _RLEDIT_SEQUENTIAL.items() if not (variant and k == "train.steps")}
    cells |= method_cells(variant, ["rledit"], more | rledit, options=dict(depth=10))
    searching = more | {"eval.sequential": lengths[:3]}  # a search takes seconds a fact
    cells |= method_cells(variant, MEMORIES, searching)
    cells = {name: with_one_seed(cells[name]) for name in SEQUENTIAL if name in cells}
    for editor in ("mend", "malmen"):
        for suffix, (how, settings) in IN_SEQUENCE.items() if editor in cells else ():
            one = method_cells(variant, [editor], more | settings | {"train.steps": 0}, editor)
            cells[f"{editor}_{suffix}"] = with_one_seed(one[editor])
            cells[f"{editor}_{suffix}"].method = f"{METHODS[editor]}, {how}"
    for name, one in scoped_cells(variant, ("mend",), more).items():
        cells[name] = one
        for order in ORDERS if not variant else ():
            again = _measured_again(one, name, f"order {order}", f"eval.sequential_order={order}")
            cells[f"{name}_order_{order}"] = again
    n = 3 if variant else 100
    hundred = more | {
        "data.edits_per_batch": n, "eval.edits_per_step": 1, "eval.edits": n,
        "eval.sequential": (1, 2) if variant else (1, 5), "data.length_buckets": (),
    }  # fmt: skip
    for editor in A_HUNDRED if not variant else A_HUNDRED[:1]:
        options = dict(warm_up=False) if editor == "ultraedit" else {}  # as its authors run it
        for name, one in method_cells(variant, [editor], hundred, options=options).items():
            if name == editor:
                one.method = f"{one.method}, 100 a turn"
                cells[f"{name}_hundred"] = with_one_seed(one)
    for name in TRUE_ANSWERS[:1] if variant else TRUE_ANSWERS:
        if name in cells:
            again = _measured_again(cells[name], name, "true answers", "data.true_targets=True")
            cells[f"{name}_true"] = again
    return new_grid("Edits that follow one another on one model", cells)


ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
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
"""The paper's Table 6: changed options of MEND.

MEND's step size suits normalised factors and the identity. Variants without these are tried with
another step size too, so that they do not fail because of the step size alone.
"""


def table6(variant: str = "") -> ConfigDict:
    """Return the grid of MEND without its parts, one at a time."""
    cells = {}
    for name, (method, options) in ABLATIONS.items():
        values = cell_settings(variant, "mend", _NET | options, {})
        cells[name] = cell(BASES[variant], method, values)
    return new_grid("MEND without its parts (the paper's Table 6)", cells)


def table9(variant: str = "") -> ConfigDict:
    """Return the grid of MEND on matrices of attention instead of those of the MLP."""
    roles_by_cell = {
        "mlp": ("MLP", ()),
        "attention": ("attention", ("attn/q", "attn/k", "attn/v", "attn/out")),
    }
    cells = {}
    for name, (method, roles) in roles_by_cell.items():
        values = cell_settings(variant, "mend", _NET, {"model.edit_roles": roles})
        cells[name] = cell(BASES[variant], method, values)
    return new_grid("Which matrices are edited (the paper's Table 9)", cells)


def table11(variant: str = "") -> ConfigDict:
    """Return the grid of MEND against look-up: a cache and in-context editing.

    The cache uses its threshold, half of it and double. To set a threshold, put
    `editor.options={'eps': 3.0}` in `cells.cache.settings`.
    """
    cells = {name: with_one_seed(one) for name, one in method_cells(variant, ["mend"]).items()}
    thresholds = {"cache": ("cache, e*", 1.0), "cache_half": ("cache, e*/2", 0.5),
                  "cache_double": ("cache, 2 e*", 2.0)}  # fmt: skip
    for name, (method, factor) in thresholds.items() if "cache" in EDITORS else ():
        options = {} if factor == 1.0 else dict(factor=factor)  # e* is the cell of Table 4
        values = cell_settings(variant, "cache", options, _TUNED) | {"train.steps": 0}
        cells[name] = cell(BASES[variant], method, values)
    cells |= method_cells(variant, ["in_context"])
    return new_grid("MEND against look-up (the paper's Table 11)", cells)
