"""The transformer block that families fill in, and stacks of it split into trunk and top."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mend_jax.models.attention import Cache, Context, CrossAttention, Layer
from mend_jax.parallel.layout import keep_last_axis_whole


class Block(nn.Module):
    """Self-attention, cross-attention where there is a memory, MLP; each with norm and residual.

    A family gives `attention`, `mlp` and `norm`. The norm stands before each part (pre-norm), or
    after its residual sum (`pre_norm = False`). `plain_sum` says whether what a part puts out is
    added to the residual as it is. Names in a checkpoint path: `attn`, `cross`, `mlp` and their
    norms `norm_1`, `norm_cross`, `norm_2`.

    Where `context.rows` is set only those positions leave the block: keys and values are made of
    all, queries and MLP of the wanted rows alone.
    """

    config: Any
    dtype: Any = jnp.float32
    pre_norm: ClassVar[bool] = True
    plain_sum: ClassVar[bool] = True

    def attention(self, name: str) -> nn.Module:
        raise NotImplementedError

    def cross(self, name: str) -> CrossAttention:
        raise NotImplementedError

    def mlp(self, name: str) -> nn.Module:
        raise NotImplementedError

    def norm(self, name: str) -> nn.Module:
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, context: Context, cache: Cache | None, layer: Layer
    ) -> tuple[jax.Array, Cache | None]:
        attended, cache = self.attention("attn")(
            self.before("norm_1", x_BxTxD), context, cache, layer
        )
        x = self.after("norm_1", context.keep(x_BxTxD), attended)
        if context.memory_attend is not None:
            crossed, cache = self.cross("cross")(self.before("norm_cross", x), context, cache)
            x = self.after("norm_cross", x, crossed)
        return self.after("norm_2", x, self.mlp("mlp")(self.before("norm_2", x))), cache

    def before(self, name: str, x: jax.Array) -> jax.Array:
        return self.norm(name)(x) if self.pre_norm else x

    def after(self, name: str, x: jax.Array, y: jax.Array) -> jax.Array:
        return keep_last_axis_whole(x + y if self.pre_norm else self.norm(name)(x + y))


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
        return self.n_layer - self.n_top

    @property
    def trunk_name(self) -> str:
        return trunk_name(self.name)

    def build(self, model: nn.Module, block: type[nn.Module], config: Any) -> None:
        """Adds the blocks to a model; for its `setup`."""
        block = nn.remat(block) if model.remat else block
        if self.n_trunk:
            scanned = nn.scan(
                block,
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
        self, model: nn.Module, h: jax.Array, context: Context, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """The stacked blocks; all positions leave them."""
        h = keep_last_axis_whole(h)
        if not self.n_trunk:
            return h, cache
        layers = {k: jnp.asarray(v[: self.n_trunk]) for k, v in model.layers(self.name).items()}
        return getattr(model, self.trunk_name)(h, context.replace(rows=None), cache, layers)

    def top(
        self, model: nn.Module, h: jax.Array, context: Context, caches: list[Cache] | None = None
    ) -> tuple[jax.Array, list[Cache] | None]:
        """The unrolled blocks; `context.rows`, if set, leave the last one."""
        filled = []
        for i in range(self.n_trunk, self.n_layer):
            cache = None if caches is None else caches[i - self.n_trunk]
            layer = {k: v[i] for k, v in model.layers(self.name).items()}
            here = context if i == self.n_layer - 1 else context.replace(rows=None)
            h, cache = getattr(model, f"{self.name}_{i}")(h, here, cache, layer)
            filled.append(cache)
        if not self.n_top:
            h = context.keep(h)
        return h, (None if caches is None else filled)

    def empty_cache(self, block: Cache) -> dict[str, Any]:
        """The cache of all blocks from that of one."""
        trunk = jax.tree.map(lambda a: jnp.zeros((self.n_trunk, *a.shape), a.dtype), block)
        return {"trunk": trunk if self.n_trunk else None, "top": [block] * self.n_top}


def trunk_name(block_name: str) -> str:
    """What the stacked trunk of blocks of this name is called: `block` -> `trunk`."""
    return block_name.removesuffix("block") + "trunk"
