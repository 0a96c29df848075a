"""The transformer block that families fill in, and stacks of it split into trunk and top."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.models.attention import Cache, Context, CrossAttention, Layer, SelfAttention
from mend_jax.models.gate_site import GATE, MATCHES, Gate, Match
from mend_jax.models.layers import MLP, LayerNorm, activation, products_in
from mend_jax.parallel.layout import keep_last_axis_whole

_IS_QUESTION = "is_question"  # of the blocks of a trunk, by a gate's question


class Block(nn.Module):
    """Self-attention, cross-attention where there is a memory, MLP; each with norm and residual.

    A family gives `attention`, `mlp` and `norm`. The norm is applied before each part (pre-norm)
    or after its residual sum (`pre_norm = False`). `plain_sum` says whether a part's output is
    added to the residual unchanged. Names in a checkpoint path: `attn`, `cross`, `mlp` and their
    norms `norm_1`, `norm_cross`, `norm_2`.

    If `context.rows` is set, only those positions leave the block: keys and values are computed
    for all positions, queries and MLP for the wanted rows alone.
    """

    config: Any
    dtype: Any = jnp.float32
    pre_norm: ClassVar[bool] = True
    plain_sum: ClassVar[bool] = True

    def attention(self, name: str) -> nn.Module:
        """Make the self-attention."""
        raise NotImplementedError

    def cross(self, name: str) -> CrossAttention:
        """Make the cross-attention."""
        raise NotImplementedError

    def mlp(self, name: str) -> nn.Module:
        """Make the MLP."""
        raise NotImplementedError

    def norm(self, name: str) -> nn.Module:
        """Make a norm."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None, layer: Layer
    ) -> tuple[Float[Array, "B R D"], Cache | None]:
        attended, cache = self.attention("attn")(self.before("norm_1", x), context, cache, layer)
        x = self.after("norm_1", context.keep_rows(x), attended)
        if context.memory_attend is not None:
            crossed, cache = self.cross("cross")(self.before("norm_cross", x), context, cache)
            x = self.after("norm_cross", x, crossed)
        match = context.match_at_rows()
        return self.after("norm_2", x, self.mlp("mlp")(self.before("norm_2", x), match)), cache

    def before(self, name: str, x: jax.Array) -> jax.Array:
        """Return the input of a part."""
        return self.norm(name)(x) if self.pre_norm else x

    def after(self, name: str, x: jax.Array, y: jax.Array) -> jax.Array:
        """Add a part's output y to the residual x."""
        return keep_last_axis_whole(x + y if self.pre_norm else self.norm(name)(x + y))


class BiasedBlock(Block):
    """A block with LayerNorms and biases everywhere.

    Its config has n_heads, head_dim, d_inner, act and norm_eps.
    """

    fused: ClassVar[bool] = False

    def attention(self, name: str) -> SelfAttention:
        c = self.config
        return SelfAttention(
            c.n_heads, c.n_heads, c.head_dim, fused=self.fused, qkv_bias=True, out_bias=True,
            dtype=self.dtype, name=name,
        )  # fmt: skip

    def cross(self, name: str) -> CrossAttention:
        c = self.config
        return CrossAttention(c.n_heads, c.head_dim, use_bias=True, dtype=self.dtype, name=name)

    def mlp(self, name: str) -> MLP:
        return MLP(self.config.d_inner, activation(self.config.act), dtype=self.dtype, name=name)

    def norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.config.norm_eps, self.dtype, name=name)


class TopOutput(NamedTuple):
    """What leaves the top of a stack.

    Attributes:
      h: the states.
      caches: of the blocks, with this pass filled in; None without a cache.
      match: what the gate found for the tokens, if the pass has one.
    """

    h: Float[Array, "B R D"]
    caches: list[Cache] | None
    match: Match | None


class Stack(NamedTuple):
    """`n_layer` blocks of a model, of which the last `n_top` are unrolled and editable.

    The *trunk* is the rest: stacked, one `lax.scan`. Block i is `{name}_{i}` in a checkpoint path;
    the stacked trunk of `block` is `trunk`, that of `encoder_block` is `encoder_trunk`.
    """

    name: str
    n_layer: int
    n_top: int

    @property
    def n_trunk(self) -> int:
        """The number of blocks of the trunk."""
        return self.n_layer - self.n_top

    @property
    def trunk_name(self) -> str:
        """The trunk's name in a checkpoint path."""
        return trunk_name(self.name)

    def build(self, model: Any, block: Any, config: Any) -> None:
        """Add the blocks to a model; for its `setup`."""
        block = nn.remat(block) if model.remat else block
        if self.n_trunk:
            keeps = model.question_block(self.name) is not None
            scanned = nn.scan(
                _keeping_question(block) if keeps else block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, 0, 0),
                out_axes=0,
                length=self.n_trunk,
            )
            setattr(model, self.trunk_name, scanned(config, model.dtype))
        for i in range(self.n_trunk, self.n_layer):
            setattr(model, f"{self.name}_{i}", block(config, model.dtype))

    def trunk(
        self, model: Any, h: Float[Array, "B T D"], context: Context, cache: Cache | None = None
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Run the stacked blocks; all positions leave them.

        Where the model has a `question` in this stack, the result is [B, T, 2 D]: the states, and
        behind them the input of that block.
        """
        h, number = keep_last_axis_whole(h), model.question_block(self.name)
        question = h
        if self.n_trunk:
            layers = {k: jnp.asarray(v[: self.n_trunk]) for k, v in model.layers(self.name).items()}
            context = dataclasses.replace(context, rows=None)
            trunk = getattr(model, self.trunk_name)
            with products_in(model.trunk_dtype):
                if number is None:
                    return trunk(h, context, cache, layers)
                layers[_IS_QUESTION] = jnp.arange(self.n_trunk) == number
                (h, question), cache = trunk((h, h), context, cache, layers)
        if number is None:
            return h, cache
        question = h if number == self.n_trunk else question
        return jnp.concatenate([h, question], axis=-1), cache

    def top(
        self,
        model: Any,
        h: Float[Array, "B T D"],
        context: Context,
        caches: list[Cache] | None = None,
    ) -> TopOutput:
        """Run the unrolled blocks; `context.rows`, if set, leave the last one.

        Raises:
          ValueError: the gate reads this stack below its top, or another question than the trunk.
        """
        filled, gate, question = [], self._gate(model), h
        edited, own, match = None, context, context.match
        if model.question_block(self.name) is not None:
            h, question = jnp.split(h, 2, axis=-1)
        for i in range(self.n_trunk, self.n_layer):
            if gate is not None and i == gate.site.block:
                states = jnp.concatenate([h, question], axis=-1)
                states = gate.site.read(states, context.attend)
                match = gate(states, context.text_so_far(gate.site))
                model.sow(MATCHES, "match", match)
                own = dataclasses.replace(context, match=match)
                if gate.site.per_text:
                    context = own
                else:
                    edited, own = context.keep_rows(h), own.at_rows()
                    own = dataclasses.replace(own, keys_given=True)
                    context = dataclasses.replace(
                        context, match=gate.of_base_stream(match), keep_keys=True
                    )
            cache = None if caches is None else caches[i - self.n_trunk]
            layer = {k: v[i] for k, v in model.layers(self.name).items()}
            is_last = i == self.n_layer - 1
            here = context if is_last else dataclasses.replace(context, rows=None)
            h, cache = getattr(model, f"{self.name}_{i}")(h, here, cache, layer)
            filled.append(cache)
        if not self.n_top:
            h = context.keep_rows(h)
        if gate is not None and edited is not None:
            kept, in_scope = filled[gate.site.block - self.n_trunk :], gate.in_scope(own.match)
            if caches is None:
                edited = self._edited_stream(model, edited, own, kept)
            else:  # most tokens that are generated match nothing
                edited = nn.cond(
                    in_scope.any(),
                    lambda model, edited: self._edited_stream(model, edited, own, kept),
                    lambda model, edited: edited,
                    model, edited,
                )  # fmt: skip
            h = jnp.where(in_scope[..., None], edited, h)
        return TopOutput(h, None if caches is None else filled, match)

    def _edited_stream(
        self, model: Any, edited: Float[Array, "B R D"], own: Context, kept: list[Any]
    ) -> Float[Array, "B R D"]:
        """Return the last states of edited tokens, given those at the site and the base's keys."""
        first = self.n_layer - len(kept)
        for i, cache in enumerate(kept, first):
            layer = {k: v[i] for k, v in model.layers(self.name).items()}
            edited, _ = getattr(model, f"{self.name}_{i}")(edited, own, cache, layer)
        return edited

    def _gate(self, model: Any) -> Gate | None:
        """Return the gate, if it reads this stack."""
        gate = model.get_variable(GATE, "gate")
        if gate is None or gate.site.stack != self.name:
            return None
        site = gate.site
        if not self.n_trunk <= site.block < self.n_layer:
            raise ValueError(
                f"the gate reads {self.name}_{site.block}, and the editable top begins at "
                f"{self.name}_{self.n_trunk}: load the model with more blocks in its top"
            )
        if site.question != model.question_block(self.name):
            raise ValueError(
                f"the gate reads {self.name}_{site.question} too, and the model keeps the states "
                f"of {model.question}: use scope.reading(model, site)"
            )
        return gate

    def empty_cache(self, block: Cache) -> Cache:
        """Return the cache of all blocks, given that of one."""
        trunk = jax.tree.map(lambda a: jnp.zeros((self.n_trunk, *a.shape), a.dtype), block)
        return {"trunk": trunk if self.n_trunk else None, "top": [block] * self.n_top}


def _keeping_question(block: Any) -> Any:
    """Return a block that also passes on the states of the block that `_IS_QUESTION` is true of."""

    class KeepingQuestion(block):
        """The same block; its states are a pair."""

        def __call__(self, x: Any, context: Context, cache: Cache | None, layer: Layer) -> Any:
            h, question = x
            question = jnp.where(layer[_IS_QUESTION], h, question)
            h, cache = super().__call__(h, context, cache, layer)
            return (h, question), cache

    return KeepingQuestion


def trunk_name(block_name: str) -> str:
    """Return the name of the stacked trunk of such blocks: `block` -> `trunk`."""
    return block_name.removesuffix("block") + "trunk"
