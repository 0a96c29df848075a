"""The states that a scope is learned from: of facts in several wordings, and of what is near them.

Shape letters: F facts, n wordings, S scored positions, P positions, D width.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from mend_jax.core.chunking import round_up
from mend_jax.core.forward import states_at_site, trunk_states
from mend_jax.core.mentions import (
    TokenTexts,
    ending_names,
    is_mentioned,
    mentions,
    own_names,
    padded_hashes,
)
from mend_jax.core.scope import reading
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.encoded_rows import Lengths
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.rows import Row
from mend_jax.errors import DataError
from mend_jax.hub.input_formats import CAUSAL, input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import encode_in_chat, stack_batches
from mend_jax.io.progress import Progress
from mend_jax.models.attention import full_context
from mend_jax.models.gate_site import GateSite
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh
from mend_jax.training.near_texts import NearTexts

_TEXTS_AT_ONCE = 64
_BUCKET = 8  # texts are padded to a multiple of this many tokens
_NEAR_STATES = 8  # of a fact and a kind, at most


class ScopeText(NamedTuple):
    """A text whose states are read.

    Attributes:
      tokens: the text, with the names of its subject.
      begins: where its question begins; what comes before is in the scope of a fact itself.
    """

    tokens: TokenBatch
    begins: int = 0


class ReadText(NamedTuple):
    """The states of one text, on the host.

    Attributes:
      z: of every token, or one of the whole text.
      mentioned: whether each comes after the name of the text's subject.
      tokens, begins: of the text.
    """

    z: Float[np.ndarray, "T_or_1 D"]
    mentioned: Bool[np.ndarray, " T_or_1"]
    tokens: TokenBatch
    begins: int

    def scored(self) -> Int[np.ndarray, " P"]:
        """Return the places of the states that decide about the answer."""
        real = np.asarray(self.tokens.score_mask)
        if len(self.z) == 1:
            return np.zeros(int(real.any()), np.int64)
        return np.asarray(self.tokens.score_pos)[real]

    def inside(self) -> Int[np.ndarray, " P"]:
        """Return the places of the question but its last token; none of a whole text."""
        places = np.flatnonzero(self.tokens.mask)
        places = places[places >= self.begins]
        scored = self.scored()
        return places[places < scored[0]] if len(self.z) > 1 and len(scored) else places[:0]

    def after(self) -> Int[np.ndarray, " P"]:
        """Return the places from the last token of the answer on."""
        places = np.flatnonzero(self.tokens.mask)
        scored = self.scored()
        return places[places > scored[-1]] if len(self.z) > 1 and len(scored) else places[:0]


class StateReader:
    """Encodes texts and returns the unedited states that a gate reads."""

    def __init__(self, model: LanguageModel, site: GateSite, lengths: Lengths) -> None:
        self.site = site
        self._model, self._lengths = model, lengths
        self._module, self._form = reading(model.module, site), input_format(model.module)

    def encode(
        self,
        prompt: str,
        target: str,
        subject: str = "",
        before: str = "",
        chat: bool = False,
    ) -> ScopeText | None:
        """Return the text of a question and a target; None if it does not fit.

        Args:
          before: comes before the question, which may then be twice as long.
          chat: the question is a user's message, and the target begins the answer to it.
        """
        lengths, tokenizer = self._lengths, self._model.tokenizer
        longest = lengths.max_len * (2 if before else 1)
        try:
            if chat:
                text = encode_in_chat(
                    tokenizer, prompt, target.strip(), lengths.max_len, lengths.max_target
                )
            else:
                prompt = before + lengths.template.replace("{}", prompt)
                text = self._form.fact(
                    tokenizer, prompt, target, longest, lengths.max_target,
                    append_eos=lengths.append_eos,
                )  # fmt: skip
        except DataError:
            return None
        names = padded_hashes([[subject]])[0]
        begins = len(tokenizer.encode(before.rstrip())) if before else 0
        return ScopeText(dataclasses.replace(text, names=names), begins)

    @property
    def chats(self) -> bool:
        """Whether the base is a chat model."""
        return self._model.tokenizer.chat_template is not None and self._form is CAUSAL

    def encode_plain(self, text: str) -> ScopeText | None:
        """Return plain text; None if it is too short."""
        try:
            encoded = self._form.text(self._model.tokenizer, text, self._lengths.max_len)
        except DataError:
            return None
        return ScopeText(dataclasses.replace(encoded, names=padded_hashes([[]])[0]))

    def read(self, texts: Sequence[ScopeText], what: str) -> list[ReadText]:
        """Return the states of texts."""
        tokens = [_trimmed(text.tokens) for text in texts]
        found: dict[int, ReadText] = {}
        progress = Progress(what, len(texts))
        by_shape: dict[Any, list[int]] = collections.defaultdict(list)
        for i, text in enumerate(tokens):
            by_shape[tuple(np.shape(leaf) for leaf in jax.tree.leaves(text))].append(i)
        for members in by_shape.values():
            for start in range(0, len(members), _TEXTS_AT_ONCE):
                some = members[start : start + _TEXTS_AT_ONCE]
                padded = [tokens[i] for i in some]
                padded += [padded[-1]] * (_TEXTS_AT_ONCE - len(some))
                z, mentioned = self._states(stack_batches(padded))
                for row, i in enumerate(some):
                    found[i] = ReadText(z[row], mentioned[row], tokens[i], texts[i].begins)
                progress.update(len(found))
        progress.update(len(found), force=True)
        return [found[i] for i in range(len(texts))]

    def _states(self, texts: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
        params, token_texts = self._model.params, self._model.tokenizer.token_texts
        with use_mesh(mesh_of_arrays(params)):
            states = _read_states(self._module, self.site, params, token_texts, texts)
        z, mentioned = jax.device_get(states)
        return np.asarray(z), np.asarray(mentioned)


def _trimmed(text: TokenBatch) -> TokenBatch:
    """Return a text without most of its padding, which is on the right."""

    def cut(mask: Any, *arrays: Any) -> list[Any]:
        width = min(round_up(int(np.asarray(mask).sum()), _BUCKET), len(mask))
        return [array[:width] for array in (mask, *arrays)]

    mask, tokens = cut(text.mask, text.tokens)
    text = dataclasses.replace(text, mask=mask, tokens=tokens)
    if text.source is not None:
        source_mask, source = cut(text.source_mask, text.source)
        text = dataclasses.replace(text, source_mask=source_mask, source=source)
    return text


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read_states(
    module: Any, site: GateSite, params: Any, token_texts: TokenTexts, texts: TokenBatch
) -> tuple[jax.Array, jax.Array]:
    """Return the states of texts [B], and whether each comes after its text's own name."""
    h = trunk_states(module, params, texts)
    z = states_at_site(module, params, site, h, texts).astype(jnp.float32)
    source = texts.source is not None
    tokens, mask = (texts.source, texts.source_mask) if source else (texts.tokens, texts.mask)
    context = full_context(jnp.asarray(tokens), jnp.asarray(mask), causal=not site.per_text)
    so_far = context.text_so_far(dataclasses.replace(site, per_text=site.per_text or source))
    assert texts.names is not None

    def of_one(hashes: UInt32[jax.Array, " V"], text: Any) -> Bool[jax.Array, " T_or_1"]:
        names = own_names(hashes)
        found = mentions(token_texts, names, jax.tree.map(lambda leaf: leaf[None], text))
        ends = ending_names(names, found.here[0])
        return is_mentioned(names, ends, found.first[0, found.sentence[0]], found.position[0])[:, 0]

    mentioned = jax.vmap(of_one)(jnp.asarray(texts.names), so_far)
    return z, jnp.broadcast_to(mentioned, z.shape[:2])


class PaddedStates(NamedTuple):
    """Some states of each of F facts: `z`, and `mask`, which is True where one is real."""

    z: Float[np.ndarray, "F P D"]
    mask: Bool[np.ndarray, "F P"]


class FactStates(NamedTuple):
    """States of F facts in n wordings, on the host.

    Attributes:
      z: at the scored positions.
      mask: True where a state is real.
      relation: the number of each fact's relation.
      other_questions: at the scored positions of other questions about the subject.
      inside: at other tokens of prompts.
      after: at the last tokens of answers.
      other_subjects: at the scored positions of the same question about another subject, which
        comes after the fact.
      outside: at the tokens of plain texts.
    """

    z: Float[np.ndarray, "F n S D"]
    mask: Bool[np.ndarray, "F n S"]
    relation: Int[np.ndarray, " F"]
    other_questions: PaddedStates
    inside: PaddedStates
    after: PaddedStates
    other_subjects: PaddedStates
    outside: Float[np.ndarray, "P D"]


_WORDING, _QUESTION, _SUBJECT = "wording", "other question", "other subject"


def fact_states(
    reader: StateReader,
    rows: Sequence[Row],
    pool: Sequence[Row],
    n_wordings: int,
    plain_texts: Sequence[str],
    seed: int,
) -> FactStates:
    """Return the states of facts in several wordings, and of what is near them.

    For a chat model one wording more is a user's message.

    Args:
      rows: the facts.
      pool: all rows whose wordings, subjects and answers may be used.

    Raises:
      DataError: fewer than two facts have two wordings that fit.
    """
    facts, texts, owner = _fact_texts(reader, rows, NearTexts(pool), n_wordings, seed)
    if len(facts) < 2:
        raise DataError(
            f"{len(facts)} of {len(rows)} facts have two wordings that fit: raise data.max_len, or "
            "give facts with paraphrases"
        )
    plain = [text for text in map(reader.encode_plain, plain_texts) if text is not None]
    read = reader.read([*texts, *plain], "trunk states of facts")
    rng = key_rng("scope states", seed)
    size, width = max(len(r.scored()) for r in read[: len(texts)]), read[0].z.shape[-1]
    z = np.zeros((len(facts), n_wordings + reader.chats, size, width), np.float32)
    mask = np.zeros(z.shape[:3], bool)
    near: dict[str, list[list[np.ndarray]]] = {
        name: [[] for _ in facts] for name in (_QUESTION, _SUBJECT, "inside", "after")
    }
    for (fact, kind, wording), one in zip(owner, read, strict=False):
        scored = one.scored()
        if kind == _WORDING:
            z[fact, wording, : len(scored)] = one.z[scored]
            mask[fact, wording, : len(scored)] = True
        else:
            near[kind][fact].append(one.z[scored])
        near["inside"][fact].append(one.z[rng.permutation(one.inside())[:2]])
        near["after"][fact].append(one.z[one.after()[:1]])
    names = sorted({row["relation"] for row in facts})
    others = read[len(texts) :]
    outside = [o.z[o.tokens.mask] if len(o.z) > 1 else o.z for o in others]
    padded = {name: _padded(states, width, rng) for name, states in near.items()}
    return FactStates(
        z=z,
        mask=mask,
        relation=np.asarray([names.index(row["relation"]) for row in facts], np.int32),
        other_questions=padded[_QUESTION],
        inside=padded["inside"],
        after=padded["after"],
        other_subjects=padded[_SUBJECT],
        outside=np.concatenate([*outside, np.zeros((0, width), np.float32)]),
    )


def _fact_texts(
    reader: StateReader, rows: Sequence[Row], maker: NearTexts, n_wordings: int, seed: int
) -> tuple[list[Row], list[ScopeText], list[tuple[int, str, int]]]:
    """Return facts with two wordings that fit, their texts, and (fact, kind, number) of each."""
    facts: list[Row] = []
    texts: list[ScopeText] = []
    owner: list[tuple[int, str, int]] = []
    for row in rows:
        wordings = maker.wordings.of(row, n_wordings)
        fitting = [
            text for w in wordings if (text := reader.encode(w, row["target"], row["subject"]))
        ]
        if len(fitting) < 2:
            continue
        number = len(facts)
        facts.append(row)
        texts += fitting
        owner += [(number, _WORDING, i) for i in range(len(fitting))]
        if reader.chats:
            at = int(key_rng("chat", seed, row["key"]).integers(len(wordings)))
            chat = reader.encode(wordings[at], row["target"], row["subject"], chat=True)
            if chat is not None:
                texts.append(chat)
                owner.append((number, _WORDING, n_wordings))
        for near in maker.near(row, seed):
            text = reader.encode(near.question, near.answer, row["subject"], near.before)
            if text is not None:
                texts.append(text)
                owner.append((number, _SUBJECT if near.before else _QUESTION, 0))
    return facts, texts, owner


def _padded(
    states: Sequence[Sequence[Float[np.ndarray, "_ D"]]], width: int, rng: np.random.Generator
) -> PaddedStates:
    """Return at most `_NEAR_STATES` states of each fact."""
    joined = [np.concatenate([np.zeros((0, width), np.float32), *own]) for own in states]
    size = min(max(map(len, joined)), _NEAR_STATES)
    z = np.zeros((len(states), max(size, 1), width), np.float32)
    mask = np.zeros(z.shape[:2], bool)
    for row, own in enumerate(joined):
        some = own[rng.permutation(len(own))[:size]]
        z[row, : len(some)], mask[row, : len(some)] = some, True
    return PaddedStates(z, mask)
