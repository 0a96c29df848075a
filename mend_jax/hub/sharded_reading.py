"""Reads weights straight onto the devices of a mesh, each device its own slice of each tensor."""

from __future__ import annotations

import collections
import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.hub.source import Source
from mend_jax.hub.stored_tensor import Stored, chunks
from mend_jax.hub.tensor_matching import match
from mend_jax.hub.tensor_reading import read_whole
from mend_jax.models.tensor_spec import TensorSpec

Box = tuple[slice, ...]  # start and stop along every axis
OnRead = Callable[[str, int, tuple[jax.Device, ...]], None]
_ReadBox = Callable[[Box], tuple[np.ndarray, int]]


class Placement(NamedTuple):
    """What one array on the mesh is filled from, and how it is laid out.

    Attributes:
      source: the path of one spec, for an array of its shape; or a tuple of paths of specs of one
        shape, for their stack along a new first axis (also where there is only one).
      sharding: of the array, with its new first axis if it has one.
    """

    source: str | tuple[str, ...]
    sharding: jax.sharding.Sharding


def read_sharded(
    source: Source,
    specs: Sequence[TensorSpec],
    placements: Mapping[str, Placement],
    dtype: np.typing.DTypeLike = np.float32,
    tied: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    on_read: OnRead | None = None,
) -> dict[str, jax.Array]:
    """Builds the arrays of `placements`, reading for each device only the slice that it holds.

    A slice that several devices hold is read once; slices of other hosts' devices are not read.
    Beside the arrays, the host holds less than two of the largest tensors at any time, or a few
    megabytes: a stack is filled on its devices, tensor by tensor. GGUF files have no slices: each
    tensor is decoded as a whole, in the memory of about two, and placed before the next.

    Args:
      source: where to read.
      specs: every tensor of the model; those that no placement takes are checked, but not read.
      placements: name of an array -> what fills it and its sharding.
      dtype: type of the arrays; slices are converted on the host.
      tied: as for `read_tensors`.
      ignore: as for `read_tensors`.
      on_read: called for each slice with the spec's path, how many bytes of the file were read for
        it, and the devices that hold it. Of GGUF, the first slice of a tensor counts all its
        decoded bytes, and the others none.

    Returns:
      The keys of `placements` -> arrays of the shape of their spec, or [n_specs, *shape] for a
      stack, of type `dtype` and with their sharding.

    Raises:
      WeightsError: as `read_tensors` does, before anything is placed.
      ValueError: in one error, every placement that takes a path that no spec has, stacks tensors
        of several shapes, or has a sharding that does not divide its shape; or `dtype` is not one
        that JAX holds; or two specs ask for the same tensor.
    """
    dtype = np.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"arrays of {dtype.name} need jax_enable_x64: set it, or read as another type."
        )
    shapes = _shapes({spec.path: spec for spec in specs}, placements)
    pairs = {spec.path: (spec, tensor) for spec, tensor in match(source, specs, tied, ignore)}
    open_box = _whole_then_box if source.kind == "gguf" else _box_only
    opened = {path: functools.partial(open_box, *pair, dtype) for path, pair in pairs.items()}
    report = on_read or (lambda path, n_bytes, devices: None)
    with jax.set_mesh(None):  # what follows goes by devices, whatever mesh the caller has set
        return {
            name: _place(placement, shapes[name], dtype, opened, report)
            for name, placement in placements.items()
        }


def _shapes(
    specs: Mapping[str, TensorSpec], placements: Mapping[str, Placement]
) -> dict[str, tuple[int, ...]]:
    """The shape of every array; refuses at once all placements that cannot be."""
    shapes, problems = {}, []
    for name, (source, sharding) in placements.items():
        paths = (source,) if isinstance(source, str) else source
        unknown = [path for path in paths if path not in specs]
        parts = {tuple(specs[path].shape) for path in paths if path in specs}
        if unknown or not paths:
            problems.append(f"{name}: no tensor spec fills {', '.join(unknown) or 'it'}")
        elif len(parts) > 1:
            several = ", ".join(str(list(shape)) for shape in sorted(parts))
            problems.append(f"{name}: tensors of one stack have the shapes {several}")
        else:
            stack = () if isinstance(source, str) else (len(paths),)
            shapes[name] = (*stack, *parts.pop())
            if not _divides(sharding, shapes[name]):
                problems.append(f"{name}: the shape {list(shapes[name])} is not cut by {sharding}")
    if problems:
        raise ValueError(
            "these arrays cannot be placed:\n  "
            + "\n  ".join(problems)
            + "\nTake paths of the specs, and shardings whose mesh axes divide the shapes evenly."
        )
    return shapes


def _divides(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> bool:
    try:
        sharding.shard_shape(shape)
    except (ValueError, IndexError):  # IndexError: it names more axes than the shape has
        return False
    return True


def _place(
    placement: Placement,
    shape: tuple[int, ...],
    dtype: np.dtype,
    opened: Mapping[str, Callable[[], _ReadBox]],
    report: OnRead,
) -> jax.Array:
    """Fills one array, tensor by tensor and slice by slice; nothing is left in transit."""
    source, sharding = placement
    stacked = not isinstance(source, str)
    boxes = {
        device: tuple(slice(*s.indices(size)[:2]) for s, size in zip(index, shape, strict=True))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    shards: dict[jax.Device, jax.Array] = {}
    if stacked:
        local = sharding.shard_shape(shape)
        shards = {device: jnp.zeros(local, dtype, device=device) for device in boxes}
    for i, path in enumerate(source if stacked else (source,)):
        read = opened[path]()
        for box, devices in _users(boxes, i if stacked else None).items():
            part, n_bytes = read(tuple(slice(*ends) for ends in box))
            report(path, n_bytes, devices)
            for device in devices:
                shard = jax.device_put(part, device)  # on a CPU it may keep `part` as its memory
                if stacked:
                    at = np.int32(i - boxes[device][0].start)
                    shard = _set_layer(shards.pop(device), shard, at)
                shards[device] = jax.block_until_ready(shard)
            del part
            gc.collect(0)  # JAX lets go of `part` only now, or at its next call: not soon enough
    arrays = [shards[device] for device in boxes]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, at: jax.Array) -> jax.Array:
    """stack[at] = layer, in the memory of `stack` ([n, ...]; layer is [...])."""
    return jax.lax.dynamic_update_index_in_dim(stack, layer, at, 0)


def _users(
    boxes: Mapping[jax.Device, Box], layer: int | None
) -> dict[tuple[tuple[int, int], ...], tuple[jax.Device, ...]]:
    """Each slice of one tensor (of one layer of a stack) -> the devices that hold it."""
    users = collections.defaultdict(tuple)
    for device, box in boxes.items():
        if layer is not None:
            (layers, *box) = box
            if not layers.start <= layer < layers.stop:
                continue
        users[tuple((s.start, s.stop) for s in box)] += (device,)
    return users


def _box_only(spec: TensorSpec, tensor: Stored, dtype: np.dtype) -> _ReadBox:
    """Reads a slice of a tensor, in our orientation, piece by piece into an array of its size."""

    def read(box: Box) -> tuple[np.ndarray, int]:
        part = np.empty([s.stop - s.start for s in box], dtype)
        in_file, target = (box[::-1], part.T) if spec.transpose else (box, part)
        n_bytes = 0
        for piece in chunks(in_file):
            rows = tensor.read_slice(piece)
            at = tuple(
                slice(p.start - s.start, p.stop - s.start)
                for p, s in zip(piece, in_file, strict=True)
            )
            target[at] = rows
            n_bytes += rows.nbytes
        return part, n_bytes

    return read


def _whole_then_box(spec: TensorSpec, tensor: Stored, dtype: np.dtype) -> _ReadBox:
    """Reads a tensor that has no slices at its first slice, and keeps it for the others."""
    array: list[np.ndarray] = []

    def read(box: Box) -> tuple[np.ndarray, int]:
        n_bytes = 0
        if not array:
            array.append(read_whole(spec, tensor, dtype, is_gguf=True))
            n_bytes = array[0].nbytes
        return array[0][box], n_bytes

    return read
