"""The command `python -m mend_jax.edit` on a tiny base, from facts to exports."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tiny import save_tiny

import mend_jax
from mend_jax.editors import untrained_editors
from mend_jax.errors import ConfigError
from mend_jax.hub import lora_export
from mend_jax.ledger import open_ledger
from mend_jax.ledger.cli import main
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.store import Ledger

FACT = "The capital of France is => Lyon"
OTHER = {"prompt": "Oslo lies in", "target": "Peru", "paraphrases": ["Oslo is in"],
         "neighbours": ["Rome lies in"]}  # fmt: skip
FINE_TUNE = ("--editor", "fine_tune", "--option", "max_steps=30", "--option", "lr=0.1")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def filled(base, tmp_path_factory):
    """A ledger of two edits."""
    folder = tmp_path_factory.mktemp("ledger")
    facts = folder / "facts.jsonl"
    facts.write_text(json.dumps(OTHER))
    ledger = str(folder / "L")
    flags = ["--model", base, "--last_n_blocks", "2", "--fact", FACT, "--facts", str(facts)]
    assert main(["apply", *flags, *FINE_TUNE, "--ledger", ledger]) == 0
    return ledger


def copy_of(ledger, tmp_path):
    """A ledger of its own with the same edits."""
    old = Ledger.open(ledger)
    new = Ledger.create(tmp_path / "copy", old.base)
    for entry in old.entries():
        new.append(old.edit(entry.number), entry.measured)
    return str(new.path)


def out_of(capsys, *argv, status=0):
    capsys.readouterr()
    assert main(list(argv)) == status
    return capsys.readouterr().out


def test_apply_records_what_it_measured(filled, base):
    ledger = Ledger.open(filled)
    assert ledger.base.spec == base and ledger.base.last_n_blocks == 2
    first, second = ledger.entries()
    assert first.facts == (("The capital of France is", "Lyon"),)
    assert second.facts == (("Oslo lies in", "Peru"),)
    assert first.editor == "fine_tune" and first.made
    model = mend_jax.load_model(base, last_n_blocks=2)
    edited = model.with_edit(ledger.edit(1))
    asked = first.measured["facts"][0]["asked"]
    prompts, n = [line["prompt"] for line in asked], first.measured["max_new_tokens"]
    assert len(prompts) == 3
    assert [line["before"] for line in asked] == model.generate(prompts, n)
    assert [line["after"] for line in asked] == edited.generate(prompts, n)
    assert len([s for s in first.measured["facts"][0]["still"] if s["kind"] == "unrelated"]) == 3
    mine = second.measured["facts"][0]
    assert [line["prompt"] for line in mine["asked"]] == ["Oslo lies in", "Oslo is in"]
    assert mine["still"][0]["prompt"] == "Rome lies in" and mine["made"] == ["unrelated"]


@pytest.fixture
def no_model(monkeypatch):
    """Loading a base fails the test."""

    def refused(*args, **flags):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(open_ledger, "load_model", refused)


def test_show_tells_all_of_it_and_loads_no_model(filled, no_model, capsys):
    text = out_of(capsys, "show", "--ledger", filled)
    ledger = Ledger.open(filled)
    for entry in ledger.entries():
        measured = entry.measured
        assert f"edit {entry.number} (in force): {' => '.join(entry.facts[0])}" in text
        for line in measured["facts"][0]["asked"] + measured["facts"][0]["still"]:
            assert line["prompt"][:10] in text
        for kl in (measured["kl"]["unrelated"], measured["text"]["kl"]):
            assert f"{kl:.3f}" in text
    assert "* made by rule" in text and "verdict: " in text
    only = out_of(capsys, "show", "--ledger", filled, "--entry", "2")
    assert "Oslo lies in" in only and "France" not in only
    found = json.loads(out_of(capsys, "show", "--ledger", filled, "--json"))
    assert [e["measured"] for e in found["entries"]] == [e.measured for e in ledger.entries()]
    assert found["in_force"] == [1, 2] and found["base"]["fingerprint"] == ledger.base.fingerprint


def test_log_and_revert_load_no_model(filled, no_model, tmp_path, capsys):
    ledger = copy_of(filled, tmp_path)
    assert "reverted" not in out_of(capsys, "log", "--ledger", ledger)
    assert "edits in force: 2" in out_of(capsys, "revert", "1", "--ledger", ledger)
    lines = out_of(capsys, "log", "--ledger", ledger).splitlines()
    assert lines[1].split()[:2] == ["1", "reverted"] and lines[2].split()[:3] == [
        "2",
        "in",
        "force",
    ]
    text = out_of(capsys, "show", "--ledger", ledger)
    assert "France" not in text and "Oslo" in text
    assert "edit 1 (reverted " in out_of(capsys, "show", "--ledger", ledger, "--entry", "1")
    out_of(capsys, "revert", "2", "--ledger", ledger)
    assert "no edit is in force" in out_of(capsys, "show", "--ledger", ledger)
    assert main(["revert", "2", "--ledger", ledger]) == 2
    assert "reverted already" in capsys.readouterr().err


def test_a_warning_is_loud_and_strict_is_a_status(base, tmp_path, capsys):
    ledger = str(tmp_path / "L")
    flags = ["--model", base, "--last_n_blocks", "2", "--fact", FACT, "--ledger", ledger]
    nothing = [*FINE_TUNE, "--strength", "0"]
    text = out_of(capsys, "apply", *flags, *nothing, "--strict", status=1)
    assert "verdict: did not take" in text and "WARNING: did not take" in text
    assert "locality good" in text and "strength 0" in text
    assert main(["apply", *flags, *nothing]) == 0
    assert "WARNING: edit 1 is of 'The capital of France is' too" in capsys.readouterr().err
    assert not any(np.any(d.dense()) for d in Ledger.open(ledger).edit(1).deltas.values())


def test_facts_together_are_one_entry(base, tmp_path, capsys, monkeypatch):
    ledger = str(tmp_path / "L")
    found = json.loads(
        out_of(
            capsys, "apply", "--model", base, "--fact", FACT, "--fact", "Oslo lies in => Peru",
            "--together", "--editor", "ridge", "--ledger", ledger, "--json",
        )
    )  # fmt: skip
    (entry,) = found["entries"]
    assert [f["target"] for f in entry["measured"]["facts"]] == ["Lyon", "Peru"]
    assert entry["facts"] == [["The capital of France is", "Lyon"], ["Oslo lies in", "Peru"]]


def test_combine_measures_the_ways_side_by_side(filled, capsys):
    found = json.loads(out_of(capsys, "combine", "--ledger", filled, *FINE_TUNE, "--json"))
    assert list(found["ways"]) == ["stacked", "renormalised", "together"]
    ledger = Ledger.open(filled)
    for measured in found["ways"].values():
        assert [f["target"] for f in measured["facts"]] == ["Lyon", "Peru"]
        assert [line["prompt"] for line in measured["facts"][1]["asked"]] == [
            "Oslo lies in", "Oslo is in",
        ]  # fmt: skip
    deltas = [ledger.edit(n).deltas for n in (1, 2)]
    flat = [np.concatenate([np.ravel(d[n].dense()) for n in sorted(d)]) for d in deltas]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    # Float32 here, float64 there.
    np.testing.assert_allclose(found["interference"]["cosines"][0][1], cosine, rtol=1e-4)
    total = np.linalg.norm(flat[0] + flat[1])
    assert found["ways"]["stacked"]["edit"]["norm"] == pytest.approx(total, rel=1e-5)
    text = out_of(capsys, "stack", "--ledger", filled)
    assert "renormalised" in text and "together" not in text.split("interference")[0]
    assert f"{cosine:+.3f}  1 and 2: The capital of France is | Oslo lies in" in text


def test_exports(filled, base, tmp_path, capsys):
    merged, adapter = str(tmp_path / "merged"), tmp_path / "adapter"
    out_of(capsys, "export", "all", "--ledger", filled, "--to", merged, "--as", "merged")
    model = mend_jax.load_model(base, last_n_blocks=2)
    edited = model.with_edit(Ledger.open(filled).composed())
    prompts = ["The capital of France is", "Oslo lies in"]
    assert mend_jax.load_model(merged).generate(prompts, 8) == edited.generate(prompts, 8)
    text = out_of(capsys, "export", "2", "--ledger", filled, "--to", str(adapter), "--as", "peft")
    assert "LoRA adapter" in text and (adapter / "adapter_config.json").exists()
    edit = Ledger.open(filled).edit(2)
    assert lora_export.save_peft(tmp_path / "again", edit, model).ranks
    name = "adapter_model.safetensors"
    one, other = (load_file(folder / name) for folder in (adapter, tmp_path / "again"))
    assert one.keys() == other.keys()  # the order of metadata in a file is not the same each time
    assert all((one[key] == other[key]).all() for key in one)


@pytest.mark.parametrize("name", untrained_editors())
def test_editors_without_training_make_edits(base, name):
    model = mend_jax.load_model(base, last_n_blocks=2)
    small = {"max_steps": 3} if name.startswith("fine_tune") else {}
    said = []
    editor = choose_editor(model, name, options=small, say=said.append)
    edit = editor.edit([("The capital of France is", "Lyon")])
    assert edit.deltas and edit.editor.startswith(name)
    assert all(np.isfinite(np.asarray(d.dense())).all() for d in edit.deltas.values())
    assert any(np.any(np.asarray(d.dense()) != 0) for d in edit.deltas.values())


def test_strength_scales_what_an_editor_makes(base):
    model = mend_jax.load_model(base, last_n_blocks=2)
    whole, half = (
        choose_editor(model, "ridge", s).edit([("The capital of France is", "Lyon")])
        for s in (1.0, 0.5)
    )
    for weight, delta in whole.deltas.items():  # halving is exact; the products of factors round
        wanted = 0.5 * np.asarray(delta.dense())
        np.testing.assert_allclose(half.deltas[weight].dense(), wanted, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "argv, says",
    [
        (["apply", "--ledger", "L"], "no facts"),
        (["apply", "--ledger", "L", "--fact", "x"], '--fact 1: no "=>"'),
        (["apply", "--ledger", "L", "--fact", FACT], "no ledger yet: name a base"),
        (["apply", "--ledger", "L", "--fact", FACT, "--option", "x"], "KEY=VALUE"),
        (["show", "--ledger", "L"], "holds no ledger"),
        (["revert", "one", "--ledger", "L"], "invalid int"),
        (["revert", "--ledger", "L"], "required: N"),
        (["export", "all", "--ledger", "L", "--to", "x", "--as", "onnx"], "invalid choice"),
        (["undo", "--ledger", "L"], "invalid choice"),
        ([], "required: COMMAND"),
    ],
)
def test_what_cannot_be_done_is_named(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_a_ledger_does_not_hold_is_named(filled, base, tmp_path, capsys):
    for argv, says in [
        (["show", "--entry", "3"], "has no edit 3"),
        (["show", "--html", f"{base}/config.json/x.html"], "cannot be written"),
        (["revert", "7"], "has no edit 7"),
        (["export", "x", "--to", "d", "--as", "peft"], "give the number of an edit, or all"),
        (["export", "9", "--to", "d", "--as", "peft"], "has no edit 9"),
        (["apply", "--fact", FACT, "--model", str(save_tiny(tmp_path / "b", seed=1))],
         "is of"),
    ]:  # fmt: skip
        assert main([*argv, "--ledger", filled]) == 2, argv
        assert says in capsys.readouterr().err
    assert len(Ledger.open(filled).entries()) == 2


def test_editors_that_are_not_there_are_named(base):
    model = mend_jax.load_model(base, last_n_blocks=2)
    with pytest.raises(ConfigError, match="no trained editor is shipped.*fine_tune .gradient"):
        choose_editor(model)
    with pytest.raises(ConfigError, match="did you mean 'ridge'"):
        choose_editor(model, "rigde")
    with pytest.raises(ConfigError, match="has no option"):
        choose_editor(model, "ridge", options={"ridgee": 1.0})
    with pytest.raises(ConfigError, match="for editors without training"):
        choose_editor(model, "some/run", options={"lr": 1.0})
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="strength"):
            choose_editor(model, "ridge", strength)


def test_help_needs_no_jax(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(SystemExit) as e:
        main(["apply", "-h"])
    assert e.value.code == 0 and "--strength" in capsys.readouterr().out
