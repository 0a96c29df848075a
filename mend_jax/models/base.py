"""What every model family tells the rest of the library about its tensors."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One base tensor: where it lives with us, in a Hugging Face file and in a GGUF file.

    Attributes:
      path: our flat name, `/`-joined, one entry per block, e.g. `block_3/mlp/up/kernel`.
      shape: our shape; a matmul kernel is always [d_in, d_out].
      hf: Hugging Face tensor name, e.g. `model.layers.3.mlp.up_proj.weight`.
      transpose: True where Hugging Face stores the kernel as [d_out, d_in].
      gguf: GGUF tensor name, e.g. `blk.3.ffn_up.weight`, or None if the family has no GGUF map.
      gguf_rope_heads: > 0 for the query and key kernels of families whose GGUF rows are reordered
        for interleaved rotary pairs; the number of heads in this tensor.
    """

    path: str
    shape: tuple[int, ...]
    hf: str
    transpose: bool = False
    gguf: str | None = None
    gguf_rope_heads: int = 0
