"""A data set whose edits insert the true answers."""

import pytest

from mend_jax.data.data_set import DataSet
from mend_jax.data.rows import make_row
from mend_jax.data.true_answers import with_true_answers
from mend_jax.errors import DataError


def dataset(*truths):
    rows = [
        make_row(key=str(i), relation="of", subject=str(i), prompt=f"{i} is", target="x",
                 truth=truth, rephrase=f"so {i} is", scope=str(i))
        for i, truth in enumerate(truths)
    ]  # fmt: skip
    return DataSet("some", "", "CC0", "abc", {"train": rows, "test": rows[:1]})


def test_the_target_is_the_true_answer():
    found = with_true_answers(dataset("a", "", "c"))
    assert [row["target"] for row in found.split("train")] == ["a", "c"]
    assert found.split("test")[0]["prompt"] == "0 is"
    assert found.fingerprint != "abc"


def test_a_data_set_without_true_answers_is_refused():
    with pytest.raises(DataError, match="data.true_targets"):
        with_true_answers(dataset("", ""))
