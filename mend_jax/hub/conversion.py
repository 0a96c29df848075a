"""Converts a published model to what the loader reads: safetensors, tokenizer.json, config.json."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mend_jax.errors import OutputError, WeightsError
from mend_jax.hub.export_common import COPIED_FILES
from mend_jax.hub.hf_config import read_model_config
from mend_jax.hub.safetensors_folder import list_safetensors
from mend_jax.hub.safetensors_writer import n_bytes, write_safetensors
from mend_jax.hub.stored_tensor import StoredTensor
from mend_jax.hub.tokenizer import load_tokenizer
from mend_jax.hub.tokenizer_conversion import write_tokenizer
from mend_jax.hub.torch_files import list_torch_folder
from mend_jax.hub.two_label_head import label_names, one_label_config, one_label_head, true_row
from mend_jax.hub.weights_source import Source, fetch_unconverted
from mend_jax.io.file_locks import locked
from mend_jax.io.files import named_os_errors, write_json
from mend_jax.io.progress import Progress
from mend_jax.models import Family, find_family
from mend_jax.models.family import parse_config

MAX_SHARD_BYTES = 5_000_000_000
_MIB = 1 << 20


class Conversion(NamedTuple):
    """What a conversion wrote.

    Attributes:
      folder: where.
      files: every file and its size in bytes.
      tensors: how many tensors were written.
      dropped: copies of tied weights that were left out, each with its original.
    """

    folder: Path
    files: dict[str, int]
    tensors: int
    dropped: dict[str, str]


def convert(
    spec: str | Path,
    destination: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    true_label: str | None = None,
) -> Conversion:
    """Write the model `spec` as a folder that `load_model` reads; no code of its files runs.

    Everything is written to a hidden folder beside `destination`, which is renamed at the end. One
    tensor is in memory at a time.

    Args:
      spec: a local folder, or a Hugging Face id, with config.json, a tokenizer's files, and weights
        as *.safetensors or as *.bin of torch.save, in one file or in shards with an index.
      destination: a folder that does not exist or is empty.
      max_shard_bytes: the largest size of a shard, unless it is a single tensor.
      true_label: for a classifier of two labels, the one that says a claim is true.

    Raises:
      WeightsError: the model is not supported, incomplete or damaged, or names code in a pickle.
      OutputError: `destination` is not empty, is the source, or cannot be written.
    """
    if "://" in str(destination):
        raise OutputError(
            f"cannot convert to {destination}: give a folder on a local disk, and copy it later"
        )
    destination = Path(destination).expanduser()
    _check_destination(destination, Path(spec).expanduser())
    if max_shard_bytes < 1:
        raise WeightsError(f"a shard of {max_shard_bytes} bytes: give at least 1")
    source = fetch_unconverted(spec)
    config = read_model_config(Source("safetensors", source, str(spec)))
    family = find_family(config)
    row = _true_row(family, config, true_label)
    changed = config if row is None else one_label_config(config)
    own_names = {spec.hf for spec in family.tensor_specs(parse_config(family, changed))}
    stored = _list_tensors(source)
    tensors = stored if row is None else one_label_head(stored, row)
    dropped = _tied_copies(family, own_names, tensors)
    kept = [tensor for name, tensor in tensors.items() if name not in dropped]
    total = sum(map(n_bytes, kept))
    with _renamed_at_the_end(destination, total) as folder:
        if not (source / "tokenizer.json").is_file():
            write_tokenizer(source, folder, config)
        _copy_files(source, folder)
        write_json(folder / "config.json", changed)
        _check_tokenizer(source, folder)
        progress = Progress("convert (MiB)", max(total // _MIB, 1))
        write_safetensors(
            folder, kept, max_shard_bytes, lambda done, name: progress.update(done // _MIB, name)
        )
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return Conversion(destination, files, len(kept), dropped)


def _copy_files(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files of the model as they are; its own names of tokens are kept."""
    for name in COPIED_FILES:
        if (source / name).is_file():
            with named_os_errors(folder / name):
                shutil.copyfile(source / name, folder / name)


def _check_tokenizer(source: Path, folder: Path) -> None:
    try:
        load_tokenizer(Source("safetensors", folder, str(source)))
    except WeightsError as error:  # the files of `folder` are those of `source`
        raise WeightsError(str(error).replace(str(folder), str(source))) from error


def _check_destination(destination: Path, source: Path) -> None:
    if source.exists() and destination.resolve() == source.resolve():
        raise OutputError(f"{destination} is the folder of the model itself: give another one")
    if os.path.lexists(destination) and not destination.is_dir():
        raise OutputError(f"{destination} is not a folder: give one that does not exist")
    if destination.is_dir() and any(destination.iterdir()):
        raise OutputError(
            f"{destination} is not empty: give a folder that does not exist, or delete this one"
        )


def _true_row(family: Family, config: Mapping[str, Any], true_label: str | None) -> int | None:
    """Return the true row of a head of two labels; None: the head stays as it is."""
    if true_label is not None:
        if family.model_class.kind != "classifier":
            raise WeightsError(
                f"--true_label={true_label}: a {config['model_type']} model has no labels; leave "
                "the option out"
            )
        return true_row(config, true_label)
    labels = label_names(config)
    if family.model_class.kind == "classifier" and len(labels) == 2:
        raise WeightsError(
            f"config.json has the labels {labels[0]} and {labels[1]}, and the converted head has "
            f"one logit: add --true_label={labels[1]}, or the other, whichever says that a claim "
            "is true"
        )
    return None


def _list_tensors(source: Path) -> dict[str, StoredTensor]:
    if any(source.glob("*.safetensors")) or any(source.glob("*.safetensors.index.json")):
        stored = list_safetensors(source)
    else:
        stored = list_torch_folder(source)
    if not stored:
        raise WeightsError(f"the weights in {source} hold no tensor: fetch them again.")
    return stored


def _tied_copies(
    family: Family, own_names: Collection[str], tensors: Mapping[str, StoredTensor]
) -> dict[str, str]:
    """Return the tied copies that are the same memory as their original, which is there too.

    A model that names such a tensor as its own, as an untied T5 does with lm_head, keeps it.
    """
    return {
        copy: original
        for copy, original in family.tied.items()
        if copy in tensors
        and original in tensors
        and copy not in own_names
        and tensors[copy].memory is not None
        and tensors[copy].memory == tensors[original].memory
    }


@contextlib.contextmanager
def _renamed_at_the_end(destination: Path, n_bytes: int) -> Iterator[Path]:
    """Give a hidden folder beside `destination`, which becomes it if the block ends well."""
    parent = destination.absolute().parent
    scratch = parent / f".{destination.name}.unfinished"
    with named_os_errors(destination):
        scratch.mkdir(parents=True, exist_ok=True)
    try:
        lock = contextlib.ExitStack()
        lock.enter_context(locked(scratch, wait=False, best_effort=True))
    except BlockingIOError as error:
        raise OutputError(f"another process is converting to {destination}: wait for it") from error
    with lock:
        try:
            _empty(scratch)  # of a conversion that was killed
            _check_space(parent, n_bytes)
            yield scratch
            with named_os_errors(destination):
                os.rename(scratch, destination.absolute())
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _empty(folder: Path) -> None:
    with named_os_errors(folder):
        for path in folder.iterdir():
            path.unlink()


def _check_space(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OutputError(
            f"the converted weights have {n_bytes} bytes, and {folder} has {free} free: make room, "
            "or give a folder on another disk"
        )
