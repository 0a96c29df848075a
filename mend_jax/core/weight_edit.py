"""An edit: small deltas to a few weights, as a pytree that is applied without changing W.

MEND's edit of a weight is sum_n u~_n delta~_n^T (paper, section 3.1): already a low-rank pair.
It is kept as that pair, so an edited forward pass costs little and the edit can be saved, composed,
undone, vmapped and sharded like any other pytree. Leading axes `*batch` (E edits) are free.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mend_jax.core.token_batch import AnyArray
from mend_jax.errors import CheckpointError
from mend_jax.models.layers import EDITS
from mend_jax.models.params import Params, nest, weight_at
from mend_jax.parallel.processor import multiplies_float32_exactly

MIXED = (
    "a plain edit and scoped edits cannot be composed: a plain one changes the weights for all "
    "texts; make both of one kind, and use one ledger for each"
)


@flax.struct.dataclass
class LowRank:
    """The delta of W' = W + a^T b."""

    a: Float[Array, "*batch N d_in"]
    b: Float[Array, "*batch N d_out"]

    def __call__(self, x: Float[Array, "... d_in"], kernel: Float[Array, "d_in d_out"]) -> Array:
        """Return x W', factored or dense, whichever needs fewer multiplications."""
        if self.forms_dense(math.prod(x.shape[:-1])):
            return _with_dense(x, kernel, self.dense())
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        return _product(x, kernel) + _product(_product(x, a.T), b)

    def forms_dense(self, n_tokens: int) -> bool:
        """Return whether a pass over `n_tokens` tokens forms a^T b."""
        return dense_is_cheaper(n_tokens, self.a.shape[-1], self.b.shape[-1])

    def dense(self) -> Float[Array, "*batch d_in d_out"]:
        """Return the delta as a matrix."""
        highest = jax.lax.Precision.HIGHEST  # a sum over edits must not accumulate rounding
        return jnp.einsum("...ni,...no->...io", self.a, self.b, precision=highest)

    def squared_norm(self) -> Float[Array, "*batch"]:
        """Return |W' - W|^2 in float32 as <a a^T, b b^T>, without forming the matrix."""
        a, b = (x.astype(jnp.float32) for x in (self.a, self.b))
        a, b = (jnp.einsum("...ni,...mi->...nm", x, x) for x in (a, b))
        return jnp.maximum((a * b).sum((-2, -1)), 0.0)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_in, d_out)"""
        return self.a.shape[-1], self.b.shape[-1]

    def scale(self, factor: float | Array) -> LowRank:
        return dataclasses.replace(self, b=self.b * factor)


@flax.struct.dataclass
class Dense:
    """The delta of W' = W + w, as fine-tuning returns it."""

    w: Float[Array, "*batch d_in d_out"]

    def __call__(self, x: Float[Array, "... d_in"], kernel: Float[Array, "d_in d_out"]) -> Array:
        """Return x W'."""
        return _with_dense(x, kernel, self.w)

    def dense(self) -> Float[Array, "*batch d_in d_out"]:
        """Return the delta as a matrix."""
        return self.w

    def squared_norm(self) -> Float[Array, "*batch"]:
        """Return |W' - W|^2 in float32."""
        return jnp.square(self.w.astype(jnp.float32)).sum((-2, -1))

    @property
    def shape(self) -> tuple[int, int]:
        """(d_in, d_out)"""
        return self.w.shape[-2], self.w.shape[-1]

    def scale(self, factor: float | Array) -> Dense:
        return Dense(self.w * factor)

    def as_low_rank(self) -> LowRank:
        """Return the same delta as a pair: itself and the smaller identity."""
        *batch, d_in, d_out = self.w.shape
        identity = jnp.eye(min(d_in, d_out), dtype=self.w.dtype)
        identity = jnp.broadcast_to(identity, (*batch, *identity.shape))
        if d_in <= d_out:
            return LowRank(identity, self.w)
        return LowRank(jnp.swapaxes(self.w, -1, -2), identity)


Delta = LowRank | Dense
Applied = TypeVar("Applied", bound="AppliedEdit")


def _with_dense(x: Array, kernel: Array, delta: Array) -> Array:
    """Return x (W + delta).

    The sum is formed only where the product reads all of it: rounded to 16 bits, as W is or as the
    operands of a product are on a TPU, it would lose small deltas.
    """
    if x.dtype.itemsize >= 4 and multiplies_float32_exactly():
        return _product(x, kernel + delta.astype(x.dtype))
    return _product(x, kernel) + _product(x, delta.astype(x.dtype))


def _product(x: Array, w: Array) -> Array:
    """Return x w at the processor's default precision."""
    return x @ w


def dense_is_cheaper(n_tokens: int, d_in: int, d_out: int) -> bool:
    """Return whether forming a^T b once costs less than two thin matmuls per token.

    Multiplications with N rows: factored, n_tokens * N * (d_in + d_out); dense, N * d_in * d_out to
    form the matrix, whose product with x is then part of the matmul with W. N cancels.
    """
    return n_tokens * (d_in + d_out) > d_in * d_out


def densify_once(edit: Applied, tokens: Int[AnyArray, "E n T"], chunk: int) -> Applied:
    """Return the edit for passes over n texts of T tokens, `chunk` texts at a time (0: all).

    Where dense is cheaper (`LowRank.forms_dense`), every chunk would form a^T b again; with many
    facts in one edit this is the most expensive product, so it is formed once here. What is not an
    `Edit` is returned as it is.
    """
    if not isinstance(edit, Edit):
        return edit
    _, n_texts, n_tokens = tokens.shape
    if chunk == 0 or n_texts <= chunk:
        return edit

    def densify(delta: Delta) -> Delta:
        repeated = isinstance(delta, LowRank) and delta.forms_dense(chunk * n_tokens)
        return Dense(delta.dense()) if repeated else delta

    return dataclasses.replace(edit, deltas={n: densify(d) for n, d in edit.deltas.items()})


@flax.struct.dataclass
class Edit:
    """Deltas by weight name (`block_28/mlp/up`), and the base they are for.

    Attributes:
      deltas: name -> LowRank or Dense.
      base: fingerprint of the base weights, "" if unknown; checked when the edit is applied.
      facts: the (prompt, target) pairs that the edit was made from.
      editor: the editor that made it, such as "mend@0f3a9c41" or "fine_tune"; "" if unknown.
      created: an ISO date and time in UTC; "" if unknown.
      keys: name -> [n, d_in], the weight's inputs at the tokens of the facts, by which edits of
        several facts are combined (`combined_edits.combine_edits`); None if unknown, as of a sum.
    """

    deltas: dict[str, Delta]
    base: str = flax.struct.field(pytree_node=False, default="")
    facts: tuple[tuple[str, str], ...] = flax.struct.field(pytree_node=False, default=())
    editor: str = flax.struct.field(pytree_node=False, default="")
    created: str = flax.struct.field(pytree_node=False, default="")
    keys: dict[str, Array] | None = None

    def collections(self) -> dict[str, Any]:
        """Return the linen collection "edits" that `EditableDense` reads."""
        return {EDITS: nest({f"{name}/delta": delta for name, delta in self.deltas.items()})}

    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (d_in, d_out) of every edited weight by name."""
        return {name: delta.shape for name, delta in self.deltas.items()}

    def arrays_only(self) -> Edit:
        """Return the edit without what is static, of which each would be compiled for anew."""
        return Edit(self.deltas)

    def scale(self, factor: float | Array) -> Edit:
        """Return the edit with every delta multiplied by `factor`."""
        return dataclasses.replace(
            self, deltas={name: d.scale(factor) for name, d in self.deltas.items()}
        )

    def as_plain(self) -> Edit:
        """Return the edit itself; see `AppliedEdit`."""
        return self

    def negate(self) -> Edit:
        """Return the edit that undoes this one (exactly if composed, not in a merged bf16 W)."""
        return self.scale(-1.0)

    def compose(self, other: AppliedEdit) -> Edit:
        """Return both edits as one: the sum of deltas; low-rank pairs concatenate their rows.

        Names of different editors are joined by "+"; `created` is the later date.

        Raises:
          CheckpointError: the edits are for different bases, or the other one is scoped.
        """
        if not isinstance(other, Edit):
            raise CheckpointError(MIXED)
        if self.base and other.base and self.base != other.base:
            raise CheckpointError(
                f"edits of different bases cannot be composed: {self.base} and {other.base}"
            )
        names = [*self.deltas, *(n for n in other.deltas if n not in self.deltas)]
        editors = [e for edit in (self, other) for e in edit.editor.split("+") if e]
        both = {n: [e.deltas[n] for e in (self, other) if n in e.deltas] for n in names}
        return Edit(
            deltas={n: _add(*deltas) for n, deltas in both.items()},
            base=self.base or other.base,
            facts=self.facts + other.facts,
            editor="+".join(dict.fromkeys(editors)),
            created=max(self.created, other.created),
        )

    def merge(self, params: Params) -> dict[str, Any]:
        """Return new nested parameters with W' in place of W; `params` are not changed."""
        return merge(params, self)

    def save(self, path: str) -> None:
        """Write a safetensors file; see `mend_jax.core.edit_file`."""
        from mend_jax.core import edit_file

        edit_file.save(path, self)

    @staticmethod
    def load(path: str) -> Edit:
        """Read a file that `save` wrote."""
        from mend_jax.core import edit_file

        return edit_file.load(path)

    def at(self, index: int) -> Edit:
        """Return one of E independent edits that share a leading axis."""
        return jax.tree.map(lambda leaf: leaf[index], self)


def _add(x: Delta, y: Delta | None = None) -> Delta:
    if y is None:
        return x
    if isinstance(x, LowRank) and isinstance(y, LowRank):
        return LowRank(
            a=jnp.concatenate([x.a, y.a], axis=-2), b=jnp.concatenate([x.b, y.b], axis=-2)
        )
    return Dense(x.dense() + y.dense())


class AppliedEdit(Protocol):
    """What a forward pass can run under: an `Edit`, or a `gated_bank.GatedBank`."""

    @property
    def base(self) -> str:
        """Fingerprint of the base weights, "" if unknown."""

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """The (prompt, target) pairs."""

    def collections(self) -> dict[str, Any]:
        """Return the linen collections that the model reads it from."""

    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (d_in, d_out) of every edited weight by name."""

    def arrays_only(self) -> Any:
        """Return it without what is static, of which each would be compiled for anew."""

    def scale(self, factor: float | Array) -> Any:
        """Return it with every delta multiplied by `factor`."""

    def compose(self, other: Any) -> Any:
        """Return both as one, of one kind."""

    def as_plain(self) -> Edit:
        """Return the same deltas as a plain edit, which applies to all texts."""


def variables(params: Params, edit: AppliedEdit | None = None) -> dict[str, Any]:
    """Return the variables for `module.apply`: nested base parameters, and an edit if any."""
    return {"params": params} if edit is None else {"params": params, **edit.collections()}


def merge(params: Params, edit: Edit, dtype: Any = None) -> dict[str, Any]:
    """Return nested parameters with every edited kernel W replaced by W + delta.

    The sum is computed in float32 and rounded once; `merge_rounding` says what that loses.

    Args:
      dtype: of the edited kernels; None: W's.

    Raises:
      CheckpointError: the parameters lack an edited weight, or it is stacked in the trunk.
    """

    def replace(node: Any, parts: list[str], delta: Delta, name: str) -> dict[str, Any]:
        if not isinstance(node, Mapping) or parts[0] not in node:
            raise CheckpointError(
                f"the edit changes {name}, which is not an unstacked weight of this model; "
                "load the model with last_n_blocks large enough to reach that block"
            )
        if len(parts) > 1:
            return {**node, parts[0]: replace(node[parts[0]], parts[1:], delta, name)}
        kernel = node[parts[0]]
        total = kernel.astype(jnp.float32) + delta.dense().astype(jnp.float32)
        return {**node, parts[0]: total.astype(dtype or kernel.dtype)}

    for name, delta in edit.deltas.items():
        params = replace(params, [*name.split("/"), "kernel"], delta, name)
    return dict(params)


def squared_norms(
    edit: Edit, params: Params
) -> dict[str, tuple[Float[Array, "*batch"], Float[Array, ""]]]:
    """Return |dW|^2 and |W|^2, in float32, of every edited weight."""
    return {
        name: (
            delta.squared_norm(),
            jnp.square(weight_at(params, name).astype(jnp.float32)).sum(),
        )
        for name, delta in edit.deltas.items()
    }


@jax.jit
def relative_norms(edit: Edit, params: Params) -> Float[Array, " E"]:
    """Return |dW| / |W| of each of E edits, over all weights that they change together."""
    change = weight = jnp.zeros(())
    for delta_norm, weight_norm in squared_norms(edit, params).values():
        change, weight = change + delta_norm, weight + weight_norm
    return jnp.sqrt(change) / jnp.sqrt(weight)
