"""Reads weights directly onto the devices of a mesh: each device its slice of each tensor."""

from __future__ import annotations

import collections
import functools
import gc
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.hub.stored_tensor import Box, StoredTensor, split_box
from mend_jax.hub.tensor_matching import match_tensors
from mend_jax.hub.tensor_reading import read_tensor
from mend_jax.hub.weights_source import Source
from mend_jax.models.tensor_spec import TensorSpec

OnRead = Callable[[str, int, tuple[jax.Device, ...]], None]
"""(path of a spec, bytes read from the file, devices that hold the slice) -> None."""
_ReadBox = Callable[[Box], tuple[np.ndarray, int]]
"""Reads a box of a tensor in our orientation; also returns how many bytes it read."""
_LONGEST_WAIT = 0.1  # seconds, for the memory of one slice that is in a stack


class Placement(NamedTuple):
    """What fills one array on the mesh, and how it is laid out.

    Attributes:
      source: the path of one spec, for an array of its shape; or a tuple of paths of specs of one
        shape, for their stack along a new first axis (even for a single path).
      sharding: of the array, including its new first axis.
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
    """Build the arrays of `placements`, reading for each device only the slice that it holds.

    A slice that several devices hold is read once; slices of other hosts' devices are not read.
    Beside the arrays, the host holds less than two of the largest tensors at any time, or a few
    megabytes: a stack is filled on its devices, tensor by tensor. GGUF files have no slices: each
    tensor is decoded as a whole, in the memory of about two, and placed before the next.

    Args:
      source, tied, ignore: see `read_tensors`.
      specs: every tensor of the model; those without a placement are checked, but not read.
      placements: name of an array -> what fills it and its sharding.
      dtype: type of the arrays; slices are converted on the host.
      on_read: called for each slice. For GGUF, the first slice of a tensor counts all its decoded
        bytes, and the others none.

    Returns:
      The keys of `placements` -> arrays of the shape of their spec, or [n_specs, *shape] for a
      stack, of type `dtype` and with their sharding.

    Raises:
      WeightsError: as `read_tensors` does, before anything is placed.
      ValueError: in one error, every placement with an unknown path, a stack of tensors of several
        shapes, or a sharding that does not divide its shape; or JAX does not support `dtype`; or
        two specs name the same tensor.
    """
    dtype = np.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"arrays of {dtype.name} need jax_enable_x64: set it, or read as another type."
        )
    shapes = _shapes({spec.path: spec for spec in specs}, placements)
    readers = {
        spec.path: functools.partial(_box_reader, spec, tensor, dtype)
        for spec, tensor in match_tensors(source, specs, tied, ignore)
    }
    report = on_read or (lambda path, n_bytes, devices: None)
    with jax.set_mesh(None):  # arrays are placed by device, whatever mesh the caller has set
        return {
            name: _place(placement, shapes[name], dtype, readers, report)
            for name, placement in placements.items()
        }


def _shapes(
    specs: Mapping[str, TensorSpec], placements: Mapping[str, Placement]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array; one error names all impossible placements."""
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
    readers: Mapping[str, Callable[[], _ReadBox]],
    report: OnRead,
) -> jax.Array:
    """Fill one array, tensor by tensor and slice by slice, and wait for every transfer."""
    source, sharding = placement
    stacked = not isinstance(source, str)
    paths = (source,) if isinstance(source, str) else source
    boxes = {
        device: tuple(slice(*s.indices(n)[:2]) for s, n in zip(index or (), shape, strict=True))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    shards: dict[jax.Device, jax.Array] = {}
    if stacked:
        local = sharding.shard_shape(shape)
        shards = {device: jnp.zeros(local, dtype, device=device) for device in boxes}
    for i, path in enumerate(paths):
        read = readers[path]()
        for ends, devices in _devices_by_box(boxes, i if stacked else None).items():
            part, n_bytes = read(tuple(slice(*pair) for pair in ends))
            report(path, n_bytes, devices)
            for device in devices:
                shard = jax.device_put(part, device)  # on a CPU it may keep `part` as its memory
                if stacked:
                    at = np.int32(i - boxes[device][0].start)
                    shard = _set_layer(shards.pop(device), shard, at)
                shards[device] = jax.block_until_ready(shard)
            in_transit = weakref.ref(part)
            del part
            _wait_until_freed(in_transit, _LONGEST_WAIT if stacked else 0.0)
    arrays = [shards[device] for device in boxes]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def _wait_until_freed(part: Callable[[], np.ndarray | None], longest_wait: float) -> None:
    """Wait at most `longest_wait` seconds until JAX has freed an array that was put onto devices.

    JAX gives `part` back in a thread of its own, possibly after the array on the device is ready.
    Only then does a garbage collection free it; without one, the next call of JAX does.

    Args:
      part: a weak reference.
    """
    end = time.monotonic() + longest_wait
    gc.collect(0)
    while part() is not None and time.monotonic() < end:
        time.sleep(0.001)
        gc.collect(0)


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, at: jax.Array) -> jax.Array:
    """Set stack[at] = layer, in the memory of `stack` ([n, ...]; layer is [...])."""
    return jax.lax.dynamic_update_index_in_dim(stack, layer, at, 0)


def _devices_by_box(
    boxes: Mapping[jax.Device, Box], layer: int | None
) -> dict[tuple[tuple[int, int], ...], tuple[jax.Device, ...]]:
    """Map each slice of one tensor (of one layer of a stack) to the devices that hold it."""
    users: dict[tuple[tuple[int, int], ...], tuple[jax.Device, ...]]
    users = collections.defaultdict(tuple)
    for device, box in boxes.items():
        if layer is not None:
            if not box[0].start <= layer < box[0].stop:
                continue
            box = box[1:]
        users[tuple((s.start, s.stop) for s in box)] += (device,)
    return users


def _box_reader(spec: TensorSpec, tensor: StoredTensor, dtype: np.dtype) -> _ReadBox:
    """Return a function that reads boxes of one tensor.

    Without slices in the file, the first box reads the whole tensor, which is kept for the others.
    """
    if tensor.has_slices:
        return functools.partial(_read_box, spec, tensor, dtype)
    array: list[np.ndarray] = []

    def read(box: Box) -> tuple[np.ndarray, int]:
        n_bytes = 0
        if not array:
            array.append(read_tensor(spec, tensor, dtype))
            n_bytes = array[0].nbytes
        return array[0][box], n_bytes

    return read


def _read_box(
    spec: TensorSpec, tensor: StoredTensor, dtype: np.dtype, box: Box
) -> tuple[np.ndarray, int]:
    """Read a box piece by piece into an array of its size."""
    part = np.empty([s.stop - s.start for s in box], dtype)
    in_file, target = (box[::-1], part.T) if spec.transpose else (box, part)
    n_bytes = 0
    for piece in split_box(in_file):
        rows = tensor.read_slice(piece)
        at = tuple(
            slice(p.start - s.start, p.stop - s.start) for p, s in zip(piece, in_file, strict=True)
        )
        target[at] = rows
        n_bytes += rows.nbytes
    return part, n_bytes
