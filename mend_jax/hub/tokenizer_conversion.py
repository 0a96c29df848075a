"""Makes tokenizer.json from the older files of a vocabulary: merges, word pieces, SentencePiece."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tokenizers
from tokenizers import AddedToken

from mend_jax.errors import WeightsError
from mend_jax.hub.hf_config import read_json
from mend_jax.io.files import write_json

VOCABULARY_FILES = ("vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
"""Any of these holds a vocabulary."""

_T5_SENTINELS = 100
_T5_SPECIAL = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def write_tokenizer(source: Path, folder: Path, config: Mapping[str, Any]) -> None:
    """Write tokenizer.json and tokenizer_config.json of the model in `source` to `folder`.

    Args:
      source: a folder without tokenizer.json.
      folder: an existing folder.
      config: the model's config.json.

    Raises:
      WeightsError: `source` has no vocabulary, one that cannot be read, or one that is larger than
        the model's; or a package is missing that reads it.
    """
    held = [name for name in VOCABULARY_FILES if (source / name).is_file()]
    if not held:
        raise WeightsError(
            f"{source} has no tokenizer.json and none of {', '.join(VOCABULARY_FILES)}: copy the "
            "tokenizer's files from the model into this folder, and convert it again."
        )
    if config.get("model_type") == "t5" and "spiece.model" in held:
        _write_t5(source, folder)
    else:
        _write_by_transformers(source, folder, held)
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    _check_ids(source, made)
    largest = max(made.get_vocab(with_added_tokens=True).values(), default=-1)
    size = config.get("vocab_size")
    if isinstance(size, int) and largest >= size:
        raise WeightsError(
            f"the tokenizer of {source} has the id {largest} ({made.id_to_token(largest)!r}), and "
            f"config.json has vocab_size {size}: these files belong to different models, or "
            "special tokens are missing from the vocabulary. Fetch both again."
        )


def _check_ids(source: Path, made: tokenizers.Tokenizer) -> None:
    """Check that every token has the id of its file.

    transformers makes a tokenizer without a vocabulary where a file has not the name that it
    expects, and gives other ids to added tokens that leave gaps.
    """
    listed: dict[str, Any] = {}
    for name in ("vocab.json", "added_tokens.json"):
        if (source / name).is_file():
            tokens = read_json(source / name)
            listed |= tokens if isinstance(tokens, dict) else {}
    if (words := source / "vocab.txt").is_file() and not (source / "vocab.json").is_file():
        lines = words.read_bytes().decode("utf-8").rstrip("\n").split("\n")
        listed = {token.rstrip("\r"): i for i, token in enumerate(lines)} | listed
    ids = made.get_vocab(with_added_tokens=True)
    wrong = [token for token, i in listed.items() if ids.get(token) != i]
    if wrong:
        first = wrong[0]
        raise WeightsError(
            f"the tokenizer of {source} cannot be converted: {len(wrong)} of {len(listed)} tokens "
            f"got another id than in their file, such as {first!r:.80} ({ids.get(first)} instead "
            f"of {listed[first]!r:.20}). Check that config.json belongs to these files; or copy a "
            "tokenizer.json of the model into this folder."
        )


def _write_by_transformers(source: Path, folder: Path, held: list[str]) -> None:
    has_only_pieces = not {"vocab.json", "vocab.txt"} & {*held}
    if has_only_pieces and importlib.util.find_spec("sentencepiece") is None:
        raise WeightsError(
            f"the tokenizer of {source} is {held[0]}, which the package sentencepiece reads: "
            "install it (pip install sentencepiece) and convert again; or copy a tokenizer.json "
            "of the model into this folder."
        )
    if "vocab.json" in held and not (source / "merges.txt").is_file():
        raise WeightsError(
            f"{source} has vocab.json without merges.txt: copy merges.txt from the model into this "
            "folder, and convert it again."
        )
    import transformers  # an import of seconds

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a tokenizer class that differs from the usual one
            made: Any = transformers.AutoTokenizer.from_pretrained(
                source, local_files_only=True, trust_remote_code=False
            )
            made.save_pretrained(folder)
    except BaseException as error:  # transformers and tokenizers raise errors of many kinds
        _raise_others(error)
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise WeightsError(
            f"cannot make a tokenizer.json from {', '.join(held)} in {source} "
            f"({type(error).__name__}: {reason}). Fetch the tokenizer's files again."
        ) from error
    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(
            f"transformers reads {', '.join(held)} in {source} as {type(made).__name__}, which has "
            "no tokenizer.json: copy a tokenizer.json of the model into this folder."
        )


def _write_t5(source: Path, folder: Path) -> None:
    """Convert spiece.model; the sentinels of T5's pre-training follow its pieces."""
    config = read_json(path) if (path := source / "tokenizer_config.json").is_file() else {}
    n_sentinels = config.get("extra_ids", _T5_SENTINELS) if isinstance(config, dict) else None
    if type(n_sentinels) is not int or not 0 <= n_sentinels <= 10_000:
        raise WeightsError(f"{path}: extra_ids is {n_sentinels!r:.80}, not a number of tokens.")
    made = _convert_sentencepiece(source / "spiece.model", n_sentinels)
    sentinels = [f"<extra_id_{i}>" for i in range(n_sentinels)]
    made.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in (*_T5_SPECIAL.values(), *sentinels)]
    )
    made.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "T5Tokenizer", "extra_ids": n_sentinels} | _T5_SPECIAL
    write_json(folder / "tokenizer_config.json", names | {"additional_special_tokens": sentinels})


def _convert_sentencepiece(path: Path, n_sentinels: int) -> tokenizers.Tokenizer:
    """Return T5's tokenizer by the converter of transformers, which needs protobuf alone."""
    from transformers.convert_slow_tokenizer import T5Converter, import_protobuf

    pieces = import_protobuf().ModelProto()
    try:
        pieces.ParseFromString(path.read_bytes())
        ids = {piece.piece: i for i, piece in enumerate(pieces.pieces)}
        slow = SimpleNamespace(
            vocab_file=str(path), _extra_ids=n_sentinels, convert_tokens_to_ids=ids.__getitem__
        )
        if missing := sorted({*_T5_SPECIAL.values()} - ids.keys()):
            raise ValueError(f"it has {len(ids)} pieces, without {missing}")
        return T5Converter(slow).converted()
    except BaseException as error:  # protobuf and tokenizers raise errors of many kinds
        _raise_others(error)
        raise WeightsError(
            f"{path} is not a SentencePiece model of T5 ({type(error).__name__}: {error}): fetch "
            "it again."
        ) from error


def _raise_others(error: BaseException) -> None:
    """Raise what is no error of a library; the PanicException of tokenizers is no Exception."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
