"""Continuations of passages by a base model: cut the passages, sample, keep usable samples."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt32

from mend_jax.core.chunking import round_up
from mend_jax.core.token_batch import AnyArray
from mend_jax.data import rows
from mend_jax.data.keyed_random import key_hash, key_rng
from mend_jax.errors import DataError
from mend_jax.hub import text_encoding
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.models.editable_model import EditableModel, Inputs
from mend_jax.models.generation import generate, sampler
from mend_jax.models.params import Params
from mend_jax.parallel.distributed import gather
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh

LEAST, MOST = 20, 48  # tokens of a prompt
NEW = 10  # tokens of a target
LEFT = 10  # words that must follow the prompt in its passage
TEMPERATURE = 1.0
SEED = 0
BATCH = 32
_BUCKET = 8  # prompts are padded to a multiple of this many tokens


@dataclasses.dataclass(frozen=True)
class Start:
    """The beginning of a passage, to be continued.

    Attributes:
      key: the passage's key.
      subject: the title of its article.
      prompt: its first words.
      ids: the prompt's token ids.
      rest: the words that follow the prompt in the passage.
    """

    key: str
    subject: str
    prompt: str
    ids: tuple[int, ...]
    rest: tuple[str, ...]


def cut_passage(row: rows.Row, tokenizer: Tokenizer) -> Start | None:
    """Cut a passage at random after `LEAST` to `MOST` tokens; None if that is not possible."""
    words = row["far"].split()
    want = int(key_rng("cut", SEED, row["key"]).integers(LEAST, MOST + 1))

    def size(n_words: int) -> int:
        return len(tokenizer.encode(" ".join(words[:n_words])))

    n_words = bisect.bisect_right(range(1, len(words) - LEFT + 1), want, key=size)
    prompt = " ".join(words[:n_words])
    ids = tokenizer.encode(prompt)
    if not LEAST <= len(ids) <= MOST:
        return None
    return Start(row["key"], row["subject"], prompt, tuple(ids), tuple(words[n_words:]))


def cut_passages(passages: Sequence[rows.Row], tokenizer: Tokenizer) -> Iterator[Start]:
    """Yield the passages that can be cut, in an order that depends on their keys alone."""
    for row in sorted(passages, key=lambda row: key_hash("order", SEED, row["key"])):
        if start := cut_passage(row, tokenizer):
            yield start


@functools.partial(jax.jit, static_argnames=("module", "max_new", "eos_id"))
def _sample(
    params: Params,
    tokens: Int[AnyArray, "n T"],
    mask: Bool[AnyArray, "n T"],
    key_halves: UInt32[AnyArray, "n 2"],
    temperature: np.float32,
    *,
    module: EditableModel,
    max_new: int,
    eos_id: int,
) -> jax.Array:
    keys = jax.random.wrap_key_data(jnp.asarray(key_halves), impl="threefry2x32")
    choose, variables = sampler(keys, jnp.asarray(temperature)), {"params": params}
    inputs = Inputs(jnp.asarray(tokens), jnp.asarray(mask))
    return generate(module, variables, inputs, max_new=max_new, eos_id=eos_id, choose=choose)


def sample(
    model: LanguageModel, batch: Sequence[Start], size: int = BATCH
) -> Int[np.ndarray, "n new"]:
    """Sample `NEW` tokens after each of up to `size` prompts, in one of few compiled shapes.

    A sample depends on the base model, `SEED` and the row's key, and on the rounding of the logits,
    which may differ between machines where two tokens are almost tied.
    """
    before = model.tokenizer.boundary_tokens[0]
    padded = [*batch, *[batch[0]] * (size - len(batch))]
    longest = max(len(start.ids) for start in batch)
    width = len(before) + round_up(longest, _BUCKET)
    tokens = np.full((size, width), model.tokenizer.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, start in enumerate(padded):
        ids = [*before, *start.ids]
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    hashes = [key_hash("sample", SEED, start.key) for start in padded]
    halves = np.asarray([(h >> 32, h & 0xFFFFFFFF) for h in hashes], np.uint32)
    with use_mesh(mesh_of_arrays(model.params)):
        # The same numpy arrays in every process of a run, which computes them together.
        out = _sample(
            model.params, tokens, mask, halves, np.float32(TEMPERATURE),
            module=model.module, max_new=NEW, eos_id=model.tokenizer.eos_id,
        )  # fmt: skip
    drawn: Int[np.ndarray, "n new"] = gather(out)
    return drawn[: len(batch)]


def usable_target(tokenizer: Tokenizer, start: Start, ids: Sequence[int]) -> tuple[str, str]:
    """Return (target, "") for sampled tokens, or ("", the reason why they are not usable)."""
    ids = [int(i) for i in ids]
    other_tokens = "", "other tokens when read again"
    if tokenizer.eos_id in ids:
        return "", "ends the text"
    text = tokenizer.decode([*start.ids, *ids])
    if not text.startswith(start.prompt):
        return "", "changes the prompt"
    text = text[len(start.prompt) :]
    if any(c != " " and not c.isprintable() or c == "\ufffd" for c in text):
        return "", "holds a line end or half a character"
    if not text.startswith(" "):
        return "", "begins without a space"
    target = text.strip()
    size = len(tokenizer.boundary_tokens[0]) + MOST + NEW
    try:
        seqs = text_encoding.encode_fact(
            tokenizer, start.prompt, target, size, NEW, append_eos=False
        )
    except DataError:
        return other_tokens
    if seqs.target[seqs.score_mask].tolist() != ids:
        return other_tokens
    return target, ""


def sample_targets(
    model: LanguageModel, block: Sequence[Start], size: int
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield (number in the block, `usable_target` of its sample), short prompts first.

    Prompts of similar lengths share a compiled shape.
    """
    by_length = sorted(range(len(block)), key=lambda i: len(block[i].ids))
    for at in range(0, len(block), size):
        numbers = by_length[at : at + size]
        drawn = sample(model, [block[i] for i in numbers], size)
        for i, ids in zip(numbers, drawn, strict=True):
            yield i, usable_target(model.tokenizer, block[i], ids)
