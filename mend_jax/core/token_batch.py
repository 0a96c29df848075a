"""Fixed-shape token sequences and the positions in them that are scored."""

from __future__ import annotations

import flax.struct
import jax
import numpy as np

from mend_jax.models.base import Inputs

Array = jax.Array | np.ndarray

NO_TARGET = -1
"""A target where no token is right: there only how a model changes is looked at."""


@flax.struct.dataclass
class TokenBatch:
    """Token sequences with the output positions that a loss or metric looks at.

    Leading axes `...` are free: [B] for plain batches, [E, B] for E independent edits of B texts.
    Only S scored positions a sequence go through the vocabulary projection (the head).

    Attributes:
      tokens: int32[..., T], padded with any valid id.
      mask: bool[..., T], True on real tokens; padding may stand on either side.
      score_pos: int32[..., S], index t of an output whose next token is scored.
      target: int32[..., S], the token that should come after position `score_pos`, or `NO_TARGET`.
      score_mask: bool[..., S], True on real scored positions.
      source, source_mask: int32 and bool[..., M], what an encoder reads; None for models of one
        stack. `tokens` is then the decoder's input.
      subject: int32[..., 1], index t of the last token of what a text is about; None where that is
        not known of any (see `subject_pos`).
    """

    tokens: Array
    mask: Array
    score_pos: Array
    target: Array
    score_mask: Array
    source: Array | None = None
    source_mask: Array | None = None
    subject: Array | None = None

    @property
    def subject_pos(self) -> Array:
        """`subject` as int32[...]; where it is not known, the last token before the answer."""
        at = self.score_pos[..., :1] if self.subject is None else self.subject
        return at[..., 0]

    @property
    def inputs(self) -> Inputs:
        """What the model reads."""
        return Inputs(self.tokens, self.mask, self.source, self.source_mask)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes."""
        return tuple(self.tokens.shape[:-1])

    def prompts(self) -> TokenBatch:
        """What stands before the first scored token: the mask ends at the first scored position."""
        place = np.arange(self.tokens.shape[-1]).reshape(*[1] * len(self.batch_shape), -1)
        return self.replace(mask=self.mask & (place <= self.score_pos[..., :1]))

    def reshape(self, *lead: int) -> TokenBatch:
        """The same sequences under other leading axes."""
        return jax.tree.map(lambda a: a.reshape(*lead, a.shape[-1]), self)

    def flat(self) -> TokenBatch:
        """All leading axes folded into one."""
        return self.reshape(-1)
