"""Classes of failure that people report of editors and of the tools around them, one test each.

Every case goes through the command or the function that a user would call.
"""

import json
import shutil

import pytest
from support.tiny import save_tiny
from tokenizers import AddedToken

import mend_jax
from mend_jax.data.facts import Fact
from mend_jax.editors import make_editor
from mend_jax.errors import DataError
from mend_jax.hub.text_encoding import encode_fact
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.ledger import apply_command
from mend_jax.ledger.cli import main
from mend_jax.ledger.edit_ledger import Ledger
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.evaluation_prompts import make_neighbours, make_prompts

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

    def passes_alone(model, edit, prompts, *strength):
        good = len(prompts) == 1
        return measure(model, edit, prompts) | {
            "verdict": {"took": good, "local": True, "line": "x", "thresholds": []},
            "warnings": [] if good else ["failed: together"],
        }

    monkeypatch.setattr(apply_command, "measure_edit", passes_alone)
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
