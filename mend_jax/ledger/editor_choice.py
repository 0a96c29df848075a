"""Which editor makes the edits: the one shipped for the base, a run's, or one without training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from mend_jax.core.problem import make_problem
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.transform import with_strength
from mend_jax.data.sources.world_facts import passages
from mend_jax.data.sources.world_facts.facts import true_facts
from mend_jax.data.sources.world_facts.templates import TEMPLATES, fill_template
from mend_jax.editors import EditTransform, make_editor, untrained_editors
from mend_jax.errors import ConfigError, did_you_mean
from mend_jax.hub.input_formats import input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import stack_batches
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh
from mend_jax.training import pretrained
from mend_jax.training.trained_editor import Editor

Say = Callable[[str], None]


_TEXTS = 256  # that an editor is shown which has to see some first
_AT_ONCE = 16
_LENGTH = 32  # tokens of each


def choose_editor(
    model: LanguageModel,
    name: str = "",
    strength: float = 1.0,
    options: Mapping[str, Any] | None = None,
    say: Say = lambda text: None,
) -> Editor:
    """The editor of a name, ready to edit.

    Args:
      model: the base.
      name: "" for the shipped editor of this base, one of `untrained_editors()`, the folder of a
        run of `mend_jax.main`, or a file of `mend_jax.training.pretrained`.
      strength: what its edits are scaled by.
      options: of an untrained editor, in place of those that it declares.
      say: told of what takes long.

    Raises:
      ConfigError: no editor is shipped for this base (what else there is is named), an unknown
        name or option, a strength below 0.
      CheckpointError: a run or a file that is damaged or for another base.
    """
    if not 0 <= strength < float("inf"):
        raise ConfigError(f"strength {strength}: give a number of 0 or more, such as 0.8")
    if name in untrained_editors():
        editor = _untrained(model, name, options or {}, say)
    elif options:
        raise ConfigError(f"options {sorted(options)} are for editors without training: {offers()}")
    else:
        editor = _trained(model, name)
    scaled = with_strength(editor.transform, strength)
    return Editor(
        model, scaled, editor.params, editor.state, editor.append_eos, editor.name
    )  # fmt: skip


def offers() -> str:
    """The editors that need no training, in a sentence."""
    return "; ".join(
        f"{name} ({one.description})" for name, (_, one) in untrained_editors().items()
    )


def _trained(model: LanguageModel, name: str) -> Editor:
    if not name:
        if model.fingerprint in pretrained.names():
            return pretrained.load(model)
        raise ConfigError(
            f"no trained editor is shipped for {model.spec} ({model.fingerprint}). Name one "
            f"that needs no training, --editor NAME, of: {offers()}; or the folder of a run of "
            "`python -m mend_jax.main`"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return Editor.restore(path, model)
    if path.suffix == ".safetensors":
        return pretrained.read(path, model)
    near = did_you_mean(name, list(untrained_editors()))
    raise ConfigError(
        f"editor {name!r}{near} is neither a run's folder, nor a file of an editor, nor one of: "
        f"{offers()}"
    )


def _untrained(model: LanguageModel, name: str, options: Mapping[str, Any], say: Say) -> Editor:
    editor, declared = untrained_editors()[name]
    transform = make_editor(editor, {**declared.options, **options})
    params, state = transform.init(jax.random.key(0), model.weights)
    if transform.calibrate is not None:
        say(f"showing {_TEXTS} texts to {name}")
        state = _surveyed(model, transform, params, state)
    return Editor(model, transform, params, state, name=name)


def _surveyed(model: LanguageModel, transform: EditTransform, params: Any, state: Any) -> Any:
    """The state after ordinary texts, or true facts, whichever the editor asks for."""

    @jax.jit
    def see(params, state, base, texts):
        return transform.calibrate(
            params, state, make_problem(model.module, base, model.weights, texts)
        )

    texts = itertools.islice(_shown(model, transform.calibrate_on), _TEXTS)
    with use_mesh(mesh_of_arrays(model.params)):
        while len(batch := list(itertools.islice(texts, _AT_ONCE))) == _AT_ONCE:
            state = see(params, state, model.params, stack_batches(batch).reshape(_AT_ONCE, 1))
    return state


def _shown(model: LanguageModel, calibrate_on: str) -> Iterator[TokenBatch]:
    """Texts of few tokens: of passages that need no download, or true facts about the world."""
    form, length = input_format(model.module), min(_LENGTH, model.config.n_positions)
    if calibrate_on == "far":
        for text in passages.passages("reference")["train"]:
            yield form.text(model.tokenizer, text, length)
        return
    facts = true_facts()
    for fact in facts[:: max(1, len(facts) // (2 * _TEXTS))]:
        prompt = fill_template(TEMPLATES[fact.relation].training[0], fact.subject)
        if len(model.tokenizer.encode(f"{prompt} {fact.answer}")) < length:
            yield form.fact(model.tokenizer, prompt, fact.answer, length, length, append_eos=False)
