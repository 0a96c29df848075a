"""TPU slices by name: number of chips, shape and memory."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from mend_jax.errors import ConfigError, did_you_mean

GIB = 2**30


class Chip(NamedTuple):
    """A generation of TPU (Google Cloud's published figures).

    Attributes:
      hbm_bytes: memory of a chip.
      peak_flops: bfloat16 operations per second of a chip.
      cores: TensorCores of a chip; the names of v4 and v5p slices count them.
      axes: number of axes of the torus.
      kind: `device_kind` in JAX.
    """

    hbm_bytes: int
    peak_flops: float
    cores: int
    axes: int
    kind: str


CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 2, 3, "TPU v4"),
    "v5e": Chip(16 * GIB, 197e12, 1, 2, "TPU v5 lite"),
    "v5p": Chip(95 * GIB, 459e12, 2, 3, "TPU v5"),
    "v6e": Chip(32 * GIB, 918e12, 1, 2, "TPU v6 lite"),
}
_ALIASES = {"v5litepod": "v5e"}
_SHAPES_3D = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8),
    256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16),
}  # fmt: skip
_SHAPES_2D = {
    1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16),
    256: (16, 16),
}  # fmt: skip


class Slice(NamedTuple):
    """A TPU slice.

    Attributes:
      generation: a key of `CHIPS`.
      shape: chips along each axis of the torus.
    """

    generation: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def n_chips(self) -> int:
        return math.prod(self.shape)

    @property
    def topology(self) -> str:
        """Its name by shape, e.g. `v5e:4x4`."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def name(self) -> str:
        """Its name by size, as Google Cloud sells it, e.g. `v5e-16`, `v4-8` (4 chips)."""
        return f"{self.generation}-{self.n_chips * self.chip.cores}"


def parse_slice(text: str) -> Slice:
    """Parse the name of a slice: `v5e:4x4`, or `v5e-16`, `v5litepod-16`, `v4-8` (4 chips).

    Raises:
      ConfigError: an unknown generation, a malformed name, or a size that does not exist.
    """
    match = re.fullmatch(r"(\w+?)(?::(\d+(?:x\d+){1,2})|-(\d+))", text.strip().lower())
    if not match:
        raise ConfigError(
            f"{text!r} names no TPU slice: give a shape, such as v5e:4x4, or a size, such as v5e-16"
        )
    generation = _ALIASES.get(match[1], match[1])
    if generation not in CHIPS:
        raise ConfigError(
            f"{text!r}: TPU {match[1]!r} is not known{did_you_mean(match[1], list(CHIPS))}; known: "
            f"{', '.join(CHIPS)}"
        )
    chip = CHIPS[generation]
    if match[2]:
        shape = tuple(int(n) for n in match[2].split("x"))
        if len(shape) != chip.axes or min(shape) < 1:
            example = "2x4" if chip.axes == 2 else "2x2x1"
            raise ConfigError(
                f"{text!r}: a {generation} slice has {chip.axes} axes, e.g. {generation}:{example}"
            )
        return Slice(generation, shape)
    shapes = _SHAPES_2D if chip.axes == 2 else _SHAPES_3D
    size = int(match[3])
    if size % chip.cores or size // chip.cores not in shapes:
        sizes = ", ".join(f"{generation}-{n * chip.cores}" for n in shapes)
        raise ConfigError(f"{text!r} is not a size of a slice: give one of {sizes}, or a shape")
    return Slice(generation, shapes[size // chip.cores])


def slices_of_generation(generation: str) -> list[Slice]:
    """Return all slices of a generation, smallest first."""
    shapes = _SHAPES_2D if CHIPS[generation].axes == 2 else _SHAPES_3D
    return [Slice(generation, shape) for shape in shapes.values()]


def hbm_bytes_of(kind: str) -> int | None:
    """Return the memory of a device by its `device_kind`; None if it is not a known TPU."""
    return next((c.hbm_bytes for c in CHIPS.values() if c.kind == kind), None)
