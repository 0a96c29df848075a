"""Matches the tensors of a model's files with the specs; one error names all mismatches."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mend_jax.errors import WeightsError
from mend_jax.hub.gguf_files import open_gguf, unpermute
from mend_jax.hub.safetensors_folder import QUANTISED, list_safetensors
from mend_jax.hub.stored_tensor import StoredTensor, full_box, initial_tensor, split_box
from mend_jax.hub.weights_source import Source
from mend_jax.models.tensor_spec import TensorSpec

MAX_PROBLEMS = 40  # that one error lists
_BASE_PREFIXES = ("transformer.", "model.", "bert.", "roberta.", "distilbert.", "gpt_neox.")


class _Mismatch(NamedTuple):
    kind: str
    line: str


class _Matches(NamedTuple):
    """Which stored tensor fills which spec, which pairs must be equal, and all mismatches."""

    pairs: list[tuple[TensorSpec, StoredTensor]]
    equal: list[tuple[StoredTensor, StoredTensor]]
    problems: list[_Mismatch]


def match_tensors(
    source: Source,
    specs: Sequence[TensorSpec],
    tied: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> list[tuple[TensorSpec, StoredTensor]]:
    """Return the stored tensor of every spec, in their order, rows in Hugging Face order.

    See `read_tensors` for the arguments.

    Raises:
      WeightsError: damaged files; or, in one error, every tensor that does not match.
      ValueError: two specs name the same tensor.
    """
    is_gguf = source.kind == "gguf"
    if is_gguf:
        stored = dict(open_gguf(source.path).tensors)
        names = {_gguf_name(spec, source): spec for spec in specs}
        matches = _match_names(stored, names, {}, (), len(specs))
    else:
        stored = list_safetensors(source.path)
        names = {spec.hf: spec for spec in specs}
        matches = _match_names(stored, names, tied or {}, ignore, len(specs))
    if not is_gguf:
        _refuse_quantised(source, matches.problems, stored)
    problems = matches.problems + [p for pair in matches.equal for p in _compare_tied(*pair)]
    if problems:
        raise WeightsError(_report(source, problems))
    if not is_gguf:
        return matches.pairs
    return [(spec, _in_hf_order(tensor, spec.gguf_rope_heads)) for spec, tensor in matches.pairs]


def _refuse_quantised(
    source: Source, problems: Sequence[_Mismatch], stored: Mapping[str, StoredTensor]
) -> None:
    """Name quantised weights as such, which differ in every tensor.

    Raises:
      WeightsError: some names are those of quantised checkpoints.
    """
    names = [name for name in stored if QUANTISED.search(name)]
    if problems and names:
        raise WeightsError(
            f"the tensors in {source.path} are quantised ({len(names)} tensors such as {names[0]}),"
            " which cannot be edited: load the model that it was made from, in float32, float16 or "
            "bfloat16, or a GGUF file of it"
        )


def _in_hf_order(tensor: StoredTensor, rope_heads: int) -> StoredTensor:
    """Return the tensor with the rows of rotary heads in Hugging Face order."""
    if not rope_heads:
        return tensor

    def read() -> np.ndarray:
        return unpermute(tensor.read(), rope_heads)

    return dataclasses.replace(tensor, read=read, read_slice=lambda box: read()[box])


def _gguf_name(spec: TensorSpec, source: Source) -> str:
    if spec.gguf is None:
        raise WeightsError(
            f"{source.path} is a GGUF file, and this model family has no GGUF names (for "
            f"{spec.hf}). Use the safetensors version of this model."
        )
    return spec.gguf


def _match_names(
    stored: Mapping[str, StoredTensor],
    names: Mapping[str, TensorSpec],
    tied: Mapping[str, str],
    ignore: Sequence[str],
    n_specs: int,
) -> _Matches:
    """Match the names in the file with the names of the specs."""
    canonical = {_canonical(name): name for name in names}
    if len(canonical) != n_specs:
        raise ValueError("two tensor specs name the same tensor")
    copies = {_canonical(copy): _canonical(original) for copy, original in tied.items()}
    prefixes = {name[: len(name) - len(_canonical(name))] for name in (*names, *tied)} | {""}
    problems: list[_Mismatch] = []
    tensors: dict[str, StoredTensor] = {}  # by canonical name
    for name, tensor in stored.items():
        key = _canonical(name)
        if key in tensors:
            twin = f"{tensor.describe()} is also there as {tensors[key].name}"
            problems.append(_Mismatch("twice", twin))
        elif key in canonical or key in copies:
            tensors[key] = tensor
        elif not _ignored(name, key, prefixes, ignore):
            problems.append(_Mismatch("unknown", tensor.describe()))
    equal = _replace_copies(tensors, {c: o for c, o in copies.items() if c not in canonical})
    pairs = []
    for key, name in canonical.items():
        spec, match = names[name], tensors.get(key)
        if match is not None:
            pairs.append((spec, match))
            problems += _mismatches(spec, match)
        elif spec.optional:
            pairs.append((spec, initial_tensor(name, _file_shape(spec), spec.std)))
        else:
            hint = spec.missing_hint and f": {spec.missing_hint}"
            line = f"{name}, expected {list(_file_shape(spec))}{hint}"
            problems.append(_Mismatch("missing", line))
    return _Matches(pairs, equal, problems)


def _replace_copies(
    tensors: dict[str, StoredTensor], copies: Mapping[str, str]
) -> list[tuple[StoredTensor, StoredTensor]]:
    """Remove tied copies, which replace a missing original; return the pairs that must be equal."""
    equal = []
    for copy, original in copies.items():
        if copy in tensors:
            tensor = tensors.pop(copy)
            if original in tensors:
                equal.append((tensor, tensors[original]))
            else:
                tensors[original] = tensor
    return equal


def _canonical(name: str) -> str:
    """Return the name without the prefix of the base model."""
    prefix = next((p for p in _BASE_PREFIXES if name.startswith(p)), "")
    return name[len(prefix) :]


def _ignored(name: str, key: str, prefixes: Iterable[str], patterns: Sequence[str]) -> bool:
    spellings = {name, *(prefix + key for prefix in prefixes)}
    return any(re.fullmatch(p, s) for p in patterns for s in spellings)


def _file_shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(reversed(spec.shape)) if spec.transpose else tuple(spec.shape)


def _mismatches(spec: TensorSpec, tensor: StoredTensor) -> list[_Mismatch]:
    target = f"{tensor.describe()}, for {spec.path}"
    problems = []
    if tensor.shape != _file_shape(spec):
        expected = f"expected {list(_file_shape(spec))} for {spec.path}"
        problems.append(_Mismatch("misshapen", f"{tensor.describe()}, {expected}"))
    if not tensor.is_float:
        problems.append(_Mismatch("not floating-point", target))
    if not tensor.listed:
        problems.append(_Mismatch("not in the index", target))
    return problems


def _compare_tied(copy: StoredTensor, original: StoredTensor) -> list[_Mismatch]:
    """Compare two tensors piece by piece.

    Of two dtypes one may be the other rounded. A model has one table for both: the original's.
    """
    if copy.shape == original.shape:
        boxes = split_box(full_box(copy.shape))
        pieces = ((copy.read_slice(b), original.read_slice(b)) for b in boxes)
        if all(_is_same(*pair) for pair in pieces):
            return []
    line = f"{copy.describe()} differs from {original.describe()}, its original"
    return [_Mismatch("untied", line)]


def _is_same(x: np.ndarray, y: np.ndarray) -> bool:
    """Return whether the bytes are equal, so that equal NaNs are; or one is the other, rounded."""
    if x.dtype == y.dtype:
        return x.tobytes() == y.tobytes()
    with np.errstate(over="ignore"):  # what is too large for float16
        return np.array_equal(x.astype(y.dtype), y, equal_nan=True) or np.array_equal(
            y.astype(x.dtype), x, equal_nan=True
        )


def _report(source: Source, problems: Sequence[_Mismatch]) -> str:
    counts = collections.Counter(problem.kind for problem in problems)
    lines = [f"  {kind}: {line}" for kind, line in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"  and {len(problems) - MAX_PROBLEMS} more")
    summary = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    return (
        f"the tensors in {source.path} do not fit this model ({summary}):\n"
        + "\n".join(lines)
        + "\nShapes are as in the file. Check that config.json belongs to these weights; if files "
        "are incomplete, fetch them again."
    )
