"""The trained editor of a user: facts in, an Edit out."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mend_jax import hub
from mend_jax.core import scope_file
from mend_jax.core.bank import empty_bank
from mend_jax.core.chunking import few_sizes, round_up
from mend_jax.core.combined_edits import combine_edits, fact_keys
from mend_jax.core.edit_problem import make_problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.gated_bank import GatedBank, gate_bank
from mend_jax.core.scope import reading
from mend_jax.core.scope_file import LearnedScope
from mend_jax.core.scoped_edit import ScopedEdit
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit
from mend_jax.core.word_boundary import find_words
from mend_jax.data.facts import Fact, checked_facts
from mend_jax.data.subject_guess import guess_subject
from mend_jax.data.subject_positions import add_subject_positions, subject_token_index
from mend_jax.editors.scoped import ScopeGate, make_scoped_edits
from mend_jax.errors import CheckpointError, ConfigError, DataError, WeightsError
from mend_jax.hub.input_formats import CAUSAL, input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import TooLongError, stack_batches
from mend_jax.io.files import as_path
from mend_jax.io.timestamps import utc_timestamp
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh
from mend_jax.parallel.sharding import abstract_arrays, make_shardings
from mend_jax.training import assembly, checkpoints
from mend_jax.training.checkpoints import recovery
from mend_jax.training.run_folder import SCOPE_FILE, read_run_config

_LOG = logging.getLogger(__name__)
_EDITS_AT_ONCE = 16
BUCKET = 8  # texts are padded to a multiple of this many tokens, so that few shapes are compiled


@dataclasses.dataclass(frozen=True, eq=False)
class Editor:
    """An editor with its learned parameters and the base that it was trained for.

    Attributes:
      model: the unedited base.
      transform: the pure editor.
      params, state: its learned parameters and statistics.
      append_eos: whether the end-of-text token was part of the targets in training.
      name: the name of the transform in `make_editor`.
      scope: the learned scope of the base, with which edits are scoped by default; None: it has
        none.
      trained_facts: how many facts one edit had in training (`data.edits_per_batch`).
    """

    model: LanguageModel
    transform: EditTransform
    params: EditorParams
    state: EditorState
    append_eos: bool = False
    name: str = "editor"
    scope: LearnedScope | None = None
    trained_facts: int = 1

    @staticmethod
    def restore(
        workdir: str | Path, model: LanguageModel | None = None, mesh: Mesh | None = None
    ) -> Editor:
        """Load a run folder's editor with its base, at the step that `train.keep_checkpoint` names.

        Args:
          workdir: the `--workdir` of `python -m mend_jax.main`, a folder or an address.
          model: the base if it is loaded already, else the run's own is loaded, in its dtype. The
            editor is placed on the mesh of its base.
          mesh: the devices to place the run's own base on; None: one device.

        Raises:
          CheckpointError: no finished checkpoint, a damaged one, or another base than it was
            trained for (both fingerprints are named).
        """
        folder = as_path(workdir)
        config = read_run_config(folder)
        transform = assembly.build_editor(config)
        manager = checkpoints.open_manager(folder / "checkpoints", read_only=True)
        if manager.latest_step() is None:
            raise CheckpointError(f"{folder}/checkpoints has no step: resume the run's training")
        if model is not None and model.dtype != config.model.dtype:
            raise CheckpointError(
                f"{folder}: the editor was trained for its base in {config.model.dtype}, and the "
                f"model was loaded in {model.dtype}: load it with dtype={config.model.dtype!r}"
            )
        model = model or load_base(config, folder, mesh)
        tx = assembly.build_optimizer(config)
        like = assembly.abstract_state(config, transform, tx, model.weights)
        shardings = make_shardings(mesh_of_arrays(model.params), like, transform.sharding_rules)
        best = config.train.keep_checkpoint == "best"
        newest = recovery.newest_intact(
            manager, abstract_arrays(like, shardings), assembly.base_identity(model),
            first=recovery.best_step(manager) if best else None, read_only=True,
        )  # fmt: skip
        assert newest is not None  # there is a step
        _, state, _ = newest
        scope = folder / SCOPE_FILE
        return Editor(
            model, transform, state.params, state.editor_state, config.data.append_eos,
            config.editor.name, scope_file.load(scope) if scope.exists() else None,
            config.data.edits_per_batch,
        )  # fmt: skip

    @functools.cached_property
    def id(self) -> str:
        """The signature of its edits: `name@` and 8 hex digits of all that it has learned.

        An editor that has learned nothing, such as fine-tuning, has its name alone.
        """
        leaves, _ = jax.tree.flatten_with_path((self.params, self.state))
        if not leaves:
            return self.name
        flat = {jax.tree_util.keystr(path): jax.device_get(leaf) for path, leaf in leaves}
        return f"{self.name}@{hub.fingerprint(flat)[:8]}"

    @property
    def most_facts(self) -> int | None:
        """The most facts that one plain edit can insert together; None: any number.

        A trained editor has learned to step for `trained_facts` of them and oversteps for more; one
        without training solves or searches for all that it is given.
        """
        return self.trained_facts if self.transform.trainable else None

    @property
    def is_scoped(self) -> bool:
        """Whether its edits are scoped by default."""
        return self.scope is not None

    def edit(
        self, facts: Sequence[Fact | tuple[str, str]], plain: bool = False
    ) -> Edit | GatedBank:
        """Return the edits of facts, scoped where the base has a learned scope.

        The facts are edited into the base that this editor was trained for, whatever edit is
        applied elsewhere.

        Args:
          facts: (prompt, target) pairs or `Fact`s. Some editors use their `subject`, and scoped
            edits its names; where it is not given it is the only name in the prompt, if there is
            one (`guess_subject`).
          plain: change the weights for all texts, as without a scope.

        Returns:
          A bank of one scoped edit for each fact, or one plain edit; see `plain_edit`.

        Raises:
          DataError: no facts, an empty one, or one that does not fit the model's context.
          ConfigError: the editor changes no weight: it predicts with the facts beside the base.
        """
        if self.scope is None or plain:
            return self.plain_edit(facts)
        return self.empty_bank().insert(self.scoped_edits(facts))[0]

    def empty_bank(self, capacity: int = 16) -> GatedBank:
        """Return a bank without facts, for the scoped edits of this editor.

        Raises:
          ConfigError: the base has no learned scope.
        """
        scope = self._learned_scope().scope
        weights = {w.name: (w.d_in, w.d_out) for w in self.model.weights}
        empty = empty_bank(
            weights, scope.d_key, base=self.model.fingerprint, scope=scope.fingerprint(),
            capacity=capacity,
        )  # fmt: skip
        return gate_bank(empty, scope, self.model.tokenizer.token_texts)

    def _learned_scope(self) -> LearnedScope:
        if self.scope is None:
            raise ConfigError(
                f"no scope is learned for {self.model.spec}: learn one with "
                "`mend-jax learn-scope`, or make plain edits"
            )
        return self.scope

    def scoped_edits(self, facts: Sequence[Fact | tuple[str, str]]) -> list[ScopedEdit]:
        """Return a scoped edit of each fact; see `edit`.

        Raises:
          ConfigError: the base has no learned scope; and as `edit`.
          DataError: as `edit`.
        """
        learned = self._learned_scope()
        checked = self._checked(facts, scoped=True)
        pairs, subjects = _pairs(checked), [f.subject or guess_subject(f.prompt) for f in checked]
        names = [
            tuple(n for n in (s, *f.aliases) if n) for s, f in zip(subjects, checked, strict=True)
        ]
        gate, found = ScopeGate.of(learned, self.model.tokenizer.token_texts), []
        module = reading(self.model.module, learned.scope.site)
        with use_mesh(mesh_of_arrays(self.model.params)):
            for start in range(0, len(pairs), _EDITS_AT_ONCE):
                some = range(start, min(start + _EDITS_AT_ONCE, len(pairs)))
                filled = [some[i % len(some)] for i in range(few_sizes(len(some)))]
                texts = self._encode([pairs[i] for i in filled], [subjects[i] for i in filled])
                made = make_scoped_edits(
                    self.transform, module, self.model.weights, gate, self.params,
                    self.state, self.model.params, texts.reshape(-1, 1),
                )  # fmt: skip
                found += [made.at(i) for i in range(len(some))]
        common = dict(base=self.model.fingerprint, editor=self.id, created=utc_timestamp())
        fingerprint = learned.scope.fingerprint()
        return [
            dataclasses.replace(
                one, edit=dataclasses.replace(one.edit, facts=(pair,), **common),
                scope=fingerprint, names=own,
            )
            for one, pair, own in zip(found, pairs, names, strict=True)
        ]  # fmt: skip

    def plain_edit(self, facts: Sequence[Fact | tuple[str, str]]) -> Edit:
        """Return one edit that inserts all the facts, and changes the weights for all texts.

        Up to `most_facts` are inserted together, by one pass forward and back. More are edited in
        groups of so many, and the edits combined by least squares (`combine_edits`), as a ledger
        does; the log says so.

        Raises:
          DataError, ConfigError: as `edit`.
        """
        checked = self._checked(facts)
        most = self.most_facts or len(checked)
        groups = [checked[start : start + most] for start in range(0, len(checked), most)]
        edits = [self._edit_together(group) for group in groups]
        if len(edits) == 1:
            return edits[0]
        _LOG.warning(
            "%s was trained for %d fact(s) an edit: %d facts are edited in %d groups, and the "
            "edits combined by least squares", self.name, most, len(checked), len(edits),
        )  # fmt: skip
        return _combined(edits)

    def _edit_together(self, facts: Sequence[Fact]) -> Edit:
        """Return one edit of checked facts, all in one pass forward and back."""
        pairs = _pairs(facts)
        texts = stack_batches([self._encode(pairs, [fact.subject for fact in facts])])
        with use_mesh(mesh_of_arrays(self.model.params)):
            edit = _make_plain_edits(
                self.transform, self.model.module, self.model.weights, self.params, self.state,
                self.model.params, texts,
            )  # fmt: skip
        return dataclasses.replace(
            edit.at(0), base=self.model.fingerprint, facts=tuple(pairs), editor=self.id,
            created=utc_timestamp(),
        )  # fmt: skip

    def _checked(self, facts: Sequence[Fact | tuple[str, str]], scoped: bool = False) -> list[Fact]:
        """Return the facts without surrounding spaces; refuse what cannot be edited."""
        if self.transform.predictor is not None:
            raise ConfigError(
                "this editor answers from the facts beside the base and has no weight edit to give"
            )
        checked = checked_facts(facts)
        if not checked:
            raise DataError("no facts to edit: give at least one (prompt, target) pair")
        for fact in checked:
            self._refuse_control_tokens(fact)
            if scoped:
                _require_mention(fact)
        if self.transform.at_subject:
            return [self._with_subject(fact) for fact in checked]
        return checked

    def _refuse_control_tokens(self, fact: Fact) -> None:
        """Refuse marks of a chat that would be read as letters.

        Raises:
          DataError: a text has the name of a control token and is not in the base's chat format.
        """
        tokenizer = self.model.tokenizer
        for field, text in (("prompt", fact.prompt), ("target", fact.target)):
            found = tokenizer.find_control_tokens(text)
            if found and not tokenizer.is_chat(text):
                raise DataError(
                    f"the {field} {text[:60]!r} holds {found[0]!r}, the name of a control token, "
                    "and is not in the chat format of the base: write the whole chat up to where "
                    "the answer begins, as the chat template does, or leave the name out"
                )

    def _with_subject(self, fact: Fact) -> Fact:
        """Return the fact with a subject that its prompt holds, guessed where none is given.

        Raises:
          DataError: there is none; the message says why one is needed.
        """
        subject = fact.subject or guess_subject(fact.prompt)
        if subject_token_index(self.model.tokenizer, fact.prompt, subject) is not None:
            return dataclasses.replace(fact, subject=subject)
        problem = (
            f"the subject {subject!r} does not stand in the prompt {fact.prompt!r}"
            if subject
            else f"the fact has no subject, and no single name is in the prompt {fact.prompt!r}"
        )
        raise DataError(
            f"{problem}: {self.name} edits at the last token of the subject; give a `subject` as "
            "it stands in the prompt, or use another editor"
        )

    def check(
        self, facts: Sequence[Fact | tuple[str, str]], plain: bool = False
    ) -> list[Fact]:  # fmt: skip
        """Return the facts as `edit` reads them; computes nothing.

        Raises:
          DataError, ConfigError: as `edit`, for whichever of the facts.
        """
        checked = self._checked(facts, scoped=self.is_scoped and not plain)
        self._encode(_pairs(checked), [fact.subject for fact in checked])
        return checked

    def _encode(self, pairs: Sequence[tuple[str, str]], subjects: Sequence[str]) -> TokenBatch:
        """Return the tokens of facts [n, T], padded to a multiple of `BUCKET`."""
        tokenizer, limit = self.model.tokenizer, self.model.config.n_positions
        form = input_format(self.model.module)

        def encode(length: int, scored: int) -> list[TokenBatch]:
            return [
                form.fact(tokenizer, p, t, length, scored, append_eos=self.append_eos)
                for p, t in pairs
            ]

        try:
            unpadded = encode(limit, limit)
        except TooLongError as e:
            raise DataError(
                f"a fact does not fit the model's context of {limit}: {e.problem}; shorten it"
            ) from e
        masks = [s.mask if s.source_mask is None else s.source_mask for s in unpadded]
        length = round_up(max(int(mask.sum()) for mask in masks), BUCKET)
        scored = round_up(max(int(s.score_mask.sum()) for s in unpadded), BUCKET)
        texts = stack_batches(encode(min(length, limit), min(scored, limit)))
        if form is not CAUSAL:
            return texts
        prompts = {"edit": [prompt for prompt, _ in pairs]}
        return add_subject_positions({"edit": texts}, tokenizer, prompts, subjects)["edit"]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _make_plain_edits(
    editor: EditTransform, model: EditableModel, weights: Weights,
    params: EditorParams, state: EditorState, base: Params, corrections: TokenBatch,
) -> Edit:  # fmt: skip
    """Return the E edits of corrections [E, n] with their keys; the first three are static."""
    problem = make_problem(model, base, weights, corrections)
    edit, _ = editor.edit(params, state, problem, False)
    keys = fact_keys(problem)
    return dataclasses.replace(edit, keys={name: keys[name] for name in edit.deltas})


def _combined(edits: Sequence[Edit]) -> Edit:
    """Return the combined edits with the keys of all, so that it can be combined with others."""
    keys: dict[str, jax.Array] = {}
    for edit in edits:
        for name, own in (edit.keys or {}).items():
            keys[name] = jnp.concatenate([keys[name], own]) if name in keys else own
    return dataclasses.replace(combine_edits(edits), keys=keys)


def load_base(config: ConfigDict, folder: Path, mesh: Mesh | None = None) -> LanguageModel:
    """Load the base of a run from the place that it had in training, onto a mesh if one is given.

    Raises:
      WeightsError: it is not there; the message says how to give the base.
    """
    try:
        return assembly.build_model(config, mesh)
    except WeightsError as e:
        raise WeightsError(
            f"the base of the run {folder} is not where it was, model.spec = "
            f"{config.model.spec!r}: {e} If it was moved, or that place is relative to another "
            f"folder, load it yourself: Editor.restore({str(folder)!r}, "
            "model=load_model(ITS_PLACE, ...)) with the last_n_blocks, edit_roles and dtype of the "
            "run"
        ) from e


def _require_mention(fact: Fact) -> None:
    """Refuse a fact whose subject is not named in its prompt: its scope would never match.

    Raises:
      DataError: neither the subject nor an alias stands there.
    """
    names = (fact.subject, *fact.aliases)
    if fact.subject and not any(find_words(fact.prompt, name) for name in names):
        raise DataError(
            f"the subject {fact.subject!r} does not stand in the prompt {fact.prompt!r}: a scoped "
            "edit applies to texts that name it; write it there, add the name that does stand "
            "there to `aliases`, or leave `subject` out"
        )


def _pairs(facts: Sequence[Fact]) -> list[tuple[str, str]]:
    return [(fact.prompt, fact.target) for fact in facts]
