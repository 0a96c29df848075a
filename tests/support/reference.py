"""The same small model here and in torch transformers, and texts for both."""

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from support.tiny import HF, random_sequences

from mend_jax import hub, models
from mend_jax.models.generation import generate
from mend_jax.models.params import random_params, stack_trunk


class Twin:
    """A random model, exported and opened by transformers.

    Attributes:
      family, config, specs, flat: ours.
      torch: the transformers model, in evaluation mode.
      folder: the exported checkpoint.
    """

    def __init__(self, kind):
        torch = pytest.importorskip("torch")
        import transformers

        torch.set_num_threads(1)
        self.hf = HF[kind] | dict(eos_token_id=0, bos_token_id=0, pad_token_id=0)
        self.family = models.find_family(self.hf)
        self.config = models.parse_config(self.family, self.hf)
        self.specs = self.family.tensor_specs(self.config)
        self.flat = random_params(self.specs, 0, 0.2)
        if self.hf["model_type"] == "t5":
            _scale_queries(self.flat, self.config.head_dim**-0.5)
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name) / "ours"
        loader = {
            "causal": transformers.AutoModelForCausalLM,
            "seq2seq": transformers.AutoModelForSeq2SeqLM,
            "classifier": transformers.AutoModelForSequenceClassification,
        }[self.family.model_class.kind]
        hub.save_hf(self.folder, self.hf, self.flat, self.specs)
        self.torch, report = loader.from_pretrained(
            self.folder, output_loading_info=True, attn_implementation="eager"
        )
        problems = {k: v for k, v in report.items() if v and k != "missing_keys"}
        assert not problems, problems
        missing = set(report["missing_keys"]) - set(self.family.tied)
        assert not missing, missing
        self.torch.eval()

    def ours(self, n_top=2, **options):
        """(module, nested params); n_top as for a model of one stack."""
        n_stacks = len(self.family.model_class.stack_sizes(self.config))
        tops = n_top if n_stacks == 1 else (n_top,) * n_stacks
        module = self.family.model_class(self.config, tops, **options)
        return module, stack_trunk(self.flat, module.stacks)

    def logits(self, inputs):
        """Logits of transformers [B, T, V]; a classifier's [B, 1]."""
        return torch_logits(self.torch, inputs)


def torch_logits(model, inputs):
    """Return logits of a transformers model [B, T, V]; for a classifier [B, 1]."""
    import torch

    def tensor(array):
        return torch.tensor(np.asarray(array)).long()

    if inputs.source is None:
        arguments = dict(
            input_ids=tensor(inputs.tokens), attention_mask=tensor(inputs.mask)
        )  # fmt: skip
    else:
        arguments = dict(
            input_ids=tensor(inputs.source), attention_mask=tensor(inputs.source_mask),
            decoder_input_ids=tensor(inputs.tokens),
            decoder_attention_mask=tensor(inputs.mask),
        )  # fmt: skip
    with torch.no_grad():
        return model(**arguments).logits.numpy()


def _scale_queries(flat, factor):
    """Scale queries down to T5's initial size (Raffel et al. 2020): it does not scale its scores.

    Otherwise the softmax of a random model is nearly one-hot, and rounding the weights to bfloat16
    moves float32 logits by 11% of their rms already.
    """
    for path in flat:
        if path.endswith(("/attn/q/kernel", "/cross/q/kernel")):
            flat[path] = flat[path] * np.float32(factor)


@functools.cache
def twin(kind):
    """Return one twin per process and kind: opening it costs more than the tests that use it."""
    return Twin(kind)


def texts(kind, seed=0, **options):
    """Return flat sequences [B, T] for this kind of model."""
    options = dict(E=1, n=4) | options
    return random_sequences(seed, kind=models.model_kind(HF[kind]), **options).flat()


def widened(seqs, left, right):
    """Return the same sequences with padding on both sides of every text."""
    pads = ((0, 0), (left, right))
    found = {}
    for name, fill in (("tokens", 7), ("mask", 0), ("source", 7), ("source_mask", 0)):
        array = getattr(seqs, name)
        found[name] = None if array is None else np.pad(array, pads, constant_values=fill)
    return seqs.replace(**found, score_pos=seqs.score_pos + np.int32(left))


def prompts_of(kind, seqs):
    """Return the prompts of generation: for seq2seq the first token of the decoder."""
    inputs = seqs.inputs
    if models.model_kind(HF[kind]) == "seq2seq":
        start = np.full((len(inputs.tokens), 1), twin(kind).config.decoder_start, np.int32)
        inputs = inputs.replace(tokens=start, mask=np.ones(start.shape, bool))
    return inputs


def writer(module, max_new=7):
    run = functools.partial(generate, module, max_new=max_new, eos_id=0)
    return jax.jit(lambda bound, prompts: run(bound, prompts))
