"""TPU slices by name: number of chips and devices, shape and memory; also several slices."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from mend_jax.errors import ConfigError, did_you_mean

GIB = 2**30


class Chip(NamedTuple):
    """A generation of TPU (Google Cloud's published figures).

    Attributes:
      hbm_bytes: memory of a device.
      peak_flops: bfloat16 operations per second of a device.
      cores: TensorCores of a chip; the names of v4, v5p and tpu7x slices count them.
      axes: number of axes of the torus.
      kind: `device_kind` in JAX.
      devices: JAX devices of a chip: its cores work as one, or, in tpu7x, as two.
    """

    hbm_bytes: int
    peak_flops: float
    cores: int
    axes: int
    kind: str
    devices: int = 1


CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 2, 3, "TPU v4"),
    "v5e": Chip(16 * GIB, 197e12, 1, 2, "TPU v5 lite"),
    "v5p": Chip(95 * GIB, 459e12, 2, 3, "TPU v5"),
    "v6e": Chip(32 * GIB, 918e12, 1, 2, "TPU v6 lite"),
    "tpu7x": Chip(96 * GIB, 1153.5e12, 2, 3, "TPU7x", devices=2),
}
_ALIASES = {"v5litepod": "v5e", "v7x": "tpu7x"}
_SHAPES_3D = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8),
    256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16),
}  # fmt: skip
_SHAPES_2D = {
    1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16),
    256: (16, 16),
}  # fmt: skip


class Slice(NamedTuple):
    """A TPU slice, or several equal ones that a data-centre network joins.

    Attributes:
      generation: a key of `CHIPS`.
      shape: chips of one slice along each axis of the torus.
      n_slices: how many there are.
    """

    generation: str
    shape: tuple[int, ...]
    n_slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def n_chips(self) -> int:
        """The chips of all slices."""
        return self.n_slices * math.prod(self.shape)

    @property
    def n_devices(self) -> int:
        """The JAX devices of all slices."""
        return self.n_chips * self.chip.devices

    @property
    def topology(self) -> str:
        """The name of one slice by its shape, e.g. `v5e:4x4`."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def shape_name(self) -> str:
        """The name by shape, also of several slices: `v5e:4x4`, `2xv5e:4x4`."""
        return f"{self.n_slices}x" * (self.n_slices > 1) + self.topology

    @property
    def name(self) -> str:
        """Its name by size, as Google Cloud sells it, e.g. `v5e-16`, `v4-8` (4 chips)."""
        size = math.prod(self.shape) * self.chip.cores
        return f"{self.n_slices}x" * (self.n_slices > 1) + f"{self.generation}-{size}"


def parse_slice(text: str) -> Slice:
    """Parse the name of a slice: `v5e:4x4`, or `v5e-16`, `v5litepod-16`, `v4-8` (4 chips).

    `2xv5e:4x4` and `2xv5e-16` are two slices.

    Raises:
      ConfigError: an unknown generation, a malformed name, or a size that does not exist.
    """
    pattern = r"(?:([1-9]\d*)x)?([a-z]\w*?)(?::(\d+(?:x\d+){1,2})|-(\d+))"
    match = re.fullmatch(pattern, text.strip().lower())
    if not match:
        raise ConfigError(
            f"{text!r} names no TPU slice: give a shape, such as v5e:4x4, or a size, such as "
            "v5e-16; 2xv5e-16 are two of them"
        )
    count, given, by_shape, by_size = int(match[1] or 1), *match.groups()[1:]
    generation = _ALIASES.get(given, given)
    if generation not in CHIPS:
        raise ConfigError(
            f"{text!r}: TPU {given!r} is not known{did_you_mean(given, list(CHIPS))}; known: "
            f"{', '.join(CHIPS)}"
        )
    chip = CHIPS[generation]
    if by_shape:
        shape = tuple(int(n) for n in by_shape.split("x"))
        if len(shape) != chip.axes or min(shape) < 1:
            example = "2x4" if chip.axes == 2 else "2x2x1"
            raise ConfigError(
                f"{text!r}: a {generation} slice has {chip.axes} axes, e.g. {generation}:{example}"
            )
        return Slice(generation, shape, count)
    shapes = _SHAPES_2D if chip.axes == 2 else _SHAPES_3D
    size = int(by_size)
    if size % chip.cores or size // chip.cores not in shapes:
        sizes = ", ".join(f"{generation}-{n * chip.cores}" for n in shapes)
        raise ConfigError(f"{text!r} is not a size of a slice: give one of {sizes}, or a shape")
    return Slice(generation, shapes[size // chip.cores], count)


def slices_of_generation(generation: str) -> list[Slice]:
    """Return all slices of a generation, smallest first."""
    shapes = _SHAPES_2D if CHIPS[generation].axes == 2 else _SHAPES_3D
    return [Slice(generation, shape) for shape in shapes.values()]


def hbm_bytes_of(kind: str) -> int | None:
    """Return the memory of a device by its `device_kind`; None if it is not a known TPU."""
    return next((c.hbm_bytes for c in CHIPS.values() if c.kind == kind), None)
