"""python -m mend_jax.training.pretrained --workdir=DIR --out=FILE.safetensors [--dtype=int8]

Shipped editors: trained editors that come with the package, and the command that writes such a file
from a finished run. One file is one editor for one base: its parameters and statistics as tensors
by path (`params/...`, `state/...`), and metadata about its training and scores. In int8 a matrix is
integers from -127 to 127 and a float32 `PATH/int8_scale` for each row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mend_jax.errors import CheckpointError, ConfigError, MendError, report_error
from mend_jax.io import array_files
from mend_jax.io.command import command
from mend_jax.io.files import as_path, replace_non_finite, write_bytes
from mend_jax.io.json_values import parse_json

FORMAT = "mend_jax_shipped_editor/2"
_OLD_FORMAT = "mend_jax_shipped_editor/1"
FOLDER = Path(__file__).parent / "pretrained_editors"
MOST_BYTES = 10_000_000
"""Of an editor; with its scope (`pretrained_scopes`) it is below 12 MB."""
DTYPES = ("int8", "bfloat16", "float32")
_SCALE = "/int8_scale"
_PARTS = ("params", "state")
_TEXTS = ("base", "command", "dtype", "name", "spec", "tokenizer")
_TRAINED_FACTS = 1  # an edit, where a file does not say it
_VALUES = ("append_eos", "config", "numbers", "seed", "weights")  # JSON texts in the old format


def names() -> dict[str, str]:
    """Return the shipped editors, fingerprint of the base -> name."""
    return {describe(path.stem)["base"]: path.stem for path in sorted(FOLDER.glob("*.safetensors"))}


def describe(name: str) -> dict[str, Any]:
    """Return the description of a shipped editor.

    Returns:
      `name`, `base` and `tokenizer` (fingerprints), `spec` (of the base), `weights` (the edited
      ones), `config` (the run's editor section), `append_eos`, `trained_facts` (of one edit),
      `command` and `seed` (of the training), `numbers` (the run's results, measured in float32),
      `dtype` (of its matrices), `sha256` (of tensors and metadata).

    Raises:
      ConfigError: there is none of that name.
      CheckpointError: its file is damaged.
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        known = sorted(p.stem for p in FOLDER.glob("*.safetensors"))
        raise ConfigError(f"no editor {name!r} is shipped; known: {known}")
    return _read(path, verify=False)[0]


def load(model: Any) -> Any:
    """Return the shipped `mend_jax.Editor` of a base.

    Raises:
      ConfigError: none is shipped for this base, or the base was loaded for other edits.
      CheckpointError: its file is damaged.
    """
    known = names()
    if model.fingerprint not in known:
        specs = [describe(name)["spec"] for name in known.values()] or "none"
        advice = model.dtype_hint([*known]) or (
            "train one with `python -m mend_jax.main`, or use one without training"
        )
        raise ConfigError(
            f"no editor is shipped for {model.spec} ({model.fingerprint}), only for: {specs}; "
            f"{advice}"
        )
    return read(FOLDER / f"{known[model.fingerprint]}.safetensors", model)


def read(path: str | Path, model: Any) -> Any:
    """Return the `mend_jax.Editor` of a file, placed on the mesh of its base.

    Raises:
      CheckpointError: no such file, a damaged one, or one for another base.
      ConfigError: the base was loaded so that other weights can be edited.
    """
    import jax
    import ml_collections
    import numpy as np

    from mend_jax.parallel.mesh import mesh_of_arrays
    from mend_jax.parallel.sharding import key_path_name, place
    from mend_jax.training import pretrained_scopes
    from mend_jax.training.assembly import base_identity, build_editor
    from mend_jax.training.checkpoints import refuse_other_run
    from mend_jax.training.config_keys import with_added_keys
    from mend_jax.training.restored_editor import Editor

    meta, stored = _read(path)
    flat = _dequantised(stored)
    refuse_other_run(meta, base_identity(model), path)
    config = with_added_keys({"editor": meta["config"]})
    transform = build_editor(ml_collections.ConfigDict(config))
    shapes = jax.eval_shape(lambda key: transform.init(key, model.weights), jax.random.key(0))
    like = dict(zip(_PARTS, shapes, strict=True))
    needed = {key_path_name(keys): leaf.shape for keys, leaf in jax.tree.leaves_with_path(like)}
    stored_shapes = {name: array.shape for name, array in flat.items()}
    names = {*needed, *stored_shapes}
    if wrong := sorted(name for name in names if stored_shapes.get(name) != needed.get(name)):
        raise CheckpointError(
            f"{path}: {wrong} do not match editor {meta['config']['name']!r}: write the file again "
            "with this version"
        )
    tree = jax.tree.map_with_path(lambda k, x: np.asarray(flat[key_path_name(k)], x.dtype), like)
    params, state = place(mesh_of_arrays(model.params), tree, transform.sharding_rules).values()
    return Editor(
        model, transform, params, state, meta["append_eos"], meta["config"]["name"],
        pretrained_scopes.find(model), meta["trained_facts"],
    )  # fmt: skip


def write(workdir: str | Path, path: str | Path, dtype: str = "int8") -> dict[str, Any]:
    """Write the trained editor of a finished run as a file to ship.

    Args:
      workdir: of `python -m mend_jax.main`; `train.keep_checkpoint` names the step.
      path: NAME.safetensors; the name is the editor's.
      dtype: of the matrices, "int8", "bfloat16" or "float32". Vectors (statistics, biases, step
        sizes) are small and keep their dtype.

    Returns:
      Its description, see `describe`.

    Raises:
      ConfigError: an unknown dtype, another ending, or a file above `MOST_BYTES`.
      CheckpointError: the run is not finished, or damaged.
    """
    import jax
    import numpy as np

    from mend_jax.parallel.sharding import key_path_name
    from mend_jax.training.assembly import base_identity
    from mend_jax.training.restored_editor import Editor
    from mend_jax.training.run_folder import read_results

    path = Path(path)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, one of {DTYPES} is needed")
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a shipped editor is a file NAME.safetensors")
    editor = Editor.restore(workdir)
    results = read_results(as_path(workdir))
    if results is None:
        raise CheckpointError(
            f"{workdir} has no results.json: let the run finish, so that its scores are known"
        )
    tree = dict(zip(_PARTS, (editor.params, editor.state), strict=True))
    tensors: dict[str, Any] = {}
    for keys, leaf in jax.tree.leaves_with_path(jax.device_get(tree)):
        array, name = np.asarray(leaf), key_path_name(keys)
        tensors |= _quantised(name, array, dtype) if array.ndim > 1 else {name: array}
    config = results["config"]
    description = {
        **base_identity(editor.model),
        "name": path.stem,
        "spec": editor.model.spec,
        "dtype": dtype,
        "config": config["editor"],
        "append_eos": editor.append_eos,
        "trained_facts": editor.trained_facts,
        "command": f"python -m mend_jax.main --config={results['config_name']}",
        "seed": config["seed"],
        "numbers": replace_non_finite(_numbers(results)),
    }
    data = array_files.encode(FORMAT, tensors, description)
    if len(data) > MOST_BYTES:
        raise ConfigError(
            f"{path} would be {len(data):,} bytes, more than the {MOST_BYTES:,} that a shipped "
            "editor may have: train one of a smaller editor.options.rank, or use int8"
        )
    write_bytes(path, data)
    return _read(path)[0]


def _quantised(name: str, matrix: Any, dtype: str) -> dict[str, Any]:
    """Return the stored tensors of a float32 matrix [..., rows, columns]."""
    import ml_dtypes
    import numpy as np

    if dtype != "int8":
        return {name: matrix.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)}
    largest = np.abs(matrix).max(-1, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    return {name: np.rint(matrix / scale).astype(np.int8), name + _SCALE: scale}


def _dequantised(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors, with int8 matrices multiplied by the scales of their rows."""
    import numpy as np

    return {
        name: array.astype(np.float32) * tensors[name + _SCALE] if array.dtype == np.int8 else array
        for name, array in tensors.items()
        if not name.endswith(_SCALE)
    }


def _numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of results.json without its larger details."""
    left_out = ("by_relation", "faults", "peak_memory_bytes")
    scores = {k: v for k, v in results["eval"].items() if k not in left_out}
    return {"eval": scores, "training": results.get("training", {})}


def _old_digest(tensors: Mapping[str, Any], config: Any) -> str:
    """Return the checksum of the old format, of tensors and config."""
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        total.update(f"|{name}|{array.dtype.name}|{list(array.shape)}|".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _read(path: str | Path, verify: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (metadata, tensors) of a file in this format or the old one.

    Without `verify` the tensors are not compared with the checksum.
    """
    file = array_files.read(
        path, FORMAT, kind="editor file", old_formats=[_OLD_FORMAT], verify=verify
    )
    old = file.format == _OLD_FORMAT
    try:
        values = {k: parse_json(file.metadata[k]) if old else file.metadata[k] for k in _VALUES}
        meta = {k: file.metadata[k] for k in _TEXTS} | values | {"sha256": file.sha256}
        meta["trained_facts"] = _positive(file.metadata.get("trained_facts", _TRAINED_FACTS))
    except (KeyError, ValueError) as e:
        raise CheckpointError(f"{path}: its metadata is damaged ({e!r}); get it again") from e
    if verify and old and _old_digest(file.arrays, meta["config"]) != file.sha256:
        raise CheckpointError(f"{path}: its tensors are not those that were written; get it again")
    return meta, file.arrays


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} facts an edit")
    return value


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when the file is written, 2 for an error with a message."""
    parser = argparse.ArgumentParser(
        prog="python -m mend_jax.training.pretrained", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--workdir", required=True, help="of a finished run")
    parser.add_argument("--out", required=True, help="the file, NAME.safetensors")
    parser.add_argument("--dtype", default="int8", choices=DTYPES)
    args = parser.parse_args(argv)
    try:
        written = write(args.workdir, args.out, args.dtype)
    except MendError as e:
        return report_error(e)
    size = Path(args.out).stat().st_size
    print(
        f"{args.out}: {size:,} bytes, {written['dtype']}, for {written['spec']} ({written['base']})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
