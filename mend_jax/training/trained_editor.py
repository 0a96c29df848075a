"""The trained editor as users hold it: facts in, an Edit out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mend_jax import hub
from mend_jax.core.chunking import round_up
from mend_jax.core.transform import EditTransform
from mend_jax.core.weight_edit import Edit, utc_timestamp
from mend_jax.data.facts import Fact, facts_from_pairs
from mend_jax.data.subject_positions import add_subject_positions
from mend_jax.errors import CheckpointError, ConfigError, DataError
from mend_jax.evaluation.scoring import make_edit
from mend_jax.hub.input_formats import CAUSAL, input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import stack_batches
from mend_jax.io.files import as_path
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh
from mend_jax.parallel.sharding import abstract_arrays, make_shardings
from mend_jax.training import assembly, checkpoints
from mend_jax.training.checkpoints import recovery
from mend_jax.training.run_folder import read_config

_BUCKET = 8  # texts are padded to a multiple of this many tokens, so few shapes are compiled


@dataclasses.dataclass(frozen=True, eq=False)
class Editor:
    """An editor with its learned parameters and the base that it was trained for.

    Attributes:
      model: the unedited base.
      transform: the pure editor.
      params, state: its learned parameters and statistics.
      append_eos: whether it was trained with the end-of-text token as part of a target.
      name: of the transform, as `make_editor` knows it.
    """

    model: LanguageModel
    transform: EditTransform
    params: Any
    state: Any
    append_eos: bool = False
    name: str = "editor"

    @staticmethod
    def restore(workdir: str | Path, model: LanguageModel | None = None) -> Editor:
        """Load a run folder's editor with its base, at the step that `train.keep_checkpoint` names.

        Args:
          workdir: what `python -m mend_jax.main --workdir` trained in, a folder or an address.
          model: the base if it is loaded already; by default the run's own is loaded. Where it lies
            on a mesh, the editor does too.

        Raises:
          CheckpointError: no finished checkpoint, a damaged one, or another base than it was
            trained for (both fingerprints are named).
        """
        workdir = as_path(workdir)
        config = read_config(workdir)
        transform = assembly.build_editor(config)
        manager = checkpoints.open_manager(workdir / "checkpoints", read_only=True)
        if manager.latest_step() is None:
            raise CheckpointError(f"{workdir}/checkpoints holds no step: let the run train on")
        last = config.train.keep_checkpoint == "last"
        step = None if last else recovery.best_step(manager)
        model = model or assembly.build_model(config)
        like = assembly.abstract_state(
            config, transform, assembly.build_optimizer(config), model.weights
        )
        like = abstract_arrays(
            like, make_shardings(mesh_of_arrays(model.params), like, transform.sharding_rules)
        )
        mine = assembly.base_identity(model)
        _, state, _ = recovery.newest_intact(manager, like, mine, first=step, read_only=True)
        return Editor(
            model, transform, state.params, state.editor_state, config.data.append_eos,
            config.editor.name,
        )  # fmt: skip

    @functools.cached_property
    def id(self) -> str:
        """What its edits are signed with: `name@` and 8 hex digits of all that it has learned.

        The name alone where it has learned nothing, as fine-tuning.
        """
        leaves, _ = jax.tree.flatten_with_path((self.params, self.state))
        if not leaves:
            return self.name
        flat = {jax.tree_util.keystr(path): jax.device_get(leaf) for path, leaf in leaves}
        return f"{self.name}@{hub.fingerprint(flat)[:8]}"

    def edit(self, facts: Sequence[Fact | tuple[str, str]]) -> Edit:
        """One edit that brings in all the facts together: one pass forward and back.

        Facts are edited into the base that this editor was trained for, whatever edit is in force
        elsewhere; compose edits to stack them.

        Args:
          facts: (prompt, target) pairs or `Fact`s, whose `subject` some editors make use of.

        Raises:
          DataError: no facts, an empty one, or one that does not fit the model's context.
          ConfigError: the editor changes no weight: it reads texts with the facts beside it.
        """
        if self.transform.predictor is not None:
            raise ConfigError(
                "this editor answers from the facts beside the base and has no weight edit to give"
            )
        facts = list(facts)
        checked = facts_from_pairs(
            (f.prompt, f.target) if isinstance(f, Fact) else f for f in facts
        )
        if not checked:
            raise DataError("no facts to edit: give at least one (prompt, target) pair")
        pairs = [(f.prompt, f.target) for f in checked]
        tokenizer, limit = self.model.tokenizer, self.model.config.n_positions
        eos = self.append_eos
        form = input_format(self.model.module)
        qa = form.fact
        try:
            whole = [qa(tokenizer, p, t, limit, limit, append_eos=eos) for p, t in pairs]
        except DataError as e:
            raise DataError(f"a fact does not fit the model's context of {limit}: {e}") from e
        read = [s.mask if s.source_mask is None else s.source_mask for s in whole]
        length = round_up(max(int(mask.sum()) for mask in read), _BUCKET)
        scored = round_up(max(int(s.score_mask.sum()) for s in whole), _BUCKET)
        seqs = stack_batches(
            [
                qa(tokenizer, p, t, min(length, limit), min(scored, limit), append_eos=eos)
                for p, t in pairs
            ]
        )
        if form is CAUSAL:
            about = [f.subject if isinstance(f, Fact) else "" for f in facts]
            prompts = {"edit": [prompt for prompt, _ in pairs]}
            seqs = add_subject_positions({"edit": seqs}, tokenizer, prompts, about)["edit"]
        with use_mesh(mesh_of_arrays(self.model.params)):
            edit = make_edit(
                self.transform, self.model.module, self.model.weights, self.params, self.state,
                self.model.params, stack_batches([seqs]),
            )  # fmt: skip
        return edit.at(0).replace(
            base=self.model.fingerprint, facts=tuple(pairs), editor=self.id, created=utc_timestamp()
        )
