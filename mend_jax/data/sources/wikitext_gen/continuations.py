"""What a base itself writes after the beginnings of passages: cut, sampled, and judged usable."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from mend_jax.core.chunking import round_up
from mend_jax.data import rows
from mend_jax.data.keyed_random import key_hash, key_rng
from mend_jax.errors import DataError
from mend_jax.hub import text_encoding
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.models.editable_model import Inputs
from mend_jax.models.generation import generate, sampler
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh

LEAST, MOST = 20, 48  # tokens of a prompt
NEW = 10  # tokens of a target
LEFT = 10  # words that a passage must have after the prompt
TEMPERATURE = 1.0
SEED = 0
BATCH = 32
_BUCKET = 8  # prompts are padded to a multiple of so many tokens


@dataclasses.dataclass(frozen=True)
class Start:
    """The beginning of a passage, to be continued.

    Attributes:
      key, subject: of the passage; its article's title.
      prompt: the words to go on from, and the same as token ids.
      rest: the words that follow it in the passage.
    """

    key: str
    subject: str
    prompt: str
    ids: tuple[int, ...]
    rest: tuple[str, ...]


def cut(row: rows.Row, tokenizer: Tokenizer) -> Start | None:
    """A passage cut at random so that its beginning has `LEAST` to `MOST` tokens, if it can be."""
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


def starts(held: Sequence[rows.Row], tokenizer: Tokenizer) -> Iterator[Start]:
    """The passages that can be cut, in an order that depends on their keys alone."""
    for row in sorted(held, key=lambda row: key_hash("order", SEED, row["key"])):
        if start := cut(row, tokenizer):
            yield start


@functools.partial(jax.jit, static_argnames=("module", "max_new", "eos_id"))
def _sample(params, inputs, keys, temperature, *, module, max_new, eos_id):
    choose = sampler(keys, temperature)
    return generate(
        module, {"params": params}, inputs, max_new=max_new, eos_id=eos_id, choose=choose
    )  # fmt: skip


def sample(model: LanguageModel, batch: Sequence[Start], size: int = BATCH) -> np.ndarray:
    """`NEW` tokens int32[n, NEW] after each of up to `size` prompts, in one of few shapes.

    What is drawn depends on the base, `SEED` and the row's key; up to the rounding of the logits,
    which near a tie may differ between machines.
    """
    before = model.tokenizer.boundary_tokens[0]
    filled = [*batch, *[batch[0]] * (size - len(batch))]
    longest = max(len(start.ids) for start in batch)
    width = len(before) + round_up(longest, _BUCKET)
    tokens = np.full((size, width), model.tokenizer.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, start in enumerate(filled):
        ids = [*before, *start.ids]
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    hashes = [key_hash("sample", SEED, start.key) for start in filled]
    halves = np.asarray([(h >> 32, h & 0xFFFFFFFF) for h in hashes], np.uint32)
    keys = jax.random.wrap_key_data(halves, impl="threefry2x32")
    with use_mesh(mesh_of_arrays(model.params)):
        out = _sample(
            model.params, Inputs(tokens, mask), keys, np.float32(TEMPERATURE),
            module=model.module, max_new=NEW, eos_id=model.tokenizer.eos_id,
        )  # fmt: skip
    return np.asarray(out)[: len(batch)]


def target_of(tokenizer: Tokenizer, start: Start, ids: Sequence[int]) -> tuple[str, str]:
    """(target, "") of sampled tokens, or ("", why not)."""
    ids = [int(i) for i in ids]
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
        return "", "other tokens when read again"
    if seqs.target[seqs.score_mask].tolist() != ids:
        return "", "other tokens when read again"
    return target, ""


def targets(
    model: LanguageModel, block: Sequence[Start], size: int
) -> Iterator[tuple[int, tuple[str, str]]]:
    """(number in the block, `target_of` its sample), short prompts first: they share a shape."""
    by_length = sorted(range(len(block)), key=lambda i: len(block[i].ids))
    for at in range(0, len(block), size):
        numbers = by_length[at : at + size]
        drawn = sample(model, [block[i] for i in numbers], size)
        for i, ids in zip(numbers, drawn, strict=True):
            yield i, target_of(model.tokenizer, block[i], ids)
