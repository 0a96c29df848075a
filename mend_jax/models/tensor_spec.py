"""The tensors of a base model: their names and shapes with us and in files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One base tensor: its name with us, in a Hugging Face file and in a GGUF file.

    Attributes:
      path: our flat name, `/`-joined, one entry per block, e.g. `block_3/mlp/up/kernel`.
      shape: our shape; a matmul kernel is always [d_in, d_out].
      hf: Hugging Face tensor name, e.g. `model.layers.3.mlp.up_proj.weight`.
      transpose: True where Hugging Face stores the kernel as [d_out, d_in].
      gguf: GGUF tensor name, e.g. `blk.3.ffn_up.weight`, or None if the family has no GGUF map.
      gguf_rope_heads: > 0 for the queries and keys of families whose GGUF rows are reordered
        for interleaved rotary pairs; the number of heads in this tensor.
      optional: where the file lacks it, it is drawn from N(0, std^2), the same each time.
      std: standard deviation of such a tensor; 0 gives zeros.
      missing_hint: advice for a user whose file lacks it.
    """

    path: str
    shape: tuple[int, ...]
    hf: str
    transpose: bool = False
    gguf: str | None = None
    gguf_rope_heads: int = 0
    optional: bool = False
    std: float = 0.0
    missing_hint: str = ""


def linear_specs(
    ours: str,
    theirs: str,
    d_in: int,
    d_out: int,
    *,
    bias: bool = False,
    transpose: bool = True,
    gguf: str | None = None,
    gguf_rope_heads: int = 0,
) -> list[TensorSpec]:
    """Return the specs of a matmul `ours/kernel` (and `ours/bias`).

    Args:
      transpose: the file holds [d_out, d_in], as torch Linear does.
    """

    def spec(name: str, part: str, shape: tuple[int, ...], transpose: bool) -> TensorSpec:
        in_gguf = gguf and f"{gguf}.{part}"
        return TensorSpec(
            f"{ours}/{name}", shape, f"{theirs}.{part}", transpose, in_gguf, gguf_rope_heads
        )

    specs = [spec("kernel", "weight", (d_in, d_out), transpose)]
    return specs + [spec("bias", "bias", (d_out,), False)] * bias


def linears_specs(
    ours: str,
    theirs: str,
    rows: Iterable[tuple[str, str, int, int, bool]],
    *,
    transpose: bool = True,
) -> list[TensorSpec]:
    """Return the specs of several matmuls of a block.

    Args:
      rows: (our name, their name, d_in, d_out, whether it has a bias) of each.
    """
    return [
        spec
        for role, name, d_in, d_out, bias in rows
        for spec in linear_specs(
            f"{ours}/{role}", f"{theirs}.{name}", d_in, d_out, bias=bias, transpose=transpose
        )
    ]


def norm_specs(
    ours: str, theirs: str, width: int, *, bias: bool = False, gguf: str | None = None
) -> list[TensorSpec]:
    """Return the specs of a norm's `ours/scale` (and `ours/bias`)."""
    scale = TensorSpec(
        f"{ours}/scale", (width,), f"{theirs}.weight", gguf=gguf and f"{gguf}.weight"
    )
    return [scale] + [TensorSpec(f"{ours}/bias", (width,), f"{theirs}.bias")] * bias


def without_gguf(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the specs of a family whose GGUF files are not supported, from those it extends."""
    return [dataclasses.replace(spec, gguf=None, gguf_rope_heads=0) for spec in specs]
