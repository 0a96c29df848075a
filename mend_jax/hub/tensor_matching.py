"""Matches the tensors of a model's files with the specs, and says all that does not fit at once."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from mend_jax.errors import WeightsError
from mend_jax.hub.gguf_files import open_gguf
from mend_jax.hub.safetensors_folder import list_safetensors
from mend_jax.hub.source import Source
from mend_jax.hub.stored_tensor import Stored, chunks, made_up, whole
from mend_jax.models.tensor_spec import TensorSpec

MOST_PROBLEMS = 40
_BASE_PREFIXES = ("transformer.", "model.", "bert.", "roberta.", "distilbert.", "gpt_neox.")


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which stored tensor fills which spec, which must be equal, and what does not fit."""

    reads: list[tuple[TensorSpec, Stored]]
    equal: list[tuple[Stored, Stored]]
    problems: list[tuple[str, str]]  # (kind, one line)


def match(
    source: Source,
    specs: Sequence[TensorSpec],
    tied: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> list[tuple[TensorSpec, Stored]]:
    """Finds the stored tensor of every spec; `read_tensors` documents the arguments.

    Returns:
      A pair for each spec, in their order.

    Raises:
      WeightsError: damaged files; or, in one error, every tensor that does not fit.
      ValueError: two specs ask for the same tensor.
    """
    if source.kind == "gguf":
        stored = dict(open_gguf(source.path).tensors)
        names = {_gguf_name(spec, source): spec for spec in specs}
        plan = _plan(stored, names, {}, (), len(specs))
    else:
        stored = list_safetensors(source.path)
        names = {spec.hf: spec for spec in specs}
        plan = _plan(stored, names, tied or {}, ignore, len(specs))
    problems = plan.problems + [p for pair in plan.equal for p in _unequal(*pair)]
    if problems:
        raise WeightsError(_report(source, problems))
    return plan.reads


def _gguf_name(spec: TensorSpec, source: Source) -> str:
    if spec.gguf is None:
        raise WeightsError(
            f"{source.path} is a GGUF file, and this model family has no GGUF names (for "
            f"{spec.hf}). Use the safetensors version of this model."
        )
    return spec.gguf


def _plan(
    stored: Mapping[str, Stored],
    names: Mapping[str, TensorSpec],
    tied: Mapping[str, str],
    ignore: Sequence[str],
    n_specs: int,
) -> _Plan:
    """Matches the names of the file with the names that are asked for."""
    canonical = {_canonical(name): name for name in names}
    if len(canonical) != n_specs:
        raise ValueError("two tensor specs ask for the same tensor")
    copies = {_canonical(copy): _canonical(original) for copy, original in tied.items()}
    prefixes = {name[: len(name) - len(_canonical(name))] for name in (*names, *tied)} | {""}
    problems: list[tuple[str, str]] = []
    found: dict[str, Stored] = {}  # canonical name -> tensor
    for name, tensor in stored.items():
        key = _canonical(name)
        if key in found:
            problems.append(("twice", f"{tensor.describe()} is also there as {found[key].name}"))
        elif key in canonical or key in copies:
            found[key] = tensor
        elif not _ignored(name, key, prefixes, ignore):
            problems.append(("unknown", tensor.describe()))
    equal = []
    for copy, original in copies.items():
        if copy in found and copy not in canonical:
            tensor = found.pop(copy)
            if original in found:
                equal.append((tensor, found[original]))
            else:
                found[original] = tensor
    reads = []
    for key, name in canonical.items():
        spec = names[name]
        if key not in found and spec.optional:
            reads.append((spec, made_up(name, _file_shape(spec), spec.std)))
        elif key not in found:
            hint = spec.missing_hint and f": {spec.missing_hint}"
            problems.append(("missing", f"{name}, expected {list(_file_shape(spec))}{hint}"))
        else:
            reads.append((spec, found[key]))
            problems += _misfit(spec, found[key])
    return _Plan(reads, equal, problems)


def _canonical(name: str) -> str:
    """The name without the prefix of the base model."""
    prefix = next((p for p in _BASE_PREFIXES if name.startswith(p)), "")
    return name[len(prefix) :]


def _ignored(name: str, key: str, prefixes: Iterable[str], patterns: Sequence[str]) -> bool:
    spellings = {name, *(prefix + key for prefix in prefixes)}
    return any(re.fullmatch(p, s) for p in patterns for s in spellings)


def _file_shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(reversed(spec.shape)) if spec.transpose else tuple(spec.shape)


def _misfit(spec: TensorSpec, tensor: Stored) -> list[tuple[str, str]]:
    problems = []
    if tensor.shape != _file_shape(spec):
        expected = f"expected {list(_file_shape(spec))} for {spec.path}"
        problems.append(("misshapen", f"{tensor.describe()}, {expected}"))
    if not tensor.is_float:
        problems.append(("not floating-point", f"{tensor.describe()}, for {spec.path}"))
    if not tensor.listed:
        problems.append(("not in the index", f"{tensor.describe()}, for {spec.path}"))
    return problems


def _unequal(copy: Stored, original: Stored) -> list[tuple[str, str]]:
    """Compares the bytes of two tensors piece by piece, so that equal NaNs are equal."""
    if copy.shape == original.shape and copy.dtype == original.dtype:
        pieces = chunks(whole(copy.shape))
        if all(copy.read_slice(p).tobytes() == original.read_slice(p).tobytes() for p in pieces):
            return []
    return [("untied", f"{copy.describe()} differs from {original.describe()}, its original")]


def _report(source: Source, problems: Sequence[tuple[str, str]]) -> str:
    counts = collections.Counter(kind for kind, _ in problems)
    lines = [f"  {kind}: {line}" for kind, line in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"  and {len(problems) - MOST_PROBLEMS} more")
    summary = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    return (
        f"the tensors in {source.path} do not fit this model ({summary}):\n"
        + "\n".join(lines)
        + "\nShapes are as in the file. Check that the config is the one these weights were saved "
        "with and that the model family is right; if the files are incomplete, fetch them again."
    )
