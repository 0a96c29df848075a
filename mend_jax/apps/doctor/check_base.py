"""Whether a base knows its language, its weights are numbers, and its tokenizer fits it."""

from __future__ import annotations

import functools
import math
import unicodedata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.apps.doctor.findings import Finding, judged, skipped
from mend_jax.core.forward import scored_logits, trunk_states
from mend_jax.core.losses import correct_tokens, masked_mean, token_nll
from mend_jax.core.token_batch import TokenBatch
from mend_jax.hub import text_encoding as encode
from mend_jax.hub.input_formats import LABELS, input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.models.params import flatten
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
"""Ordinary English, written for this check: no base can have learned it by heart."""

LONGEST = 128  # tokens of it that are read, at most
LEAST = 2.0
_JUDGED = 256  # claims that a classifier is asked
_BALANCED = 0.6
_IN_ORDER = 0.8

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
def _nll(module: Any, params: Any, seqs: TokenBatch) -> jax.Array:
    """Mean nll of the scored tokens of each text [n]: float32[n]."""
    logits = scored_logits(module, params, trunk_states(module, params, seqs), seqs)
    return masked_mean(token_nll(logits, seqs.target), seqs.score_mask, axes=(-1,))


@functools.partial(jax.jit, static_argnums=0)
def _right(module: Any, params: Any, seqs: TokenBatch) -> jax.Array:
    logits = scored_logits(module, params, trunk_states(module, params, seqs), seqs)
    return correct_tokens(logits, seqs.target)


@jax.jit
def _finite(params: Any) -> dict[str, jax.Array]:
    return {path: jnp.isfinite(leaf).all() for path, leaf in flatten(params).items()}


def not_finite(model: LanguageModel) -> list[str]:
    """The base parameters, by nested path, that hold NaN or infinity."""
    return [path for path, good in gather(_finite(model.params)).items() if not good]


def check_base(experiment: Experiment) -> Finding:
    """Whether all weights are numbers, and the base finds a known text likely.

    The range of a causal model's perplexity: at least 2, since what no model has read cannot be
    known by heart (less says that it sees the next token); at most the square root of the
    vocabulary, which is half the nats of a blind guess. For SmolLM2 that is 222, ten times what it
    has; one whose weights are mixed up guesses worse than blindly. An encoder-decoder writes plain
    text to very different degrees by what it was trained for, so it has to find the text likelier
    in its order than shuffled. A classifier has to tell true near facts from false ones.
    """
    model = experiment.model
    bad = not_finite(model)
    if bad:
        return judged(
            "base", False, f"{len(bad)} weights hold NaN or infinity: {', '.join(bad[:4])}",
            "finite weights", "the files are damaged or were converted wrongly: fetch them again",
        )  # fmt: skip
    with use_mesh(mesh_of_arrays(model.params)):
        if model.is_classifier:
            return _judges(experiment)
        return _knows_its_language(model)


def _knows_its_language(model: LanguageModel) -> Finding:
    ids = model.tokenizer.encode(TEXT)[: LONGEST if model.module.kind == "causal" else None]
    length = min(
        len(ids) + len(model.tokenizer.boundary_tokens[0]), LONGEST, model.config.n_positions
    )
    order = np.random.default_rng(0).permutation(len(ids))
    read = _Ids(model.tokenizer)
    text, mixed = (
        input_format(model.module).text(read, one, length) for one in (ids, [ids[i] for i in order])
    )
    plain, shuffled = np.exp(
        gather(_nll(model.module, model.params, encode.stack_batches([text, mixed])))
    )
    said = f"perplexity {plain:.4g} of a known English text"
    mend = (
        "the weights are not those of a language model, were converted wrongly, or belong to "
        "another tokenizer: check model.spec, or load the base in its own library and compare"
    )
    if model.module.kind == "causal":
        most = math.sqrt(model.config.vocab_size)
        good = bool(LEAST <= plain <= most)
        return judged("base", good, said, f"{LEAST:g} to {most:.4g}", mend)
    said = f"{said} after its first half, {shuffled:.4g} shuffled"
    good = bool(plain <= _IN_ORDER * shuffled)
    return judged("base", good, said, f"at most {_IN_ORDER:g} of that shuffled", mend)


class _Ids:
    """A tokenizer of what are token ids already."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.boundary_tokens, self.pad_id = tokenizer.boundary_tokens, tokenizer.pad_id
        self.eos_id = tokenizer.eos_id

    def encode(self, text: list[int]) -> list[int]:
        return list(text)


def _judges(experiment: Experiment) -> Finding:
    """Balanced, so that one answer to all is worth a half, whatever the share of true claims."""
    model, texts = experiment.model, experiment.train.encoded.texts
    if "near" not in texts:
        return skipped("base", "finite; the data has no near facts that a classifier could judge")
    near = jax.tree.map(lambda x: x[:_JUDGED], texts["near"])
    right = gather(_right(model.module, model.params, near))[near.score_mask]
    label = near.target[near.score_mask]
    shares = [right[label == i].mean() for i in range(len(LABELS)) if (label == i).any()]
    if len(shares) < len(LABELS):
        return skipped("base", "finite; its near facts have one label, which a constant gets right")
    score = float(np.mean(shares))
    return judged(
        "base", score >= _BALANCED, f"balanced accuracy {score:.3f} on {len(label)} near facts",
        f"at least {_BALANCED:g}",
        "it judges no better than a constant: train its head first (configs/fever_finetune.py) "
        "and check model.spec",
    )  # fmt: skip


def check_tokenizer(model: LanguageModel) -> Finding:
    """Whether texts come back, and every id has a row in the base's table of tokens.

    English must come back but for case and spaces, which some tokenizers fold. Other scripts must
    come back from a tokenizer of bytes; others may not know them, which is said.
    """
    tokenizer, known = model.tokenizer, model.config.vocab_size
    ids = [
        *tokenizer.boundary_tokens[0],
        *tokenizer.boundary_tokens[1],
        tokenizer.eos_id,
        tokenizer.pad_id,
    ]
    lost = []
    for name, text in SCRIPTS.items():
        found = tokenizer.encode(text)
        ids += found
        if _folded(tokenizer.decode(found)) != _folded(text):
            lost.append(name)
    largest = max(tokenizer.vocab_size - 1, *ids)
    of_bytes = '"ByteLevel"' in tokenizer.inner.to_str() or "<0x00>" in tokenizer.inner.get_vocab()
    must = set(lost) & (set(SCRIPTS) if of_bytes else {"English"})
    measured = (
        f"{len(SCRIPTS) - len(lost)} of {len(SCRIPTS)} scripts come back"
        + (f" (not {', '.join(lost)})" if lost else "")
        + f"; largest id {largest} of {known}"
    )
    asked = f"{'all scripts' if of_bytes else 'English'} and ids below {known}"
    return judged(
        "tokenizer", not must and largest < known, measured, asked,
        "the tokenizer is of another model, or damaged: take the tokenizer.json that comes with "
        "the weights",
    )  # fmt: skip


def _folded(text: str) -> str:
    """Without case and spaces; accents are kept apart by no tokenizer that folds case."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if not (c.isspace() or unicodedata.combining(c)))
