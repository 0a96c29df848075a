"""Editors that edit at a fact's subject: it is found in the prompt, or the fact is refused."""

import jax
import numpy as np
import pytest
from support.tiny import save_tiny

import mend_jax
from mend_jax.data.facts import Fact
from mend_jax.editors import make_editor
from mend_jax.errors import DataError
from mend_jax.training import restored_editor
from mend_jax.training.restored_editor import Editor


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mend_jax.load_model(str(save_tiny(tmp_path_factory.mktemp("base"))), last_n_blocks=3)


def editor_of(model, name):
    transform = make_editor(name, {})
    return Editor(model, transform, *transform.init(jax.random.key(0), model.weights), name=name)


class _Encoded(Exception):
    pass


@pytest.mark.parametrize("name", ["rome", "memit", "rlsedit"])
def test_the_only_name_in_a_prompt_is_its_subject(model, name, monkeypatch):
    """A token is a byte: "France" ends at byte 20, "Q: Where is Oslo" at 15, "... Peru" at 14."""
    found = []

    def remember(*arguments):
        found.append(np.asarray(arguments[-1].subject).ravel().tolist())
        raise _Encoded

    monkeypatch.setattr(restored_editor, "_make_plain_edits", remember)
    facts = [("The capital of France is", "Lyon"), ("Q: Where is Oslo? A:", "Peru")]
    given = [Fact("France and Peru are", "big", subject="Peru")]
    for some in (facts, given):
        with pytest.raises(_Encoded):
            editor_of(model, name).edit(some)
    assert found == [[20, 15], [14]]


@pytest.mark.parametrize(
    "fact, message",
    [
        (
            ("Oslo is north of Rome, in", "it"),
            "no single name is in the prompt 'Oslo is north of Rome, in'",
        ),
        (("the sky is", "green"), "no single name .*: rome edits at the last token of the subject"),
        (
            Fact("Oslo lies in", "Peru", subject="Rome"),
            "'Rome' does not stand in the prompt 'Oslo lies in': rome edits at",
        ),
    ],
)
def test_a_fact_without_its_subject_is_refused_by_name(model, fact, message):
    with pytest.raises(DataError, match=message):
        editor_of(model, "rome").edit([("The capital of France is", "Lyon"), fact])
