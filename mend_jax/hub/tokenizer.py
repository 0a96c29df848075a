"""Text to token ids and back, for every source of base weights.

Files are opened by `tokenizers` itself rather than by transformers, whose AutoTokenizer imports
torch and whose PreTrainedTokenizerFast adds special tokens that the vocabulary lacks, with ids
beyond the embedding. Chat templates are rendered by transformers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from mend_jax.core.mentions import TokenTexts, token_texts
from mend_jax.errors import ConfigError, DataError, WeightsError
from mend_jax.hub.gguf_files import GgufFile, open_gguf
from mend_jax.hub.hf_config import read_json
from mend_jax.hub.weights_source import Source, how_to_convert
from mend_jax.io.files import write_text

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_MAX_GAPS = 1000  # ids without a token, beyond one per token: the library iterates over them
_CHAT_TEMPLATE = "chat_template.jinja"
_MESSAGE = "\u2603"  # a message that no template writes
_GENERATION_CONFIG = "generation_config.json"


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_then_byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _byte_level,
    "smollm": _digits_then_byte_level,
}


class Tokenizer:
    """A tokenizer and the ids of its special tokens.

    Attributes:
      inner: the `tokenizers.Tokenizer`.
      eos_id: the token that ends a text.
      end_ids: all tokens that end one where the model writes them, `eos_id` first.
      bos_id: the token that starts a text, or None.
      pad_id: the token that fills a batch; by default `eos_id`.
      chat_template: the Jinja template of a chat model, or None.
      rows: of the model's embedding, which has none of larger ids; None if that is not known.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        eos_id: int,
        bos_id: int | None = None,
        pad_id: int | None = None,
        chat_template: str | None = None,
        more_end_ids: Sequence[int] = (),
        rows: int | None = None,
    ) -> None:
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True
        self.inner = inner
        self.eos_id = eos_id
        self.end_ids = tuple(dict.fromkeys((eos_id, *more_end_ids)))
        self.bos_id = bos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.chat_template = chat_template
        self.rows = rows

    @classmethod
    def tiny(cls) -> Tokenizer:
        """Return a tokenizer of one token per byte and `<|eos|>`, for tests and tiny models."""
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        eos = "<|eos|>"
        inner = _byte_level_bpe({**vocab, eos: len(vocab)}, [], _byte_level())
        inner.add_special_tokens([AddedToken(eos, special=True, normalized=False)])
        return cls(inner, eos_id=len(vocab))

    @functools.cached_property
    def vocab_size(self) -> int:
        """The largest token id plus one."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of vocabulary, merges, splitting rules and boundary tokens: 16 hex digits."""
        parts = json.loads(self.inner.to_str())
        for unused in ("version", "post_processor"):
            parts.pop(unused, None)
        if any(self.boundary_tokens):
            parts["marks"] = self.boundary_tokens
        text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text` alone, without special tokens.

        The characters `<|endoftext|>` in a text are text here, never a control token, unless the
        text is a chat as the chat template writes it (`is_chat`). Bytes that the vocabulary lacks
        (for SmolLM2 a few control characters) are dropped.

        Raises:
          DataError: `text` is not Unicode text, or the model has no embedding of one of its tokens.
        """
        return self._with_rows(self._encoding(text).ids[self._boundary_length(text) :])

    def _with_rows(self, ids: list[int]) -> list[int]:
        """Return the ids; raise a DataError if the embedding has no row for one."""
        if self.rows is not None and ids and max(ids) >= self.rows:
            lost = dict.fromkeys(repr(self.inner.id_to_token(i)) for i in ids if i >= self.rows)
            raise DataError(
                f"the model has no embedding of the tokens {', '.join(lost)}: its table has "
                f"{self.rows} rows, and its tokenizer {self.vocab_size} tokens; leave them out, or "
                "use the tokenizer that belongs to these weights"
            )
        return ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the characters [first, end) of each token of `encode(text)`."""
        return self._encoding(text).offsets[self._boundary_length(text) :]

    def is_chat(self, text: str) -> bool:
        """Return whether a text is a chat up to an answer, as the chat template writes it.

        It begins with a control token, and what the template writes between the user's message and
        the answer is in it.
        """
        if self.chat_template is None or not text.startswith(self._control_tokens):
            return False
        before_answer = self._before_answer
        return bool(before_answer) and before_answer in text

    def find_control_tokens(self, text: str) -> list[str]:
        """Return the names of control tokens in a text, such as `<|im_end|>`."""
        return [name for name in self._control_tokens if name in text]

    @functools.cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        added = self.inner.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special and token.content)

    @functools.cached_property
    def _before_answer(self) -> str:
        """What the chat template writes after a user's message, without white space around it."""
        try:
            chat = self.apply_chat_template([{"role": "user", "content": _MESSAGE}])
        except DataError:  # it wants other messages
            return ""
        return chat.rpartition(_MESSAGE)[2].strip()

    def _boundary_length(self, text: str) -> int:
        """Return how many tokens at the start of a chat are those that callers put before texts."""
        if not self.is_chat(text):
            return 0
        before, ids = self.boundary_tokens[0], self._encoding(text).ids
        return len(before) if before and ids[: len(before)] == before else 0

    def _encoding(self, text: str) -> tokenizers.Encoding:
        inner = self.inner
        try:
            if self.is_chat(text):
                inner = self._with_control_tokens
            return inner.encode(text, add_special_tokens=False)
        except (TypeError, AttributeError, UnicodeError) as error:
            raise DataError(
                f"cannot tokenize {text!r:.80}: expected Unicode text without lone surrogates."
            ) from error

    def encode_with_boundaries(self, text: str) -> list[int]:
        """Return the token ids of `text` between the boundary tokens."""
        before, after = self.boundary_tokens
        return [*before, *self.encode(text), *after]

    @functools.cached_property
    def boundary_tokens(self) -> tuple[list[int], list[int]]:
        """The ids that the model's post-processor puts before and after a text.

        Such as BERT's [CLS] and [SEP], or T5's end of text; none without a post-processor.
        """
        if self.inner.post_processor is None:
            return [], []
        plain = self.inner.encode("a", add_special_tokens=False).ids
        marked = self.inner.encode("a", add_special_tokens=True).ids
        for start in range(len(marked) - len(plain) + 1):
            if plain and marked[start : start + len(plain)] == plain:
                return marked[:start], marked[start + len(plain) :]
        return [], []

    def token_id(self, token: str) -> int | None:
        """Return the id of one token by its exact name, such as `<|im_end|>`, or None."""
        return self.inner.token_to_id(token)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens; spaces are kept as they are."""
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=True)

    @functools.cached_property
    def token_texts(self) -> TokenTexts:
        """The texts of all tokens, by which a bank finds mentions of subjects."""
        return token_texts(self.token_bytes())

    def token_bytes(self) -> list[bytes]:
        """Return the bytes of each token in a text, with the space before a word.

        A control token, and an id without a token, is a line break.
        """
        decoder = json.loads(self.inner.to_str())["decoder"]
        text_of = _token_reader({} if decoder is None else decoder)
        special = {i for i, t in self.inner.get_added_tokens_decoder().items() if t.special}
        names = {i: t for t, i in self.inner.get_vocab(with_added_tokens=True).items()}
        return [
            b"\n" if i in special or i not in names else text_of(names[i])
            for i in range(self.vocab_size)
        ]

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's files as in a Hugging Face folder."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        ids = {"eos_token": self.eos_id, "bos_token": self.bos_id, "pad_token": self.pad_id}
        config: dict[str, Any] = {
            k: self.inner.id_to_token(i) for k, i in ids.items() if i is not None
        }
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {"clean_up_tokenization_spaces": False}
        self.inner.save(str(directory / "tokenizer.json"))
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_text(directory / "tokenizer_config.json", text)
        if len(self.end_ids) > 1:
            text = json.dumps({"eos_token_id": list(self.end_ids)}, indent=2) + "\n"
            write_text(directory / _GENERATION_CONFIG, text)
        if self.chat_template is not None:
            write_text(directory / _CHAT_TEMPLATE, self.chat_template)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the text that the chat model was trained on.

        Args:
          messages: each with a "role", such as "user", and its "content".
          add_generation_prompt: end with the start of the assistant's answer.

        Raises:
          ConfigError: the model has no chat template.
          DataError: the template does not accept these messages.
        """
        if self.chat_template is None:
            raise ConfigError(
                "this tokenizer has no chat template: use a chat model, or give plain prompts"
            )
        # An import of seconds, which only chats need. The template runs in a Jinja sandbox.
        import jinja2
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template

        special = {"eos_token": self.eos_id, "bos_token": self.bos_id, "pad_token": self.pad_id}
        names = {k: "" if i is None else self.inner.id_to_token(i) for k, i in special.items()}
        try:
            rendered, _ = render(
                [[dict(message) for message in messages]],
                chat_template=self.chat_template,
                add_generation_prompt=add_generation_prompt,
                **names,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise DataError(
                f"the chat template does not accept these messages ({error}): give each a role "
                "and a content"
            ) from error
        return rendered[0]

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the token ids of `apply_chat_template`.

        Names of control tokens become control tokens here, also inside a message.
        """
        text = self.apply_chat_template(messages, add_generation_prompt)
        ids = self._with_control_tokens.encode(text, add_special_tokens=False).ids
        return self._with_rows(ids)

    @functools.cached_property
    def _with_control_tokens(self) -> tokenizers.Tokenizer:
        inner = tokenizers.Tokenizer.from_str(self.inner.to_str())
        inner.encode_special_tokens = False
        return inner


def _token_reader(decoder: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Return a function from a token's name in the vocabulary to its bytes in a text."""
    kinds = json.dumps(decoder)
    if '"ByteLevel"' in kinds:
        bytes_of = {char: byte for byte, char in _byte_characters().items()}
        # Tokens that were added later have their text as their name.
        return lambda name: (
            bytes(bytes_of[c] for c in name) if all(c in bytes_of for c in name) else name.encode()
        )
    if '"WordPiece"' in kinds:
        prefix = decoder.get("prefix", "##")
        return lambda name: (
            name.removeprefix(prefix).encode() if name.startswith(prefix) else f" {name}".encode()
        )
    return _sentence_piece


def _sentence_piece(name: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("\u2581", " ").encode()


def _byte_characters() -> dict[int, str]:
    """Return the character that stands for each byte in byte-level vocabularies (GPT-2's).

    Bytes that print stand for themselves, the others in order for the characters from 256 on.
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {b: chr(b) for b in printed} | {b: chr(256 + i) for i, b in enumerate(others)}


def load_tokenizer(source: Source, rows: int | None = None) -> Tokenizer:
    """Return the tokenizer that comes with the weights of `source`.

    Args:
      rows: of the model's embedding. Tokens without a row are warned of, and refused in texts.

    It is read from tokenizer.json (special tokens from tokenizer_config.json, else from
    special_tokens_map.json, else from config.json, and added where tokenizer.json lacks them), or
    built from the tokens and merges of a GGUF file.

    Raises:
      WeightsError: there is none, or it is damaged or unsupported.
    """
    if source.kind == "gguf":
        tokenizer = _from_gguf(open_gguf(source.path))
    else:
        tokenizer = _from_folder(source.path, source.spec)
    tokenizer.rows = rows
    if rows is not None and tokenizer.vocab_size > rows:
        logging.getLogger(__name__).warning(
            "%s: the tokenizer has %d tokens and the embedding %d rows: texts with the others, "
            "such as %r, are refused",
            source.spec, tokenizer.vocab_size, rows, tokenizer.inner.id_to_token(rows),
        )  # fmt: skip
    return tokenizer


def _from_folder(folder: Path, spec: str) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise WeightsError(
            f"{folder} has no tokenizer.json: copy it from the model; or, if the model has older "
            f"files of a vocabulary (such as vocab.json or spiece.model), {how_to_convert(spec)}."
        )
    inner = _open(path)
    names = _read_object(folder / "special_tokens_map.json")
    names |= _read_object(folder / "tokenizer_config.json")
    config = _read_object(folder / "config.json")
    _add_listed_tokens(inner, names, folder)
    _add_named_tokens(inner, names, config)

    def special_id(*roles: str) -> int | None:
        for role in roles:
            token = names.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and (known := _token_id(token, inner)) is not None:
                return known
        for role in roles:
            ids = config.get(f"{role}_token_id")
            ids = ids if isinstance(ids, list) else [ids]
            if ids and ids[0] is not None:
                return _check_id(ids[0], inner, f"{role}_token_id of {folder / 'config.json'}")
        return None

    eos = special_id("eos", "sep")
    if eos is None:
        usual = (inner.token_to_id(token) for token in ("[SEP]", "</s>", "<|endoftext|>"))
        eos = next((i for i in usual if i is not None), None)
    if eos is None:
        raise WeightsError(
            f"neither tokenizer_config.json nor config.json in {folder} names an end of text: "
            'add "eos_token" to tokenizer_config.json.'
        )
    bos, pad = special_id("bos", "cls"), special_id("pad")
    ends = _end_ids(folder, config, inner)
    return Tokenizer(inner, eos, bos, pad, _folder_template(folder, names), ends)


def _end_ids(folder: Path, config: Mapping[str, Any], inner: tokenizers.Tokenizer) -> list[int]:
    """Return the ends of text of generation_config.json, else those that config.json lists.

    Llama 3's chat models end a message with one token and a text with another.
    """
    where = folder / _GENERATION_CONFIG
    found = _read_object(where).get("eos_token_id")
    if found is None and isinstance(config.get("eos_token_id"), list):
        found, where = config["eos_token_id"], folder / "config.json"
    ids = found if isinstance(found, list) else [] if found is None else [found]
    return [_check_id(one, inner, f"eos_token_id of {where}") for one in ids]


def _add_listed_tokens(inner: tokenizers.Tokenizer, names: Mapping[str, Any], folder: Path) -> None:
    """Add the tokens of `added_tokens_decoder` that tokenizer.json lacks, by their ids.

    Raises:
      WeightsError: a token whose id would not be the one that is recorded.
    """
    listed = names.get("added_tokens_decoder")
    entries = listed.items() if isinstance(listed, Mapping) else ()
    added = sorted((int(i), entry) for i, entry in entries if str(i).isdecimal())
    for number, entry in added:
        token = _added_token(entry)
        if token is None or _token_id(token.content, inner) is not None:
            continue
        (inner.add_special_tokens if token.special else inner.add_tokens)([token])
        if inner.token_to_id(token.content) != number:
            raise WeightsError(
                f"{folder / 'tokenizer_config.json'} gives {token.content!r} the id {number}, and "
                f"after the tokens of tokenizer.json it is {inner.token_to_id(token.content)}: "
                "fetch both again."
            )


def _add_named_tokens(
    inner: tokenizers.Tokenizer, names: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Add special tokens that have only a name, where the embedding has a row for them.

    transformers adds them after all others, also where that is beyond the embedding.
    """
    rows = config.get("vocab_size")
    for key in sorted(name for name in names if name.endswith("_token")):
        token = _added_token(names[key])
        number = inner.get_vocab_size(with_added_tokens=True)
        fits = isinstance(rows, int) and number < rows and config.get(f"{key}_id", number) == number
        if token is not None and fits and _token_id(token.content, inner) is None:
            inner.add_special_tokens([token])


def _added_token(entry: Any) -> AddedToken | None:
    """Return the token of an entry: a text, or an object with its `content`."""
    fields = {"content": entry, "special": True} if isinstance(entry, str) else entry
    if not isinstance(fields, Mapping):
        return None
    content = fields.get("content")
    if not isinstance(content, str) or not content or not _is_unicode(content):
        return None
    flags = {k: bool(fields[k]) for k in ("single_word", "lstrip", "rstrip") if k in fields}
    return AddedToken(
        content, special=bool(fields.get("special", True)),
        normalized=bool(fields.get("normalized", False)), **flags,
    )  # fmt: skip


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _folder_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Return the chat template of a folder: of its own file, else of tokenizer_config.json."""
    path = folder / _CHAT_TEMPLATE
    if path.is_file():
        try:
            return path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise WeightsError(f"cannot read {path} ({error}): fetch it again.") from error
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _open(path: Path) -> tokenizers.Tokenizer:
    """Open a tokenizer.json and try it on a text: some that open cannot be used."""
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
        ids = inner.get_vocab(with_added_tokens=True).values()
        if max(ids, default=-1) not in range(2 * len(ids) + _MAX_GAPS):
            raise ValueError(f"{len(ids)} tokens, the largest id is {max(ids, default=None)}")
        inner.decode(inner.encode("a b", add_special_tokens=True).ids)
    except BaseException as error:
        # tokenizers raises bare Exception, and a PanicException that is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise WeightsError(f"cannot read {path} ({error}): fetch it again.") from error
    return inner


def _token_id(token: str, inner: tokenizers.Tokenizer) -> int | None:
    try:
        return inner.token_to_id(token)
    except UnicodeError:  # a lone surrogate
        return None


def _check_id(value: Any, inner: tokenizers.Tokenizer, what: str) -> int:
    if type(value) is not int or value not in inner.get_vocab(with_added_tokens=True).values():
        raise WeightsError(
            f"{what} is {value!r:.80}, which is not a token of tokenizer.json: fetch both again."
        )
    return value


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else None
    return value if isinstance(value, dict) else {}


def _from_gguf(file: GgufFile) -> Tokenizer:
    model, pre = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2" or not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
        raise WeightsError(
            f"{file.path} has a tokenizer of model {model!r} with pre {pre!r}; supported is model "
            f"'gpt2' with pre {' or '.join(map(repr, _PRE_TOKENIZERS))}. Use the safetensors "
            "version of this model with its tokenizer.json."
        )
    tokens, merges = _strings(file, "tokens"), _strings(file, "merges")
    types = file.metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    types = types if isinstance(types, list) else []
    eos, bos, pad = (_gguf_token_id(file, role, len(tokens)) for role in ("eos", "bos", "padding"))
    vocab = {token: i for i, token in enumerate(tokens)}
    if eos is None or len(vocab) != len(tokens) or len(types) != len(tokens):
        raise WeightsError(
            f"the tokenizer of {file.path} is not complete: {len(tokens)} tokens, {len(vocab)} of "
            f"them different, {len(types)} token types, eos_token_id {eos!r}. Convert the model "
            "again."
        )
    pairs: Any = [tuple(merge.split(" ", 1)) for merge in merges]
    try:
        inner = _byte_level_bpe(vocab, pairs, _PRE_TOKENIZERS[pre]())
    except Exception as error:  # tokenizers raises bare Exception
        raise WeightsError(
            f"the tokens and merges of {file.path} do not fit together ({error}): convert the "
            "model again."
        ) from error
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [t for t, type_ in zip(tokens, types, strict=True) if type_ == kind]
        add = inner.add_special_tokens if special else inner.add_tokens
        add([AddedToken(t, special=special, normalized=False) for t in added])
    template = file.metadata.get("tokenizer.chat_template")
    return Tokenizer(inner, eos, bos, pad, template if isinstance(template, str) else None)


def _gguf_token_id(file: GgufFile, role: str, n_tokens: int) -> int | None:
    value = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
    if value is not None and not (isinstance(value, int) and 0 <= value < n_tokens):
        raise WeightsError(
            f"tokenizer.ggml.{role}_token_id of {file.path} is {value!r}, not one of its "
            f"{n_tokens} tokens: convert the model again."
        )
    return value


def _strings(file: GgufFile, key: str) -> list[str]:
    value = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise WeightsError(f"{file.path} has no tokenizer.ggml.{key}: convert the model again.")
    return value


def _byte_level_bpe(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    pre_tokenizer: pre_tokenizers.PreTokenizer,
) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizer
    inner.decoder = decoders.ByteLevel()
    return inner
