"""Every config key, declared once: default, range, meaning, old names, and values of older runs.

The default config, the checks, the migration of stored configs and docs/config.md
(`python -m mend_jax.training.config_keys > docs/config.md`) are derived from `KEYS`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mend_jax.io.command import command
from mend_jax.parallel.processor import PRODUCTS

TRUNK_CACHES = ("", "device", "host", "disk")


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key; values must have the type of the default.

    Attributes:
      name: dotted.
      default: the paper's value where the paper gives one.
      doc: what the value means, in one line.
      least: the smallest value.
      above: a bound that the value must exceed.
      most: the largest value.
      choices: the only values, if not empty.
      old_names: dotted names of earlier versions.
      absent: the behaviour of runs whose config lacks the key, because it was added later; None:
        every config has it.
      may_differ: whether a run may be resumed with another value.
    """

    name: str
    default: Any
    doc: str
    _: dataclasses.KW_ONLY
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    old_names: tuple[str, ...] = ()
    absent: Any = None
    may_differ: bool = False

    def problem(self, value: Any) -> str:
        """Return what is wrong with a value, or ""."""
        kind = type(self.default)
        if type(value) is not kind:
            return f"{self.name} is {value!r}, a {kind.__name__} is needed"
        if self.choices and value not in self.choices:
            return f"{self.name} is {value!r}, one of {list(self.choices)} is needed"
        if self.above is not None and not value > self.above:
            return f"{self.name} is {value}, more than {self.above:g} is needed"
        if self.least is not None and not value >= self.least:
            return f"{self.name} is {value}, at least {self.least:g} is needed"
        if self.most is not None and not value <= self.most:
            return f"{self.name} is {value}, at most {self.most:g} is allowed"
        return ""

    def range(self) -> str:
        """Return the allowed values in words."""
        if self.choices:
            return " or ".join(f'"{choice}"' for choice in self.choices)
        bounds = {"at least": self.least, "more than": self.above, "at most": self.most}
        limits = ", ".join(f"{how} {bound:g}" for how, bound in bounds.items() if bound is not None)
        return f"{type(self.default).__name__}, {limits}".removesuffix(", ")


@dataclasses.dataclass(frozen=True)
class OpenGroup:
    """A group of keys that the editors check."""

    name: str
    default: Mapping[str, Any]
    doc: str


KEYS = (
    Key("job", "edit", "kind of run: train and evaluate an editor", choices=("edit",)),
    Key("seed", 0, "seed of the editor's initial parameters and of the order of the data", least=0),
    Key("model.spec", "", "base model: pypi:NAME==VERSION, a folder, a hub id, a .gguf file"),
    Key("model.last_n_blocks", 3, "number of blocks edited, the last of every stack", least=1),
    Key("model.edit_roles", (), "edited matmuls of a block; (): those of the family's MLP"),
    Key("model.dtype", "float32", "dtype of the base's weights and activations"),
    Key("model.trunk_products", "float32",
        "how the blocks below the edited ones multiply: bfloat16 has float32 sums; auto: bfloat16 "
        "where the processor has units for it (AMX), which are two to four times as fast",
        choices=PRODUCTS, absent="float32", may_differ=True),
    Key("model.remat", False, "recompute activations in the backward pass, to save memory"),
    Key("model.text_chunk", 0, "texts of an edit processed at once; 0: all. For many facts an edit",
        least=0, absent=0),
    Key("model.logits_chunk", 0, "positions of a text whose logits exist at once; 0: all",
        least=0, absent=0, old_names=("model.head_chunk",)),
    Key("data.name", "world_facts", "data set, see docs/data.md"),
    Key("data.dir", "", 'folder of raw data, for data sets that need some; "": MEND_DATA_DIR',
        may_differ=True),
    Key("data.far_source", "",
        'source of unrelated texts, such as "wikitext"; "": the data set\'s own',
        old_names=("data.far",)),
    Key("data.more_train", (),
        "more data sets whose training rows are added; where they have no unrelated texts, those "
        "of the other rows",
        absent=()),
    Key("data.true_targets", False,
        "whether edits insert the true answers, where they are known, in place of new ones",
        absent=False),
    Key("data.template", "{}", "text around each question, with one {}"),
    Key("data.train_edits", 0, "training rows to use; 0: all", least=0),
    Key("data.edits_per_batch", 1, "facts that one edit inserts together", least=1),
    Key("data.max_len", 32, "longest prompt with its target, in tokens", least=2),
    Key("data.max_target", 10, "longest target, in tokens", least=1),
    Key("data.append_eos", True, "whether the end-of-text token is part of the target"),
    Key("data.far_len", 64, "length of a plain-text passage, in tokens", least=2),
    Key("data.length_buckets", (), "shorter lengths for which the training step is also compiled",
        old_names=("data.pack",)),
    Key("editor.name", "mend", "editor, see docs/editors.md"),
    Key("editor.init_from", "",
        "folder of a run whose trained editor is the starting point; `shipped` is the editor that "
        "comes with the package",
        absent="", old_names=("editor.start",)),
    Key("editor.init_step_size_scale", 1.0,
        "factor on the step sizes learned there, for edits of more facts", above=0.0, absent=1.0,
        old_names=("editor.start_scale",)),
    Key("editor.strength", 1.0, "scale of edits after training: less trades success for locality",
        least=0.0),
    Key("scope.learn", False,
        "whether a scope is learned first, and the editor trained and evaluated under its gate",
        absent=False),
    Key("scope.file", "",
        "a scope learned earlier for this base, in place of learning one; `shipped` is the one "
        "that comes with the package",
        absent=""),
    Key("scope.data_sets", (), "more data sets that the scope is learned from", absent=()),
    Key("scope.facts", 1800, "facts of each data set that the scope is learned from", least=2,
        absent=1800),
    Key("scope.wordings", 4, "wordings of each fact", least=2, absent=4),
    Key("scope.steps", 900,
        "training steps of each of the scope's projections; 0: the states themselves are the keys",
        least=0, absent=900),
    Key("scope.validation_facts", 200, "facts of each data set that choose the thresholds",
        least=2, absent=200),
    Key("scope.plain_in_training", True,
        "whether half of the edits of a step apply to all texts, so that plain edits stay usable",
        absent=True),
    Key("scope.false_rate", 0.01, "share of texts out of scope that may match", least=0.0, most=1.0,
        absent=0.01),
    Key("scope.question_rate", 0.1,
        "share of other questions about the same subject that may match: less keeps more of them, "
        "and misses more paraphrases",
        least=0.0, most=1.0, absent=0.1),
    Key("train.steps", 500_000, "training steps", least=0),
    Key("train.edits_per_step", 1, "independent edits a step, each of one row", least=1),
    Key("train.edit_from_paraphrase", False,
        "whether each row also edits from its paraphrase: twice the edits a step",
        old_names=("train.both_ways",)),
    Key("train.far_scored_tokens", 64, "scored positions of a plain-text passage in training",
        least=1, old_names=("train.far_scored",)),
    Key("train.accumulate", 10, "steps whose gradients are averaged for one update", least=1),
    Key("train.lr", 1e-6, "learning rate of the editor's networks", above=0.0),
    Key("train.step_size_lr", 1e-4, "learning rate of the learned step sizes, or their logarithms",
        above=0.0, old_names=("train.layer_lr_lr",)),
    Key("train.clip", 100.0, "largest global gradient norm", above=0.0),
    Key("train.warmup", 0, "updates over which the learning rates rise from 0", least=0),
    Key("train.decay", False, "whether the learning rates fall to a tenth along a cosine"),
    Key("train.c_edit_start", 0.1, "weight of edit success at the first step", above=0.0),
    Key("train.c_edit", 0.1, "weight of edit success at the last step", above=0.0),
    Key("train.c_loc", 1.0, "weight of locality", least=0.0),
    Key("train.c_after", 0.0,
        "weight of the KL after the answer, where the edited model should go on as the base; only "
        "of a causal model with near texts, without data.append_eos and with plain edits",
        least=0.0, absent=0.0),
    Key("train.c_chat", 0.0,
        "weight, within that of edit success, of the target as the answer to the paraphrase in a "
        "chat; of a chat model alone",
        least=0.0, absent=0.0),
    Key("train.c_hops", 0.0,
        "weight, within that of edit success, of the answers to questions that follow from the "
        "edit (PropMEND); of data with such questions",
        least=0.0, absent=0.0),
    Key("train.near_share", 0.5, "share of the near texts in the locality KL; far texts: the rest",
        least=0.0, most=1.0),
    Key("train.calibration_texts", 512,
        "texts for editors that gather statistics of ordinary texts first", least=1,
        old_names=("train.survey_texts",)),
    Key("train.log_every", 100, "steps between lines of metrics.jsonl and speed.jsonl", least=1),
    Key("train.profile_steps", (),
        "first and last step of a profile, which goes to profile/ in the run's folder; the flag "
        "--profile=START:STOP sets it", absent=(), may_differ=True),
    Key("train.val_every", 5000, "steps between validations", least=1),
    Key("train.val_edits", 500, "edits of a validation", least=1),
    Key("train.checkpoint_every", 5000, "steps between checkpoints", least=1),
    Key("train.patience", 20_000,
        "steps without a better validation loss that end training; 0: no early stopping", least=0),
    Key("train.max_non_finite_steps", 3,
        "consecutive steps without a finite loss and gradient that end training", least=1,
        absent=3, old_names=("train.skip_non_finite",)),
    Key("train.trunk_cache", "", "where trunk states are kept for later epochs",
        choices=TRUNK_CACHES, absent=""),
    Key("train.trunk_cache_gib", 4.0, "largest size of the trunk cache, in GiB", above=0.0,
        absent=4.0),
    Key("train.keep_checkpoint", "best",
        "the trained editor: the best by validation loss, or the last", choices=("best", "last"),
        old_names=("train.keep",)),
    Key("train.doctor", True, "whether the run is checked first, see docs/reliability.md",
        absent=False, may_differ=True),
    Key("eval.edits", 500, "test edits", least=1),
    Key("eval.extra_data_sets", (),
        "more data sets, whose test edits of subjects unknown to training are evaluated",
        old_names=("eval.also",)),
    Key("eval.edits_per_step", 8, "edits evaluated at once", least=1),
    Key("eval.sequential", (),
        "lengths of a sequence of edits on one model at which it is scored, such as (1, 10, 100)",
        absent=()),
    Key("eval.sequential_order", 0, "seed of the order of the facts of a sequence", least=0,
        absent=0),
    Key("eval.lifelong_rows", 0,
        "rows of tokens that an editor's statistics remember in a sequence of edits; 0: they stay "
        "as trained",
        least=0, absent=0),
    Key("eval.combine", "",
        'how the edits of a sequence are combined; "": each is made on the model as edited so far, '
        "and added; sum: made on the base, and added; base: made on the base, and solved together "
        "by least squares; current: made on the model as edited so far, and solved together",
        choices=("", "sum", "base", "current"), absent=""),
    Key("eval.combine_ridge", 0.01, "ridge of that solve, in units of the mean |k|^2 of keys",
        above=0.0, absent=0.01),
    Key("eval.combine_rows", "all",
        "tokens of a correction whose inputs that solve takes as its keys",
        choices=("all", "answer"), absent="all"),
    Key("eval.combine_covariance", 0.0,
        "number of ordinary keys, of plain texts, whose outputs that solve keeps", least=0.0,
        absent=0.0),
    Key("eval.combine_limited", False,
        "whether no change that an edit on the edited model requests is longer than on the base",
        absent=False),
    Key("eval.max_new_tokens", 12, "tokens generated after a prompt", least=1),
    Key("eval.hard_neighbours", 8,
        "neighbours an edit in its own wording, from data sets with relations or templates; 0: "
        "neither these nor other hard texts are scored", least=0, absent=0, may_differ=True),
    Key("eval.hard_edits", 200, "test edits whose hard texts are scored; 0: all", least=0,
        absent=200, may_differ=True),
    Key("eval.continuation_tokens", 24,
        "tokens after a prompt in which repetition and natural stops are counted; 0: not counted",
        least=0, absent=0, may_differ=True),
    Key("eval.references", "",
        "a file of texts of which new answers are true (docs/data.md), for the metric of reference "
        "consistency", absent="", may_differ=True),
    Key("eval.examples", 10, "examples in the report", least=0),
    Key("eval.ability_edits", 0,
        "edits under which general ability is measured (needs raw data); 0: not measured", least=0),
    Key("eval.sequential_ability", False,
        "whether general ability is measured during a sequence too (needs raw data)",
        absent=False),
    Key("eval.ability_texts", 32, "passages for perplexity", least=1),
    Key("eval.ability_facts", 64, "facts for recall, first those that the base recalls", least=1),
    Key("eval.ability_choices", 0,
        "questions with several options of each set that is there (ARC, OpenBookQA, PIQA, "
        "HellaSwag), for general ability; 0: none",
        least=0, absent=0),
    Key("eval.ability_pool", 1024, "facts among which those are chosen", least=1),
    Key("mesh.data", 0, "devices along the data axis; -1: all that are left; 0: chosen for the "
        "machine", least=-1),
    Key("mesh.fsdp", 0, "devices along the fsdp axis; 0: chosen for the machine", least=0),
    Key("mesh.tensor", 0, "devices along the tensor axis; 0: chosen for the machine", least=0),
)  # fmt: skip

OPEN_GROUPS = (
    OpenGroup(
        "editor.options",
        dict(rank=1920, n_hidden=1, shared=True, norm=True, sides="combined", init="id",
             v_init="normal", step_size=1e-4, log_step_size=False, compat="paper"),
        "options of `editor.name`, see docs/editors.md",
    ),
    OpenGroup(
        "eval.baselines",
        dict(fine_tune=dict(lr=1e-2, max_steps=100, edits=40, edits_per_step=8)),
        "editors without training to compare with, by name, each with its options, `edits` (test "
        "edits; 0: all), `edits_per_step`, `sequential`, and `editor` where the name is another",
    ),
)  # fmt: skip

RENAMED_OPTIONS = {
    "layer_lr": "step_size", "log_layer_lr": "log_step_size",
    "inner_lr": "step_size", "log_inner_lr": "log_step_size",
}  # fmt: skip
"""Old -> current names of editor options, in `editor.options` and `eval.baselines.NAME`."""

RENAMED_KEYS = {old: key.name for key in KEYS for old in key.old_names}
ADDED_KEYS = {key.name: key.absent for key in KEYS if key.absent is not None}


def default_config(
    keys: Sequence[Key] = KEYS, groups: Sequence[OpenGroup] = OPEN_GROUPS
) -> ConfigDict:
    """Return a new config in which every key has its default."""
    config = ConfigDict()
    defaults = {key.name: key.default for key in keys}
    defaults |= {group.name: ConfigDict(dict(group.default)) for group in groups}
    for name, value in defaults.items():
        *path, last = name.split(".")
        node = config
        for part in path:
            if part not in node:
                node[part] = ConfigDict()
            node = node[part]
        node[last] = value
    return config


def key_value(config: Mapping[str, Any] | ConfigDict, name: str) -> Any:
    """Return the value of a dotted key."""
    node: Any = config
    for part in name.split("."):
        node = node[part]
    return node


def current_key(name: str) -> str:
    """Return the current name of a dotted key, given its current or an old name."""
    *group, option = name.split(".")
    if group == ["editor", "options"] or (group[:2] == ["eval", "baselines"] and len(group) == 3):
        return ".".join([*group, RENAMED_OPTIONS.get(option, option)])
    return RENAMED_KEYS.get(name, name)


def with_added_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config of an editing run (JSON) under current names, with keys added since.

    Groups that it lacks stay absent, except for new ones: all of whose keys were added since.
    """
    current = with_current_names(config)
    new = {key.name.split(".")[0] for key in KEYS} - {
        key.name.split(".")[0] for key in KEYS if key.absent is None
    }
    for name, value in ADDED_KEYS.items():
        group, key = name.split(".")
        if group in new and "train" in current:  # of a whole config
            current.setdefault(group, {})
        if isinstance(current.get(group), dict):
            current[group].setdefault(key, list(value) if isinstance(value, tuple) else value)
    return current


def with_current_names(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config (JSON) under current names; `prefix`: of the group that it is part of."""
    return {
        current_key(f"{prefix}{name}").removeprefix(prefix): with_current_names(
            value, f"{prefix}{name}."
        )
        if isinstance(value, Mapping)
        else value
        for name, value in config.items()
    }


def markdown() -> str:
    """Return docs/config.md: a table of all keys by group."""
    lines = [
        "# Config keys", "",
        "Generated by `python -m mend_jax.training.config_keys > docs/config.md`. Defaults are the",
        "paper's where it gives a value; a file in `configs/` states what differs. Set any key by",
        "`--config.KEY=VALUE`. Old names are still accepted, and read from stored configs.",
    ]  # fmt: skip
    for group, keys in _by_group():
        lines += ["", f"## {group}", "", "| key | default | values | meaning |"]
        lines += ["| - | - | - | - |"]
        for key in keys:
            old = "".join(f" (was `{name}`)" for name in key.old_names)
            cells = (f"`{key.name}`{old}", f"`{key.default!r}`", key.range(), key.doc)
            lines.append(f"| {' | '.join(cells)} |")
        for open_group in OPEN_GROUPS:
            if open_group.name.startswith(f"{group}."):
                default = ", ".join(f"{k}={v!r}" for k, v in open_group.default.items())
                lines.append(
                    f"| `{open_group.name}` | `{default}` | group of options | {open_group.doc} |"
                )
    return "\n".join(lines) + "\n"


def _by_group() -> Iterator[tuple[str, list[Key]]]:
    groups = dict.fromkeys(key.name.rpartition(".")[0] or "general" for key in KEYS)
    for group in groups:
        yield group, [key for key in KEYS if (key.name.rpartition(".")[0] or "general") == group]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print docs/config.md."""
    argparse.ArgumentParser(description="Print every config key as Markdown.").parse_args(argv)
    print(markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
