"""Token sequences of fixed shape, with the positions that are scored."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt32

from mend_jax.models.editable_model import Inputs

AnyArray = jax.Array | np.ndarray
"""Token arrays are numpy arrays on the host and JAX arrays in a step."""

NO_TARGET = -1
"""The target at a position where no token is right: only changes of the model are scored there."""


@flax.struct.dataclass
class TokenBatch:
    """Token sequences, with the output positions that a loss or metric scores.

    The leading axes `*batch` are free: [B] for plain batches, [E, n] for n texts of each of E
    independent edits. Only the S scored positions of a sequence go through the vocabulary
    projection (the head).

    Attributes:
      tokens: padded with any valid id.
      mask: True on real tokens; padding may be on either side.
      score_pos: index t of an output whose next token is scored.
      target: the token that should follow position `score_pos`, or `NO_TARGET`.
      score_mask: True on real scored positions.
      source, source_mask: the encoder's input; None for models of one stack. `tokens` is then the
        decoder's input.
      subject: index t of the last token of a text's subject; None if unknown for all of them (see
        `subject_pos`).
      names: hashes of the names of a text's subject, see `mentions.name_hashes`; None where no
        scope needs them.
      answer: hash of the target, where a scoped edit ends; likewise.
    """

    tokens: Int[AnyArray, "*batch T"]
    mask: Bool[AnyArray, "*batch T"]
    score_pos: Int[AnyArray, "*batch S"]
    target: Int[AnyArray, "*batch S"]
    score_mask: Bool[AnyArray, "*batch S"]
    source: Int[AnyArray, "*batch M"] | None = None
    source_mask: Bool[AnyArray, "*batch M"] | None = None
    subject: Int[AnyArray, "*batch 1"] | None = None
    names: UInt32[AnyArray, "*batch V"] | None = None
    answer: UInt32[AnyArray, "*batch 1"] | None = None

    @property
    def subject_pos(self) -> Int[AnyArray, "*batch"]:
        """The last token of the subject; where that is unknown, the last before the target."""
        position = self.score_pos[..., :1] if self.subject is None else self.subject
        return position[..., 0]

    @property
    def inputs(self) -> Inputs:
        """The model's inputs."""
        arrays: Any = (self.tokens, self.mask, self.source, self.source_mask)
        return Inputs(*arrays)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The sizes of the leading axes."""
        return tuple(self.tokens.shape[:-1])

    def prompts(self) -> TokenBatch:
        """Return the same sequences with a mask that ends at the first scored position."""
        place = np.arange(self.tokens.shape[-1]).reshape(*[1] * len(self.batch_shape), -1)
        return dataclasses.replace(self, mask=self.mask & (place <= self.score_pos[..., :1]))

    def given_targets(self, eos: int) -> TokenBatch:
        """Return the same sequences, of one stack, up to the last token of their targets.

        An end-of-text token is not part of them.
        """
        n = self.tokens.shape[-1] + 1
        place = np.arange(n, dtype=np.int32).reshape(*[1] * (len(self.batch_shape) + 1), -1)
        own = self.score_mask & (self.target != eos) & (self.target != NO_TARGET)
        at_BxSxT = (self.score_pos[..., None] + 1 == place) & own[..., None]
        target = jnp.where(at_BxSxT, jnp.asarray(self.target)[..., None], 0).sum(-2, dtype=np.int32)
        widths = [(0, 0)] * len(self.batch_shape) + [(0, 1)]
        is_target = at_BxSxT.any(-2)
        return dataclasses.replace(
            self,
            tokens=jnp.where(is_target, target, jnp.pad(jnp.asarray(self.tokens), widths)),
            mask=jnp.pad(jnp.asarray(self.prompts().mask), widths) | is_target,
        )

    def reshape(self, *batch_shape: int) -> TokenBatch:
        """Return the same sequences with other leading axes."""
        return jax.tree.map(lambda a: a.reshape(*batch_shape, a.shape[-1]), self)

    def flat(self) -> TokenBatch:
        """Return the same sequences with one leading axis."""
        return self.reshape(-1)
