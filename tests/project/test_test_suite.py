"""The suite itself: its tiers, what a failure says, and the faults that it must catch."""

import re
from pathlib import Path

import pytest
from planted_faults import FAULTS, plant
from support.failure_text import describe_test, subject_of
from support.tiers import in_tiers

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("case", ["one"])
def test_a_failure_says_what_was_expected_of_what_and_how_to_run_it(request, case):
    """The first paragraph of a docstring is added.

    The second is not.
    """
    assert describe_test(request.node) == (
        "expected: a failure says what was expected of what and how to run it, for one\n"
        "          The first paragraph of a docstring is added.\n"
        "about:    the project as a whole\n"
        "alone:    python -m pytest 'tests/project/test_test_suite.py::"
        "test_a_failure_says_what_was_expected_of_what_and_how_to_run_it[one]'"
    )


def test_the_subject_of_a_test_is_its_module_or_its_room():
    tests = ROOT / "tests"
    assert subject_of(tests / "core/test_losses.py") == "mend_jax/core/losses.py"
    assert subject_of(tests / "core/test_many_facts.py") == "mend_jax/core/"


def test_every_room_has_tests_and_every_folder_of_tests_is_a_room():
    rooms = {p.name for p in (ROOT / "mend_jax").iterdir() if (p / "__init__.py").is_file()}
    others = {"fuzzing", "launch", "old_files", "project", "support"}
    folders = {p.name for p in (ROOT / "tests").iterdir() if any(p.glob("*.py"))}
    assert folders == rooms | others


def test_quick_cases_run_by_default_and_the_others_are_slow():
    quick, other = in_tiers(["a"], ["a", "b"])
    assert quick == "a" and other.values == ("b",) and other.marks[0].name == "slow"
    _, other, third = in_tiers(["a"], ["a", "b", "c"], slow=["b"])
    assert (other.marks[0].name, third.marks[0].name) == ("slow", "full")
    with pytest.raises(ValueError, match=r"\['c'\] are not among the cases"):
        in_tiers(["c"], ["a", "b"])


def test_ci_runs_both_tiers_of_the_readme():
    command = re.search(r"python -m pytest.*", (ROOT / "README.md").read_text())[0]
    ci = (ROOT / ".ci/run").read_text()
    assert "grep -m1 -o 'python -m pytest.*' README.md" in ci
    assert re.search(r"^\$test_command \|\| status", ci, re.M)
    assert re.search(r"^\$test_command -m slow \|\| status", ci, re.M)
    assert command in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_fault_can_be_planted_once(tmp_path):
    """So that `python -m tests.planted_faults` measures the suite as it is."""
    assert len(FAULTS) >= 40 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    rooms = {fault.room for fault in FAULTS}
    assert rooms >= {"core", "models", "editors", "hub", "data", "training", "evaluation", "io"}
    for fault in FAULTS:
        copy = tmp_path / "mend_jax" / fault.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        whole = (ROOT / "mend_jax" / fault.file).read_text()
        copy.write_text(whole)
        plant(tmp_path, fault)
        changed = copy.read_text()
        assert changed != whole
        compile(changed, fault.file, "exec")
