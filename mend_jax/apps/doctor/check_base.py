"""Check that a base knows its language, its weights are finite, and its tokenizer fits it."""

from __future__ import annotations

import functools
import math
import unicodedata
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mend_jax.apps.doctor.check_result import CheckResult, make_result, skipped
from mend_jax.core.forward import scored_logits, trunk_states
from mend_jax.core.losses import correct_tokens, masked_mean, token_nll
from mend_jax.core.token_batch import TokenBatch
from mend_jax.hub import text_encoding
from mend_jax.hub.input_formats import LABELS, input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params, flatten
from mend_jax.parallel.distributed import gather
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh
from mend_jax.training.assembly import Experiment

TEXT = (
    "On Monday morning the two sisters walked down to the harbour to look for their father's "
    "boat. It had rained all night, and the streets were still wet. The older one carried a "
    "basket with bread and cheese; the younger one asked her every few minutes how far it was. "
    "When they came to the water, they saw that the boat was gone. An old man who was mending "
    "his nets told them that it had left before sunrise, because the fish were closer to the "
    "shore than in other years. So they sat down on the wall, ate their breakfast and waited."
)
"""Ordinary English, written for this check, so that no base was trained on it."""

MAX_TOKENS = 128  # of TEXT
MIN_PERPLEXITY = 2.0
MAX_PERPLEXITY_RATIO = 0.8  # of a seq2seq base: TEXT in its order, over TEXT shuffled
MIN_ACCURACY = 0.6  # balanced, of a classifier
N_CLAIMS = 256

SCRIPTS = {
    "English": "The 3 quick foxes (all brown) jumped over 12 lazy dogs; didn't they?",
    "French": "Où est passée la garçonnière près du château ?",
    "Greek": "Η γρήγορη αλεπού πηδά πάνω από το σκυλί.",
    "Russian": "Быстрая лиса прыгает через собаку.",
    "Arabic": "الثعلب السريع يقفز فوق الكلب.",
    "Hindi": "तेज़ लोमड़ी कुत्ते के ऊपर कूदती है।",
    "Chinese": "敏捷的狐狸跳过了懒狗。",
    "emoji": "A fox 🦊 and a dog 🐕.",
}


@functools.partial(jax.jit, static_argnums=0)
def _nll(module: EditableModel, params: Params, texts: TokenBatch) -> Float[Array, " n"]:
    """Return the mean nll of the scored tokens of each text."""
    logits = scored_logits(module, params, trunk_states(module, params, texts), texts)
    return masked_mean(token_nll(logits, texts.target), texts.score_mask, axes=(-1,))


@functools.partial(jax.jit, static_argnums=0)
def _correct_claims(
    module: EditableModel, params: Params, claims: TokenBatch
) -> Bool[Array, "n S"]:
    logits = scored_logits(module, params, trunk_states(module, params, claims), claims)
    return correct_tokens(logits, claims.target)


@jax.jit
def _finite(params: Params) -> dict[str, jax.Array]:
    return {path: jnp.isfinite(leaf).all() for path, leaf in flatten(params).items()}


def non_finite_weights(model: LanguageModel) -> list[str]:
    """Return the paths of the base parameters that contain NaN or infinity."""
    return [path for path, finite in gather(_finite(model.params)).items() if not finite]


def check_base(experiment: Experiment) -> CheckResult:
    """Check that all weights are finite, and that the base finds a known text likely.

    A causal model's perplexity must be at least 2 (less means that it sees the next token, because
    no model was trained on the text) and at most the square root of the vocabulary, half the nats
    of a uniform guess. For SmolLM2 that is 222, ten times what it has; with permuted weights it
    does worse than a uniform guess. How well an encoder-decoder continues plain text depends on its
    training, so it must only find the text likelier in its order than shuffled. A classifier must
    tell true near facts from false ones.
    """
    model = experiment.model
    if damaged := non_finite_weights(model):
        return make_result(
            "base", False,
            f"{len(damaged)} weights hold NaN or infinity: {', '.join(damaged[:4])}",
            "finite weights",
            "the files are damaged or were converted wrongly: download them again",
        )  # fmt: skip
    with use_mesh(mesh_of_arrays(model.params)):
        if model.is_classifier:
            return _check_classifier(experiment)
        return _check_language_model(model)


def _check_language_model(model: LanguageModel) -> CheckResult:
    fix = (
        "the weights are not those of a language model, were converted wrongly, or belong to "
        "another tokenizer: check model.spec, or load the base in its own library and compare"
    )
    perplexity, shuffled = _perplexities(model)
    measured = f"perplexity {perplexity:.4g} of a known English text"
    if model.module.kind == "causal":
        limit = math.sqrt(model.config.vocab_size)
        passed = bool(MIN_PERPLEXITY <= perplexity <= limit)
        return make_result("base", passed, measured, f"{MIN_PERPLEXITY:g} to {limit:.4g}", fix)
    measured += f" after its first half, {shuffled:.4g} shuffled"
    passed = bool(perplexity <= MAX_PERPLEXITY_RATIO * shuffled)
    required = f"at most {MAX_PERPLEXITY_RATIO:g} of that shuffled"
    return make_result("base", passed, measured, required, fix)


def _perplexities(model: LanguageModel) -> np.ndarray:
    """Return the perplexity of `TEXT`, and that of its tokens shuffled."""
    tokenizer, causal = model.tokenizer, model.module.kind == "causal"
    ids = tokenizer.encode(TEXT)[: MAX_TOKENS if causal else None]
    length = len(ids) + len(tokenizer.boundary_tokens[0])
    length = min(length, MAX_TOKENS, model.config.n_positions)
    shuffled = [ids[i] for i in np.random.default_rng(0).permutation(len(ids))]
    encode = functools.partial(input_format(model.module).text, cast(Tokenizer, _Ids(tokenizer)))
    batches = [encode(cast(str, tokens), length) for tokens in (ids, shuffled)]
    return np.exp(gather(_nll(model.module, model.params, text_encoding.stack_batches(batches))))


class _Ids:
    """A tokenizer whose texts are token ids already."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.boundary_tokens, self.pad_id = tokenizer.boundary_tokens, tokenizer.pad_id
        self.eos_id = tokenizer.eos_id

    def encode(self, text: list[int]) -> list[int]:
        return list(text)


def _check_classifier(experiment: Experiment) -> CheckResult:
    """Check the balanced accuracy: a constant answer scores a half, whatever the labels' shares."""
    model, texts = experiment.model, experiment.train.encoded.texts
    if "near" not in texts:
        return skipped("base", "finite; the data has no near facts for a classifier")
    near = jax.tree.map(lambda x: x[:N_CLAIMS], texts["near"])
    correct = gather(_correct_claims(model.module, model.params, near))[near.score_mask]
    label = near.target[near.score_mask]
    accuracies = [correct[label == i].mean() for i in range(len(LABELS)) if (label == i).any()]
    if len(accuracies) < len(LABELS):
        return skipped("base", "finite; its near facts have one label, which a constant gets right")
    accuracy = float(np.mean(accuracies))
    return make_result(
        "base", accuracy >= MIN_ACCURACY,
        f"balanced accuracy {accuracy:.3f} on {len(label)} near facts",
        f"at least {MIN_ACCURACY:g}",
        "it is no better than a constant answer: train its head first (configs/fever_finetune.py) "
        "and check model.spec",
    )  # fmt: skip


def check_tokenizer(model: LanguageModel) -> CheckResult:
    """Check that decoding restores texts, and that the base has an embedding for every id.

    English must be restored but for case and spaces, which some tokenizers fold. Only a byte-level
    tokenizer must restore the other scripts.
    """
    tokenizer, n_known = model.tokenizer, model.config.vocab_size
    first, last = tokenizer.boundary_tokens
    ids = [*first, *last, tokenizer.eos_id, tokenizer.pad_id]
    lost = []
    for name, text in SCRIPTS.items():
        encoded = tokenizer.encode(text)
        ids += encoded
        if _folded(tokenizer.decode(encoded)) != _folded(text):
            lost.append(name)
    largest = max(tokenizer.vocab_size - 1, *ids)
    inner = tokenizer.inner
    byte_level = '"ByteLevel"' in inner.to_str() or "<0x00>" in inner.get_vocab()
    damaged = set(lost) & (set(SCRIPTS) if byte_level else {"English"})
    restored = f"{len(SCRIPTS) - len(lost)} of {len(SCRIPTS)} scripts are restored"
    exceptions = f" (not {', '.join(lost)})" if lost else ""
    return make_result(
        "tokenizer", not damaged and largest < n_known,
        f"{restored}{exceptions}; largest id {largest} of {n_known}",
        f"{'all scripts' if byte_level else 'English'} restored, and ids below {n_known}",
        "the tokenizer belongs to another model, or is damaged: use the tokenizer.json that comes "
        "with the weights",
    )  # fmt: skip


def _folded(text: str) -> str:
    """Return a text without case, spaces and accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if not (c.isspace() or unicodedata.combining(c)))
