"""Choose the editor: the one shipped for the base, a training run's, or one without training."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mend_jax.core.edit_problem import make_problem
from mend_jax.core.editor_protocol import with_strength
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.sources.world_facts import passages
from mend_jax.data.sources.world_facts.facts import true_facts
from mend_jax.data.sources.world_facts.templates import TEMPLATES, fill_template
from mend_jax.editors import EditTransform, make_editor, untrained_editors
from mend_jax.errors import ConfigError, did_you_mean
from mend_jax.hub import read_model_config, resolve
from mend_jax.hub.input_formats import input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import stack_batches
from mend_jax.models.family import find_family, parse_config
from mend_jax.models.params import Params
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh
from mend_jax.training import pretrained, pretrained_scopes
from mend_jax.training.restored_editor import Editor
from mend_jax.training.run_folder import read_run_config

ReportProgress = Callable[[str], None]

BLOCKS = 3
"""How many of the last blocks may be edited, where neither user nor editor asks for more."""
_CALIBRATION_TEXTS = 256
_BATCH_SIZE = 16
_TEXT_TOKENS = 32


def choose_editor(
    model: LanguageModel,
    name: str | os.PathLike[str] = "",
    strength: float = 1.0,
    options: Mapping[str, Any] | None = None,
    report_progress: ReportProgress = lambda text: None,
) -> Editor:
    """Return an editor that is ready to edit.

    Args:
      model: the base.
      name: "" for the editor shipped for this base, a name in `untrained_editors()`, the folder of
        a run of `mend_jax.main`, or a file of `mend_jax.training.pretrained`.
        An editor without a scope of its own gets the one that is shipped for the base, if any.
      strength: the scale of its edits.
      options: of an editor without training; they override the options that it declares.
      report_progress: receives a sentence before slow work.

    Raises:
      ConfigError: no editor is shipped for this base (the message lists alternatives), an unknown
        name or option, or a negative strength.
      CheckpointError: a run or a file that is damaged or for another base.
    """
    name = os.fspath(name)
    if not 0 <= strength < float("inf"):
        raise ConfigError(f"strength {strength}: give a number of 0 or more, such as 0.8")
    if name in untrained_editors():
        editor = _untrained(model, name, options or {}, report_progress)
    elif options:
        raise ConfigError(
            f"options {sorted(options)} are only for editors without training: "
            f"{describe_untrained()}"
        )
    else:
        editor = _trained(model, name)
    return dataclasses.replace(
        editor,
        transform=with_strength(editor.transform, strength),
        scope=editor.scope or pretrained_scopes.find(model),
    )


class BaseSettings(NamedTuple):
    """How a base is loaded so that an editor can edit it; see `load_model`."""

    dtype: str = "float32"
    last_n_blocks: int = BLOCKS
    edit_roles: tuple[str, ...] = ()


def settings_for(spec: str, name: str) -> BaseSettings:
    """Return how a base is to be loaded for an editor.

    A run's editor needs the dtype and the edited weights of its run; an editor without training
    needs the blocks that it edits.

    Args:
      spec: of the base, see `load_model`.
      name: of the editor, as for `choose_editor`.

    Raises:
      CheckpointError: a folder that holds no run.
    """
    if name and name not in untrained_editors() and (run := Path(name).expanduser()).is_dir():
        c = read_run_config(run).model
        return BaseSettings(c.dtype, c.last_n_blocks, tuple(c.edit_roles))
    _, declared = untrained_editors().get(name, (name, None))
    if declared is None or declared.edited_top is None:
        return BaseSettings()
    config = read_model_config(resolve(spec))
    family = find_family(config)
    sizes = family.model_class.stack_sizes(parse_config(family, config))
    return BaseSettings(last_n_blocks=declared.edited_top(min(sizes.values())))


def describe_untrained() -> str:
    """Return a list of the editors that need no training, as text."""
    declared = untrained_editors().items()
    return "; ".join(f"{name} ({editor.description})" for name, (_, editor) in declared)


def _trained(model: LanguageModel, name: str) -> Editor:
    if not name:
        if model.fingerprint in pretrained.names():
            return pretrained.load(model)
        hint = model.dtype_hint([*pretrained.names()])
        hint = f"; {hint}; or" if hint else ":"
        raise ConfigError(
            f"no trained editor is shipped for {model.spec} ({model.fingerprint}){hint} name one "
            f"that needs no training with --editor NAME, of: {describe_untrained()}; or give the "
            "folder of a run of `python -m mend_jax.main`"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return Editor.restore(path, model)
    if path.suffix == ".safetensors":
        return pretrained.read(path, model)
    hint = did_you_mean(name, list(untrained_editors()))
    raise ConfigError(
        f"editor {name!r}{hint} is neither a run's folder, nor an editor's file, nor one of: "
        f"{describe_untrained()}"
    )


def _untrained(
    model: LanguageModel, name: str, options: Mapping[str, Any], report_progress: ReportProgress
) -> Editor:
    editor, declared = untrained_editors()[name]
    transform = make_editor(editor, {**declared.options, **options})
    params, state = transform.init(jax.random.key(0), model.weights)
    if transform.calibrate is not None:
        report_progress(f"calibrating {name} on {_CALIBRATION_TEXTS} texts")
        state = _calibrated(model, transform, params, state)
    return Editor(model, transform, params, state, name=name)


def _calibrated(model: LanguageModel, transform: EditTransform, params: Any, state: Any) -> Any:
    """Return the state after plain texts or true facts, whichever the editor calibrates on."""
    calibrate = transform.calibrate
    assert calibrate is not None

    @jax.jit
    def observe(params: Any, state: Any, base: Params, texts: TokenBatch) -> Any:
        return calibrate(params, state, make_problem(model.module, base, model.weights, texts))

    texts = itertools.islice(_calibration_texts(model, transform.calibrate_on), _CALIBRATION_TEXTS)
    with use_mesh(mesh_of_arrays(model.params)):
        while len(batch := list(itertools.islice(texts, _BATCH_SIZE))) == _BATCH_SIZE:
            stacked = stack_batches(batch).reshape(_BATCH_SIZE, 1)
            state = observe(params, state, model.params, stacked)
    finish = transform.finish_calibration
    return state if finish is None else jax.jit(finish)(params, state)


def _calibration_texts(model: LanguageModel, calibrate_on: str) -> Iterator[TokenBatch]:
    """Yield short texts: passages that need no download, or true facts about the world."""
    form, length = input_format(model.module), min(_TEXT_TOKENS, model.config.n_positions)
    if calibrate_on == "far":
        for text in passages.passages("reference")["train"]:
            yield form.text(model.tokenizer, text, length)
        return
    facts = true_facts()
    for fact in facts[:: max(1, len(facts) // (2 * _CALIBRATION_TEXTS))]:
        prompt = fill_template(TEMPLATES[fact.relation].training[0], fact.subject)
        if len(model.tokenizer.encode(f"{prompt} {fact.answer}")) < length:
            yield form.fact(model.tokenizer, prompt, fact.answer, length, length, append_eos=False)
