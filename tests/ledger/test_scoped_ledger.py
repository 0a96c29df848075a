"""Scoped edits in a ledger, and the commands that use them."""

import dataclasses
import json

import numpy as np
import pytest
from support.scoped import make_scope, scoped_editor
from support.tiny import save_tiny

import mend_jax
from mend_jax.core.bank_file import same_facts
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.scope_file import LearnedScope
from mend_jax.data.facts import Fact
from mend_jax.errors import CheckpointError, LedgerError
from mend_jax.ledger import apply_command
from mend_jax.ledger.cli import main
from mend_jax.ledger.edit_ledger import Base, Ledger
from mend_jax.ledger.match_view import match_prompts
from mend_jax.ledger.session import Session

FRANCE, OSLO = ("The capital of France is", "Lyon"), ("Oslo lies in", "Peru")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mend_jax.load_model(str(save_tiny(tmp_path_factory.mktemp("base"))), last_n_blocks=2)


@pytest.fixture(scope="module")
def editor(model):
    return scoped_editor(model)


@pytest.fixture
def ledger(model, tmp_path):
    return Ledger.create(tmp_path / "L", Base(model.spec, model.fingerprint, "float32", 2, ()))


def test_the_active_edits_are_one_bank_and_a_revert_is_exact(ledger, editor, model):
    first, second = editor.edit([FRANCE]), editor.edit([OSLO])
    ledger.append(first, {}, editor.scope)
    ledger.append(second)  # the scope is there
    both = Ledger.open(ledger.path).composed()
    assert isinstance(both, GatedBank) and both.facts == (FRANCE, OSLO)
    assert same_facts(both.bank, first.compose(second).bank)
    assert same_facts(ledger.edit(2).bank, second.bank)
    assert ledger.entry(1).file.endswith(".bank.safetensors")
    ledger.revert(1)
    assert same_facts(ledger.composed().bank, second.bank)
    prompt = OSLO[0]
    np.testing.assert_array_equal(
        model.with_edit(ledger.composed()).next_token_log_probs(prompt),
        model.with_edit(second).next_token_log_probs(prompt),
    )
    ledger.revert(2)
    assert ledger.composed() is None


def test_a_ledger_has_edits_of_one_kind_and_one_scope(ledger, editor, model):
    with pytest.raises(CheckpointError, match="has no scope yet: give the learned scope"):
        ledger.append(editor.edit([FRANCE]))
    assert ledger.entries() == []
    ledger.append(editor.edit([FRANCE]), {}, editor.scope)
    with pytest.raises(CheckpointError, match=r"the edit is plain, .*\[1\] of .* are scoped"):
        ledger.append(editor.edit([OSLO], plain=True))
    other = LearnedScope(make_scope(model.module, model.fingerprint, seed=1), (0.9, 0.9), 0.0, {})
    with pytest.raises(CheckpointError, match="one ledger for each learned scope"):
        ledger.append(dataclasses.replace(editor, scope=other).edit([OSLO]), {}, other)
    ledger.revert(1)
    ledger.append(editor.edit([OSLO], plain=True))
    with pytest.raises(CheckpointError, match=r"the edit is scoped, .*\[2\] of .* are plain"):
        ledger.append(editor.edit([FRANCE]), {}, editor.scope)
    assert [e.number for e in ledger.active()] == [2]


def test_a_missing_or_damaged_scope_is_named(ledger, editor):
    ledger.append(editor.edit([FRANCE]), {}, editor.scope)
    path = ledger.path / "scope.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    with pytest.raises(CheckpointError, match="scope.safetensors: not a readable scope file"):
        ledger.composed()
    path.unlink()
    with pytest.raises(LedgerError, match="scope.safetensors is missing, and edit 1 is scoped"):
        ledger.composed()
    path.write_bytes(data)
    assert ledger.composed().facts == (FRANCE,)


@pytest.mark.slow
def test_a_prompt_is_said_to_match(model, editor):
    gated = editor.edit([FRANCE, OSLO])
    own, other = match_prompts(model, gated, [FRANCE[0], "The sky over the town"])
    assert own["fact"] == own["nearest"] == list(FRANCE) and own["score"] > 0
    assert own["names"] == ["France"]
    assert other["fact"] is None and other["nearest"] in ([*FRANCE], [*OSLO])
    assert other["score"] < 0 and other["before"] == other["after"]


@pytest.mark.slow
def test_the_commands_make_and_show_scoped_edits(model, editor, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(apply_command, "choose_editor", lambda *args, **kwargs: editor)
    folder = str(tmp_path / "L")
    flags = ["--model", model.spec, "--last_n_blocks", "2", "--ledger", folder]
    facts = [f"{prompt} => {target}" for prompt, target in (FRANCE, OSLO)]
    assert main(["apply", *flags, "--fact", facts[0], "--fact", facts[1]]) == 0
    assert Ledger.open(folder).composed().facts == (FRANCE, OSLO)
    assert Ledger.open(folder).entry(1).measured["edit"]["scoped"] is True
    capsys.readouterr()
    assert main(["show", "--ledger", folder, "--prompt", FRANCE[0], "--json"]) == 0
    (view,) = json.loads(capsys.readouterr().out)
    assert view["fact"] == list(FRANCE)
    assert main(["show", "--ledger", folder, "--prompt", "The sky [over] the town"]) == 0
    text = capsys.readouterr().out
    assert "no match; the nearest is" in text and "The sky [over] the town" in text
    assert main(["show", "--ledger", folder]) == 0
    assert main(["apply", *flags, "--together", "--fact", "a b => c"]) == 2
    assert "--together is of plain edits" in capsys.readouterr().err
    assert main(["apply", *flags, "--plain", "--fact", "a b => c"]) == 2
    assert "use another ledger, leave out --plain" in capsys.readouterr().err
    assert main(["export", "all", "--ledger", folder, "--to", str(tmp_path / "t"),
                 "--as", "torch"]) == 0  # fmt: skip
    assert (tmp_path / "t" / "mend_bank.py").exists()
    merged = ["export", "all", "--ledger", folder, "--to", str(tmp_path / "m"), "--as", "merged"]
    assert main(merged) == 2
    assert "lose their scope" in capsys.readouterr().err
    assert main([*merged, "--plain"]) == 0 and (tmp_path / "m" / "config.json").exists()
    assert main(["combine", "--ledger", folder]) == 2
    assert "there is nothing to combine" in capsys.readouterr().err
    plain = str(tmp_path / "P")
    assert main(["apply", "--model", model.spec, "--last_n_blocks", "2", "--ledger", plain,
                 "--plain", "--fact", facts[0]]) == 0  # fmt: skip
    assert main(["show", "--ledger", plain, "--prompt", "x"]) == 2
    assert "has no active scoped edit" in capsys.readouterr().err
    assert main(["export", "1", "--ledger", plain, "--to", str(tmp_path / "p"),
                 "--as", "torch"]) == 2  # fmt: skip
    assert "--as torch is of scoped edits" in capsys.readouterr().err


@pytest.mark.slow
def test_a_session_proposes_scoped_edits(model, editor, ledger):
    session = Session(model, editor, ledger)
    proposal = session.propose(Fact(*OSLO))
    assert isinstance(proposal.edit, GatedBank) and proposal.together is None
    session.keep(proposal.number)
    session.propose(Fact(*FRANCE))
    compared = session.compare(FRANCE[0])
    assert compared["before"] != compared["after"] and compared["edits"] == 1
    assert session.proposal.together is not None
