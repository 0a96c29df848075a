"""python tests/support/config_scan.py [KIND ...]: every key of transformers' config classes.

Each key of each family gets other values. A key that changes the logits in transformers must change
ours alike, or be refused. Prints a line for each kind of model and each finding that is not `same`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from support.reference import torch_logits
from support.tiny import HF, random_sequences

from mend_jax import hub, models
from mend_jax.core.weight_edit import variables
from mend_jax.models.params import random_params, stack_trunk

SIZES = frozenset(  # they change shapes, and shapes are checked tensor by tensor
    "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "intermediate_size n_embd n_layer n_head n_inner d_model d_kv d_ff num_layers num_heads "
    "num_decoder_layers encoder_layers decoder_layers encoder_ffn_dim decoder_ffn_dim "
    "encoder_attention_heads decoder_attention_heads max_position_embeddings n_positions "
    "type_vocab_size relative_attention_num_buckets rotary_dim max_window_layers".split()
)
NOT_READ = frozenset(  # they describe files, training, generation or the program
    "architectures model_type transformers_version dtype torch_dtype use_cache return_dict "
    "output_attentions output_hidden_states id2label label2id problem_type task_specific_params "
    "bos_token_id eos_token_id pad_token_id sep_token_id tokenizer_class _name_or_path "
    "num_labels chunk_size_feed_forward initializer_range initializer_factor "
    "forced_eos_token_id forced_bos_token_id use_bidirectional_attention "
    "is_encoder_decoder decoder_start_token_id".split()
)
WORDS = ("relu", "gelu", "gelu_new", "silu")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of one value of one key.

    Attributes:
      outcome: `same` (it changes neither), `supported` (both alike), `refused` (by us), `unusable`
        (by transformers), or `WRONG`.
    """

    kind: str
    key: str
    value: Any
    outcome: str
    why: str = ""


def scan(kind: str) -> Iterator[Finding]:
    """Yield a finding for each other value of each key of a kind of model."""
    import transformers

    hf = HF[kind] | dict(eos_token_id=0, bos_token_id=0, pad_token_id=0)
    fields = transformers.AutoConfig.for_model(**hf).to_dict() | hf
    inputs = random_sequences(0, E=2, T=12, kind=models.model_kind(hf))
    inputs = jax.tree.map(lambda x: x[:, 0], inputs).inputs
    start = _Start(hf, inputs)
    for key, value in fields.items():
        if key in SIZES or key in NOT_READ:
            continue
        for other in _others(key, value):
            yield start.compare(kind, key, other)


class _Start:
    """The unchanged model, with which others are compared."""

    def __init__(self, hf: dict[str, Any], inputs: Any) -> None:
        self.hf, self.inputs = hf, inputs
        self.family = models.find_family(hf)
        self.config = models.parse_config(self.family, hf)
        self.ours = self._our_logits(self.config, self._flat(self.config))
        self.theirs, _ = self._their_logits(hf, self.config)
        np.testing.assert_allclose(self.ours, self.theirs, atol=1e-3, rtol=1e-3)

    def compare(self, kind: str, key: str, value: Any) -> Finding:
        hf = self.hf | {key: value}
        try:
            family = models.find_family(hf)
            config = models.parse_config(family, hf)
            ours = self.ours
            if config != self.config:
                ours = self._our_logits(config, self._flat(config))
        except Exception as e:
            return Finding(kind, key, value, "refused", str(e)[:80])
        try:
            theirs, missing = self._their_logits(hf, config)
        except Exception as e:
            return Finding(kind, key, value, "unusable", str(e)[:80].replace("\n", " "))
        if missing - set(self.family.tied):  # a checkpoint has tensors that we refuse by name
            return Finding(kind, key, value, "refused", f"tensors {sorted(missing)[:1]}")
        if ours.shape == theirs.shape and np.allclose(ours, theirs, atol=1e-3, rtol=1e-3):
            changed = not np.allclose(theirs, self.theirs, atol=1e-3, rtol=1e-3)
            return Finding(kind, key, value, "supported" if changed else "same")
        return Finding(kind, key, value, "WRONG", f"largest difference {_difference(ours, theirs)}")

    def _flat(self, config: Any) -> dict[str, np.ndarray]:
        return random_params(self.family.tensor_specs(config), 0, 0.1)

    def _our_logits(self, config: Any, flat: Any) -> np.ndarray:
        n_stacks = len(self.family.model_class.stack_sizes(config))
        module = self.family.model_class(config, 2 if n_stacks == 1 else (2,) * n_stacks)
        bound = variables(stack_trunk(flat, module.stacks), None)
        logits = np.asarray(jax.jit(module.apply)(bound, self.inputs))
        return logits[:, 0, 1:] if module.kind == "classifier" else logits

    def _their_logits(self, hf: dict[str, Any], config: Any) -> tuple[np.ndarray, set[str]]:
        import transformers

        loader = {
            "causal": transformers.AutoModelForCausalLM,
            "seq2seq": transformers.AutoModelForSeq2SeqLM,
            "classifier": transformers.AutoModelForSequenceClassification,
        }[self.family.model_class.kind]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            hub.save_hf(Path(folder), hf, self._flat(config), self.family.tensor_specs(config))
            model, report = loader.from_pretrained(
                folder, output_loading_info=True, attn_implementation="eager"
            )
        return torch_logits(model.eval(), self.inputs), set(report["missing_keys"])


def _difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    if ours.shape != theirs.shape:
        return f"of shapes {ours.shape} and {theirs.shape}"
    return f"{np.abs(ours - theirs).max():.2g}"


def _others(key: str, value: Any) -> list[Any]:
    """Return other values of the same type."""
    if isinstance(value, dict):
        return [{**value, k: other} for k, v in value.items() for other in _others(k, v)]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str) and value in WORDS or key.endswith(("activation", "act")):
        return [word for word in WORDS if word != value][:2]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [value * 2 + 0.1]
    if value is None:
        return [True, 2, 0.5]
    return []


def main(kinds: list[str]) -> int:
    logging.disable(logging.WARNING)
    wrong = 0
    for kind in kinds or [*HF]:
        found = list(scan(kind))
        counts = {o: sum(f.outcome == o for f in found) for o in sorted({f.outcome for f in found})}
        print(f"{kind}: {counts}", flush=True)
        for f in found:
            if f.outcome != "same":
                print(f"  {f.outcome:9} {f.key} = {f.value!r}  {f.why}", flush=True)
        wrong += counts.get("WRONG", 0)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
