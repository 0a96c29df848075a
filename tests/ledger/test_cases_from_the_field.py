"""Classes of failure that people report of editors and of the tools around them, one test each.

Every case goes through the command or the function that a user would call.
"""

import dataclasses
import io
import json
import shutil
import sys
import time
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file
from support.fake_ledger import fake_measurement
from support.small_edits import FINGERPRINT, small_edit
from support.tiny import save_tiny
from tokenizers import AddedToken

import mend_jax
from mend_jax import data, hub
from mend_jax.apps import run_command
from mend_jax.apps.doctor import command as doctor_command
from mend_jax.data.facts import Fact
from mend_jax.editors import make_editor
from mend_jax.errors import CheckpointError, ConfigError, DataError, WeightsError
from mend_jax.hub import weights_source
from mend_jax.hub.merged_export import save_merged
from mend_jax.hub.text_encoding import encode_fact
from mend_jax.hub.tokenizer import Tokenizer, load_tokenizer
from mend_jax.ledger import active_edits, apply_command, cli
from mend_jax.ledger.cli import main
from mend_jax.ledger.edit_ledger import Base, Ledger
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.evaluation_prompts import make_neighbours, make_prompts
from mend_jax.parallel import distributed
from mend_jax.training import config as configs
from mend_jax.training import pretrained, restored_editor

RIDGE = ("--editor", "ridge")
OSLO = {"prompt": "Oslo lies in", "target": "Peru"}
ROME = {"prompt": "Rome lies in", "target": "Chad"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def model(base):
    return mend_jax.load_model(base, last_n_blocks=2)


@pytest.fixture(scope="module")
def filled(base, tmp_path_factory):
    """Return the folder of a ledger with two edits."""
    folder = tmp_path_factory.mktemp("filled")
    assert run("apply", *new(base, folder), *RIDGE, "--facts", facts(folder, OSLO, ROME)) == 0
    return folder / "L"


def new(base, folder):
    return ["--model", base, "--last_n_blocks", "2", "--ledger", str(folder / "L")]


def facts(folder, *records):
    """Write facts to a file, and return its path."""
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(*argv):
    return main(list(map(str, argv)))


def refused(capsys, *argv, status=2):
    """Run a command that fails, and return its message."""
    capsys.readouterr()
    assert run(*argv) == status
    return capsys.readouterr().err


# 01: templates


@pytest.mark.parametrize("mark", ["{}", "{subject}", "[X]"])
def test_the_subject_fills_a_template(mark, base, tmp_path, model):
    record = {"prompt": f"The capital of {mark} is", "target": "Lyon", "subject": "Rome"}
    (fact,) = choose_editor(model, "ridge").check([Fact(**record)])
    assert fact.prompt == "The capital of Rome is"


@pytest.mark.parametrize(
    "more", [{}, {"subject": "Rome", "neighbours": ["{} is"]}, {"subject": "{}"}]
)
def test_a_template_without_its_subject_is_refused_by_line(more, base, tmp_path, capsys):
    path = facts(tmp_path, OSLO, {"prompt": "The capital of {} is", "target": "Lyon"} | more)
    message = refused(capsys, "apply", *new(base, tmp_path), *RIDGE, "--facts", path)
    assert "facts.jsonl:2: field" in message and "template" in message
    assert not (tmp_path / "L").exists()


# 02: half-done work


def test_all_facts_are_checked_before_the_first_edit(base, tmp_path, capsys):
    long = {"prompt": "word " * 40 + "is", "target": "Oslo"}
    for bad in (long, OSLO | {"prompt": "Oslo lies at", "paraphrases": ["word " * 40 + "is"]}):
        path = facts(tmp_path, OSLO, ROME, bad)
        message = refused(capsys, "apply", *new(base, tmp_path), *RIDGE, "--facts", path)
        assert "context of 160" in message and "data.max" not in message
        assert not (tmp_path / "L").exists()


def test_an_error_says_what_is_recorded_and_a_repeat_does_not_double(
    base, tmp_path, capsys, monkeypatch
):
    path = facts(tmp_path, OSLO, ROME)
    command = ["apply", *new(base, tmp_path), *RIDGE, "--facts", path]

    def fails_at_rome(model, edit, prompts, *strength):
        if prompts[0].prompt.startswith("Rome"):
            raise DataError("the second one fails")
        return {}

    monkeypatch.setattr(apply_command, "measure_edit", fails_at_rome)
    assert "stopped after 1 of 2 edits; recorded: 1." in refused(capsys, *command)
    monkeypatch.setattr(apply_command, "measure_edit", lambda *_: {})
    assert run(*command) == 0
    assert "edit 1 holds 'Oslo lies in' => 'Peru' already" in capsys.readouterr().err
    assert [e.facts[0][1] for e in Ledger.open(tmp_path / "L").entries()] == ["Peru", "Chad"]


# 03: white space


def test_prompts_that_differ_in_white_space_are_one(base, tmp_path, capsys, model):
    path = facts(tmp_path, OSLO, {"prompt": "Oslo  lies in ", "target": "Chad"})
    message = refused(capsys, "apply", *new(base, tmp_path), *RIDGE, "--facts", path)
    assert "facts 1 and 2 have the same prompt" in message
    (fact,) = choose_editor(model, "ridge").check([(" Oslo lies in\t", " Peru ")])
    assert (fact.prompt, fact.target) == ("Oslo lies in", "Peru")


def test_blanks_after_a_prompt_change_nothing(model):
    assert model.generate("Oslo lies in  ", 8) == model.generate("Oslo lies in", 8)


# 25: absent subjects; scripts without blanks; neighbours


@pytest.mark.parametrize(
    "fact",
    [
        Fact("The capital of that land is", "Lyon", subject="France"),
        ("the capital of that land is", "Lyon"),
        ("Oslo is not far from Rome in", "Lyon"),
    ],
)
@pytest.mark.parametrize("name", ["rome", "memit"])
def test_an_editor_at_the_subject_refuses_a_prompt_without_it(model, name, fact):
    editor = mend_jax.Editor(model, make_editor(name, {}), {}, {}, name=name)
    with pytest.raises(DataError, match="subject"):
        editor.edit([fact])


@pytest.mark.parametrize(
    "fact, subject",
    [
        (("The capital of France is", "Lyon"), "France"),
        (Fact("フランスの首都は", "リヨン", subject="フランス"), "フランス"),
    ],
)
def test_a_subject_is_inferred_or_found_without_blanks(model, fact, subject):
    editor = mend_jax.Editor(model, make_editor("rome", {}), {}, {}, name="rome")
    assert editor.check([fact])[0].subject == subject


def test_neighbours_replace_every_mention():
    fact = Fact("France is large. The capital of France is", "Lyon", subject="France")
    assert make_neighbours(fact) and not any("France" in n for n in make_neighbours(fact))
    assert make_neighbours(Fact("Netherlands: the capital of the Netherlands is", "Lyon")) == ()


# 26: chat marks

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    tokenizer = Tokenizer.tiny()
    marks = [AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")]
    tokenizer.inner.add_special_tokens(marks)
    tokenizer.chat_template = TEMPLATE
    folder = save_tiny(tmp_path_factory.mktemp("chat"), tokenizer=tokenizer)
    return mend_jax.load_model(folder, last_n_blocks=2)


def test_a_prompt_in_the_chat_format_is_read_as_a_chat(chat_model):
    messages = [{"role": "user", "content": "Where is Oslo?"}]
    text = chat_model.tokenizer.apply_chat_template(messages)
    ids = chat_model.tokenizer.encode_chat(messages)
    assert chat_model.tokenizer.encode(text) == ids
    assert chat_model.generate(text, 4) == chat_model.generate(messages, 4)
    assert choose_editor(chat_model, "ridge").check([(text, "Peru")])[0].prompt == text
    whole = encode_fact(chat_model.tokenizer, text, "Peru", 80, 8, append_eos=False)
    assert chat_model.tokenizer.decode(whole.target[whole.score_mask]) == "Peru"
    assert make_prompts(Fact(text, "Peru"), is_chat=True).paraphrases == ()


@pytest.mark.parametrize(
    "prompt, target",
    [
        ("<|im_start|>Oslo lies in", "Peru"), ("Oslo lies in<|im_end|>", "Peru"),
        ("Oslo lies in", "Peru<|im_end|>"),
    ],
)  # fmt: skip
def test_marks_outside_of_a_chat_are_refused(chat_model, prompt, target):
    with pytest.raises(DataError, match="control token"):
        choose_editor(chat_model, "ridge").edit([(prompt, target)])


# 15: the edits in force


def test_the_active_edits_are_judged_together(filled, base, tmp_path, capsys, monkeypatch):
    """Each edit alone passes; together they fail."""
    ledger = tmp_path / "L"
    shutil.copytree(filled, ledger)
    measure = apply_command.measure_edit

    def passes_alone(model, edit, prompts, *strength, **earlier):
        good = len(prompts) == 1
        return measure(model, edit, prompts) | {
            "verdict": {"took": good, "local": True, "line": "x", "thresholds": []},
            "warnings": [] if good else ["failed: together"],
        }

    for module in (apply_command, active_edits):
        monkeypatch.setattr(module, "measure_edit", passes_alone)
    fact = ["--fact", "Bonn lies in => Togo"]
    command = ["apply", "--ledger", ledger, *RIDGE, *fact, "--strict"]
    assert run(*command) == 1
    assert "WARNING: failed: together" in capsys.readouterr().out


# 33 and 13: export targets


@pytest.mark.parametrize("form", ["peft", "merged"])
@pytest.mark.parametrize("kind", ["file", "base", "adapter", "notes", "below a file"])
def test_exports_refuse_folders_of_others(form, kind, filled, base, tmp_path, capsys):
    there = tmp_path / "there"
    name = {"adapter": "adapter_config.json", "notes": "README.md"}.get(kind)
    if kind in ("file", "below a file"):
        there.write_text("mine")
    elif kind == "base":
        shutil.copytree(base, there)
    else:
        there.mkdir()
        (there / name).write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    target = there / "deeper" if kind == "below a file" else there
    message = refused(capsys, "export", "all", "--ledger", filled, "--to", target, "--as", form)
    assert str(there) in message and "loading" not in message
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_export_may_be_written_again(filled, tmp_path):
    for _ in range(2):
        assert run("export", 1, "--ledger", filled, "--to", tmp_path / "x", "--as", "peft") == 0
    config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert not config["rank_pattern"] and config["r"] == config["lora_alpha"]


# 17 and 16: terminals and backends


@pytest.fixture(scope="module")
def accents(tmp_path_factory):
    """Return a ledger of a base that is not there, with an edit whose fact has accents."""
    base = Base("nowhere", FINGERPRINT, "float32", 2, ())
    ledger = Ledger.create(tmp_path_factory.mktemp("accents") / "L", base)
    edit = dataclasses.replace(small_edit(), facts=(("Suède 瑞典 lies in", "Malmö"),))
    ledger.append(edit, fake_measurement(("Suède 瑞典 lies in", "Malmö")))
    return ledger.path


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", ["show", "log"])
def test_signs_that_a_terminal_lacks_are_replaced(command, encoding, accents, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert run(command, "--ledger", accents) == 0
    out.flush()
    assert "lies in" in out.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("main", [cli.main, run_command.main, doctor_command.main])
def test_a_backend_that_is_not_there_is_named(main, base, monkeypatch, capsys, tmp_path):
    def fails(*args, **kwargs):
        raise RuntimeError("Unable to initialize backend 'tpu': no TPU (set JAX_PLATFORMS='')")

    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setattr(jax, "device_put", fails)
    monkeypatch.setattr(jax, "local_devices", fails)
    argv = ["--config=quickstart.py", f"--workdir={tmp_path / 'run'}"]
    if main is cli.main:
        argv = ["apply", *new(base, tmp_path), *RIDGE, "--fact", "Oslo lies in => Peru"]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert "JAX_PLATFORMS='tpu,cpu'" in err and "no TPU" in err and "(set" not in err


# 29 and 12: flags that do not count; a base that was moved


@pytest.mark.parametrize("flag, value", [("--dtype", "bfloat16"), ("--last_n_blocks", "3")])
def test_flags_that_an_existing_ledger_would_ignore_are_refused(flag, value, filled, capsys):
    fact = ["--fact", "Bonn lies in => Togo"]
    message = refused(capsys, "apply", "--ledger", filled, flag, value, *RIDGE, *fact)
    assert f"{flag} {value}" in message and "was created with" in message


def test_a_moved_base_is_named_once(filled, base, tmp_path, capsys):
    moved, ledger = tmp_path / "moved", tmp_path / "L"
    shutil.copytree(base, moved)
    shutil.copytree(filled, ledger)
    Ledger.open(ledger).move_base(str(tmp_path / "gone"))
    export = ["export", 1, "--ledger", ledger, "--as", "peft"]
    assert "--model SPEC" in refused(capsys, *export, "--to", tmp_path / "a")
    assert run(*export, "--to", tmp_path / "a", "--model", moved) == 0
    assert run(*export, "--to", tmp_path / "b") == 0
    assert Ledger.open(ledger).base.spec == str(moved)


# 28: line ends


def test_a_log_with_line_ends_of_windows_is_read_and_continued(filled, tmp_path):
    ledger = tmp_path / "L"
    shutil.copytree(filled, ledger)
    for name in ("log.jsonl", "base.json"):
        path = ledger / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert run("revert", 1, "--ledger", ledger) == 0
    assert [e.number for e in Ledger.open(ledger).active()] == [2]


# 27: paths


def test_a_path_is_taken_wherever_a_text_is(base, tmp_path):
    model = mend_jax.load_model(Path(base), last_n_blocks=2)
    ledger = Ledger.create(
        tmp_path / "L", Base(Path(base), model.fingerprint, "float32", 2, ())
    )  # fmt: skip
    assert ledger.base.spec == base and model.spec == base
    with pytest.raises(ConfigError, match="neither a run's folder"):
        choose_editor(model, Path("no/run"))
    edit = dataclasses.replace(small_edit(names=()), base=model.fingerprint)
    save_merged(tmp_path / "merged", model, edit)
    assert mend_jax.load_model(tmp_path / "merged").fingerprint == model.fingerprint


# 09: quantised checkpoints


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "weight.absmax"),
        ({"quant_method": "fp8"}, "weight_scale_inv"),
        ({"quant_method": "gptq", "bits": 4}, "qweight"),
        (None, "qweight"),
    ],
)
def test_a_quantised_checkpoint_is_named_in_one_line(settings, name, tmp_path):
    folder = save_tiny(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    if settings:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"model.layers.0.mlp.up_proj.{name}": np.zeros((2, 2), np.int32)}
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError) as e:
        mend_jax.load_model(folder)
    message = str(e.value)
    assert message.count("\n") == 0 and name in message
    assert (settings or {"quant_method": "quantised"})["quant_method"] in message


# 11: names of bases


@pytest.mark.parametrize(
    "spec, repo, revision",
    [
        ("gpt2", "gpt2", None),
        ("org/name@v1", "org/name", "v1"),
        ("https://huggingface.co/org/name", "org/name", None),
        ("huggingface.co/org/name/", "org/name", None),
        ("https://huggingface.co/org/name/tree/main", "org/name", "main"),
        ("https://huggingface.co/org/name/blob/main/config.json?download=1", "org/name", "main"),
        ("hf://org/name@refs/pr/1", "org/name", "refs/pr/1"),
    ],
)
def test_names_of_the_hub_are_read_as_people_copy_them(spec, repo, revision, base, monkeypatch):
    asked = []

    def download(repo, *, revision, **patterns):
        asked.append((repo, revision))
        return base

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(weights_source, "check_snapshot", lambda folder: None)
    hub.resolve(spec)
    assert asked == [(repo, revision)]


def test_a_mistyped_path_gets_a_hint(tmp_path):
    save_tiny(tmp_path / "my_model")
    with pytest.raises(WeightsError, match="did you mean 'my_model'"):
        hub.resolve(f"{tmp_path}/my_modle")


# 06: end tokens outside of tokenizer.json


@pytest.mark.parametrize("place", ["added_tokens_decoder", "special_tokens_map", "name only"])
def test_an_end_token_outside_of_tokenizer_json_is_found(place, tmp_path):
    folder = save_tiny(tmp_path / "base")
    end = "<|eos|>" if place == "special_tokens_map" else "<|im_end|>"
    names = {"eos_token": end}
    if place == "added_tokens_decoder":
        names["added_tokens_decoder"] = {"257": {"content": end, "special": True}}
    file = "special_tokens_map" if place == "special_tokens_map" else "tokenizer_config"
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / f"{file}.json").write_text(json.dumps(names))
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": 257}
    if place == "special_tokens_map":
        config["eos_token_id"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(hub.resolve(folder))
    assert tokenizer.eos_id == (256 if place == "special_tokens_map" else 257)
    assert tokenizer.decode([tokenizer.eos_id]) == ""


# 14: another dtype


@pytest.fixture(scope="module")
def half(base):
    return mend_jax.load_model(base, last_n_blocks=2, dtype="bfloat16")


def test_an_edit_of_the_same_base_in_another_dtype_is_named_so(half, model, tmp_path):
    edit = dataclasses.replace(small_edit(names=()), base=model.fingerprint)
    with pytest.raises(CheckpointError, match="loaded in bfloat16, and must be in float32"):
        half.with_edit(edit)
    base = Base(model.spec, model.fingerprint, "float32", 2, ())
    ledger = Ledger.create(tmp_path / "L", base)
    other = dataclasses.replace(base, fingerprint=half.fingerprint, dtype="bfloat16")
    with pytest.raises(CheckpointError, match="loaded in bfloat16.*in float32"):
        Ledger.open_or_create(ledger.path, other)


def test_a_shipped_editor_of_the_same_base_in_another_dtype_is_named_so(half, model, monkeypatch):
    monkeypatch.setattr(pretrained, "names", lambda: {model.fingerprint: "smollm2_135m"})
    for choose in (choose_editor, pretrained.load):
        with pytest.raises(ConfigError, match="loaded in bfloat16, and must be in float32"):
            choose(half)


# 34: a trained editor, used from another folder


def test_a_run_records_the_whole_path_of_its_base(base, monkeypatch):
    config = ConfigDict({"model": {"spec": Path(base).name}})
    monkeypatch.chdir(Path(base).parent)
    assert configs.with_absolute_spec(config).model.spec == base
    assert config.model.spec == Path(base).name
    elsewhere = ConfigDict({"model": {"spec": "org/name"}})
    assert configs.with_absolute_spec(elsewhere).model.spec == "org/name"


def test_a_run_whose_base_is_gone_says_how_to_give_it(tmp_path):
    config = configs.load_config("quickstart.py")
    config.model.spec = "models/gone/x"
    with pytest.raises(WeightsError, match=r"Editor.restore\('run', model=load_model\("):
        restored_editor.load_base(config, Path("run"))


# 39: few facts


@pytest.mark.parametrize(
    "count, subjects, why",
    [(5, 5, "it has 5 facts of 5 subjects, fewer than 30"), (40, 1, "40 facts of 1 subject, and")],
)
def test_too_few_facts_to_train_on_are_explained(count, subjects, why, tmp_path):
    path = facts(
        tmp_path,
        *({"prompt": f"Thing {i} is", "target": "red", "subject": f"thing {i % subjects}"}
          for i in range(count)),
    )  # fmt: skip
    dataset = data.load(f"facts/{path}")
    with pytest.raises(DataError, match=f"no split 'train': .*{why}.*60 subjects"):
        dataset.split("train")


# 32: processes


def test_a_pod_that_is_not_there_is_named(monkeypatch):
    def fails(*args, **kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setenv("MEND_DISTRIBUTED", "auto")
    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(ConfigError, match="MEND_DISTRIBUTED=auto.*coordinator_address.*unset"):
        distributed.initialize()


def test_a_process_says_for_whom_it_waits(monkeypatch, capsys):
    for name, value in (
        ("COORDINATOR", "localhost:1"),
        ("NUM_PROCESSES", "2"),
        ("PROCESS_ID", "0"),
    ):
        monkeypatch.setenv(f"MEND_{name}", value)
    monkeypatch.setattr(distributed, "WAIT_NOTICE_SECONDS", 0.01)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: time.sleep(0.2))
    distributed.initialize()
    assert "process 0 waits for 1 of 2 processes" in capsys.readouterr().err
