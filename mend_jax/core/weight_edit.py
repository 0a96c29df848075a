"""An edit: small deltas to a few weights, as a pytree that is applied without touching W.

MEND's edit of a weight is sum_n u~_n delta~_n^T (paper, section 3.1): already a low-rank pair.
It is kept as that pair, so an edited forward pass costs little and the edit can be saved, composed,
undone, vmapped and sharded like any other pytree. Leading axes `...` (E edits) are free.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float

from mend_jax.errors import CheckpointError
from mend_jax.models.layers import EDITS
from mend_jax.models.params import Params, nest, weight_at


@flax.struct.dataclass
class LowRank:
    """W' = W + a^T b with a[..., N, d_in] and b[..., N, d_out]."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """x W' for x[..., d_in], factored or densified, whichever multiplies less."""
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        if self.forms_dense(math.prod(x.shape[:-1])):
            return _with_dense(x, kernel, a.T @ b)
        return x @ kernel + (x @ a.T) @ b

    def forms_dense(self, n_tokens: int) -> bool:
        """Whether a pass over so many tokens forms a^T b."""
        return dense_is_cheaper(n_tokens, *self.a.shape[-2:], self.b.shape[-1])

    def dense(self) -> jax.Array:
        """The delta as a matrix [..., d_in, d_out]."""
        highest = jax.lax.Precision.HIGHEST  # what is summed up over edits must not be rounded
        return jnp.einsum("...ni,...no->...io", self.a, self.b, precision=highest)

    def squared_norm(self) -> jax.Array:
        """|W' - W|^2 in float32, [...]: <a a^T, b b^T>, not as a matrix."""
        a, b = (x.astype(jnp.float32) for x in (self.a, self.b))
        a, b = (jnp.einsum("...ni,...mi->...nm", x, x) for x in (a, b))
        return jnp.maximum((a * b).sum((-2, -1)), 0.0)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_in, d_out)"""
        return self.a.shape[-1], self.b.shape[-1]

    def scale(self, factor: float | jax.Array) -> LowRank:
        return self.replace(b=self.b * factor)


@flax.struct.dataclass
class Dense:
    """W' = W + w with w[..., d_in, d_out]; what fine-tuning returns."""

    w: jax.Array

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _with_dense(x, kernel, self.w.astype(x.dtype))

    def dense(self) -> jax.Array:
        return self.w

    def squared_norm(self) -> jax.Array:
        """|W' - W|^2 in float32, [...]."""
        return jnp.square(self.w.astype(jnp.float32)).sum((-2, -1))

    @property
    def shape(self) -> tuple[int, int]:
        """(d_in, d_out)"""
        return self.w.shape[-2], self.w.shape[-1]

    def scale(self, factor: float | jax.Array) -> Dense:
        return Dense(self.w * factor)


Delta = LowRank | Dense


def _with_dense(x: jax.Array, kernel: jax.Array, delta: jax.Array) -> jax.Array:
    """x (W + delta). In 16 bits the sum would round small deltas away and is not formed."""
    if x.dtype.itemsize < 4:
        return x @ kernel + x @ delta
    return x @ (kernel + delta)


def densify_once(edit: Edit, tokens_ExnxT: jax.Array, chunk: int) -> Edit:
    """The edit for passes over n texts of T tokens, `chunk` texts at a time.

    Every piece would form a^T b anew where that multiplies less (`LowRank.forms_dense`); of many
    facts in one edit it is the dearest product, so it is formed before. 0: all pass at once.
    """
    _, n_texts, n_tokens = tokens_ExnxT.shape
    if chunk == 0 or n_texts <= chunk:
        return edit

    def formed(d: Delta) -> Delta:
        each_time = isinstance(d, LowRank) and d.forms_dense(chunk * n_tokens)
        return Dense(d.dense()) if each_time else d

    return edit.replace(deltas={name: formed(d) for name, d in edit.deltas.items()})


def dense_is_cheaper(n_tokens: int, n_rows: int, d_in: int, d_out: int) -> bool:
    """Whether forming a^T b once beats two thin matmuls a token (multiplications, static shapes).

    Factored: n_tokens * n_rows * (d_in + d_out). Dense: n_rows * d_in * d_out to form it, and it
    then rides in the matmul with W for free.
    """
    return n_tokens * (d_in + d_out) > d_in * d_out


@flax.struct.dataclass
class Edit:
    """Deltas by weight name (`block_28/mlp/up`), and which base they are for.

    Attributes:
      deltas: name -> LowRank or Dense.
      base: fingerprint of the base weights, "" if unknown; checked when the edit is applied.
      facts: the (prompt, target) pairs that the edit was made from.
      editor: what made it, such as "mend@0f3a9c41" or "fine_tune"; "" if unknown.
      created: when, an ISO date and time in UTC; "" if unknown.
    """

    deltas: dict[str, Delta]
    base: str = flax.struct.field(pytree_node=False, default="")
    facts: tuple[tuple[str, str], ...] = flax.struct.field(pytree_node=False, default=())
    editor: str = flax.struct.field(pytree_node=False, default="")
    created: str = flax.struct.field(pytree_node=False, default="")

    def scale(self, factor: float | jax.Array) -> Edit:
        """The edit with every delta multiplied by `factor`."""
        return self.replace(deltas={name: d.scale(factor) for name, d in self.deltas.items()})

    def negate(self) -> Edit:
        """The edit that undoes this one (exactly so only when composed, not in a merged bf16 W)."""
        return self.scale(-1.0)

    def compose(self, other: Edit) -> Edit:
        """Both edits at once: the deltas are summed, low-rank pairs by concatenating their rows.

        Different editors are named with a "+" between; `created` is the later date.
        """
        if self.base and other.base and self.base != other.base:
            raise CheckpointError(
                f"edits of different bases cannot be composed: {self.base} and {other.base}"
            )
        names = [*self.deltas, *(n for n in other.deltas if n not in self.deltas)]
        editors = [e for edit in (self, other) for e in edit.editor.split("+") if e]
        return Edit(
            deltas={n: _add(self.deltas.get(n), other.deltas.get(n)) for n in names},
            base=self.base or other.base,
            facts=self.facts + other.facts,
            editor="+".join(dict.fromkeys(editors)),
            created=max(self.created, other.created),
        )

    def merge(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """New nested parameters with W' in place of W; `params` are left as they are."""
        return merge(params, self)

    def save(self, path: str) -> None:
        """Writes a safetensors file; see `mend_jax.core.edit_file`."""
        from mend_jax.core import edit_file

        edit_file.save(path, self)

    @staticmethod
    def load(path: str) -> Edit:
        """Reads what `save` wrote."""
        from mend_jax.core import edit_file

        return edit_file.load(path)

    def at(self, index: int) -> Edit:
        """One of E independent edits that share a leading axis."""
        return jax.tree.map(lambda leaf: leaf[index], self)


def _add(x: Delta | None, y: Delta | None) -> Delta:
    if x is None or y is None:
        return x if y is None else y
    if isinstance(x, LowRank) and isinstance(y, LowRank):
        return LowRank(
            a=jnp.concatenate([x.a, y.a], axis=-2), b=jnp.concatenate([x.b, y.b], axis=-2)
        )
    return Dense(x.dense() + y.dense())


def utc_timestamp() -> str:
    """What `Edit.created` is, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def edits_collection(edit: Edit) -> dict[str, Any]:
    """The linen collection "edits" that `EditableDense` reads."""
    return nest({f"{name}/delta": delta for name, delta in edit.deltas.items()})


def variables(params: Any, edit: Edit | None = None) -> dict[str, Any]:
    """What `module.apply` takes to run nested base parameters, under an edit if there is one."""
    return {"params": params} if edit is None else {"params": params, EDITS: edits_collection(edit)}


def merge(params: Mapping[str, Any], edit: Edit) -> dict[str, Any]:
    """Nested parameters with every edited kernel W replaced by W + delta, in W's dtype.

    The sum is taken in float32 and rounded once. Raises CheckpointError for a weight that the
    parameters do not have unstacked (an edit of a block that lies in the trunk).
    """

    def replaced(node, parts, delta, name):
        if not isinstance(node, Mapping) or parts[0] not in node:
            raise CheckpointError(
                f"the edit changes {name}, which is not an unstacked weight of this model; "
                "load the model with last_n_blocks large enough to reach that block"
            )
        if len(parts) > 1:
            return {**node, parts[0]: replaced(node[parts[0]], parts[1:], delta, name)}
        kernel = node[parts[0]]
        total = kernel.astype(jnp.float32) + delta.dense().astype(jnp.float32)
        return {**node, parts[0]: total.astype(kernel.dtype)}

    for name, delta in edit.deltas.items():
        params = replaced(params, [*name.split("/"), "kernel"], delta, name)
    return dict(params)


def squared_norms(edit: Edit, params: Params) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return |dW|^2 of shape [...] and |W|^2 of shape [], in float32, of every edited weight."""
    return {
        name: (
            delta.squared_norm(),
            jnp.square(weight_at(params, name).astype(jnp.float32)).sum(),
        )
        for name, delta in edit.deltas.items()
    }


@jax.jit
def relative_norms(edit: Edit, params: Params) -> Float[jax.Array, " E"]:
    """Return |dW| / |W| of each of E edits, over all weights that they change together."""
    change = weight = jnp.zeros(())
    for delta_norm, weight_norm in squared_norms(edit, params).values():
        change, weight = change + delta_norm, weight + weight_norm
    return jnp.sqrt(change) / jnp.sqrt(weight)
