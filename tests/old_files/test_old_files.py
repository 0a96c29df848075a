"""This version reads the files of an earlier one, and continues what that one began.

The files are in tests/old_files/format_2, named after the format of their checkpoints;
tests/old_files/make.py describes them and made them. Every test works in a copy of that folder,
through commands and public names. What is only read must equal what was written. What is computed
from it may differ by 1e-4, because another processor rounds differently.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import mend_jax
from mend_jax import main
from mend_jax.apps import join_grids, multi_seed, replay_step
from mend_jax.edit import main as edit_command
from mend_jax.evaluation.results_migration import migrate_results

OLD = Path(__file__).with_name("format_2")
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
FACT = ("The capital of France is", "Lyon")
PROMPTS = list(EXPECTED["base"]["tokens"])


@pytest.fixture(autouse=True)
def old(tmp_path, monkeypatch):
    """A copy of the files, as the working directory."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path / "old"))
    monkeypatch.delenv("MEND_DATA_DIR", raising=False)
    return tmp_path / "old"


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def load_base():
    return mend_jax.load_model("base", last_n_blocks=1)


def train(variant, folder):
    """Run the same command again."""
    name = f"recipe.py:{variant}"
    config = mend_jax.load_config(name)
    config.model.trunk_products = "float32"  # as it was, also on a processor with AMX
    return mend_jax.train_and_evaluate(config, folder, name)


def out_of(capsys, *argv):
    capsys.readouterr()
    assert edit_command(list(argv)) == 0
    return capsys.readouterr().out


def sums(tree):
    """The size of a tree, its sum and the sum of its absolute values."""
    leaves = jax.tree.leaves(jax.device_get(tree))
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    return [flat.size, flat.sum(), np.abs(flat).sum()]


def assert_like(found, wanted, rel=1e-4, path=""):
    """`found` contains `wanted`, with numbers to the relative tolerance; it may contain more."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            assert_like(found[key], value, rel, f"{path}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), path
        for i, value in enumerate(wanted):
            assert_like(found[i], value, rel, f"{path}/{i}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=rel, abs=rel / 100), path
    else:
        assert found == wanted, path


def expected_arrays():
    with np.load("edit_expected.npz") as arrays:
        return dict(arrays)


def assert_deltas(edit, rtol):
    """The expected deltas, to `rtol` of each number or of the largest."""
    wanted = expected_arrays()
    assert set(edit.deltas) == {name for name in wanted if not name.startswith("log_probs")}
    for name, delta in edit.deltas.items():
        largest = np.abs(wanted[name]).max()
        assert largest > 0.01
        np.testing.assert_allclose(delta.dense(), wanted[name], rtol=rtol, atol=rtol * largest)


def assert_log_probs(model, wanted):
    """Log-probabilities of next tokens; they are about 5, sums of numbers about 1."""
    np.testing.assert_allclose(model.next_token_log_probs(PROMPTS), wanted, rtol=1e-4, atol=1e-5)


def test_a_base_is_the_same_model():
    model = load_base()
    assert model.fingerprint == EXPECTED["base"]["fingerprint"]
    for prompt, tokens in EXPECTED["base"]["tokens"].items():
        assert model.tokenizer.encode(prompt) == tokens
    assert_log_probs(model, expected_arrays()["log_probs"])


def test_a_run_gives_back_its_editor():
    editor = mend_jax.Editor.restore("run")
    assert editor.model.fingerprint == EXPECTED["base"]["fingerprint"]
    for name, wanted in EXPECTED["run"]["learned"].items():
        tree = {"params": editor.params, "state": editor.state}[name]
        assert sums(tree) == pytest.approx(wanted, rel=1e-9)
    assert editor.id == EXPECTED["run"]["editor"]  # what its edits are signed with


def test_the_editor_of_a_run_makes_the_edit_that_it_made():
    edit = mend_jax.Editor.restore("run").edit([FACT])
    assert (edit.base, edit.editor) == (EXPECTED["edit"]["base"], EXPECTED["edit"]["editor"])
    assert_deltas(edit, rtol=1e-4)


def test_an_edit_file_is_the_edit_that_was_saved():
    edit = mend_jax.Edit.load("edit.safetensors")
    metadata = {"facts": [list(fact) for fact in edit.facts], "made": edit.created}
    assert metadata | {"base": edit.base, "editor": edit.editor} == EXPECTED["edit"]
    assert_deltas(edit, rtol=1e-6)
    edited = load_base().with_edit(edit)
    assert_log_probs(edited, expected_arrays()["log_probs_edited"])


def test_a_finished_run_only_writes_its_report_again():
    before = Path("run/results.json").read_bytes()
    shutil.rmtree("base")  # the base is not read
    results = train("run", "run")
    sets = {"edit": "edit", "rephrase": "paraphrase"}  # old name of a set of texts -> new
    headline = {old: results["eval"][new]["nll"] for old, new in sets.items()}
    headline |= {"kl": results["eval"]["locality"]["kl"], "data": results["data"]["fingerprint"]}
    assert headline == EXPECTED["run"]["headline"]
    assert Path("run/results.json").read_bytes() == before
    page = Path("run/report.html").read_text(encoding="utf-8")
    for name in sets:  # NLL, as text
        assert f"{headline[name]:.3g}" in page


@pytest.mark.slow
def test_an_interrupted_run_ends_like_an_uninterrupted_one(capsys):
    wanted = read("interrupted_expected.json")
    before = lines_of("interrupted/metrics.jsonl")
    assert max(line["step"] for line in before) == 3
    train("interrupted", "interrupted")
    lines = lines_of("interrupted/metrics.jsonl")
    assert lines[: len(before)] == before
    assert_like(lines, wanted["metrics"])
    assert_like(read("interrupted/results.json"), migrate_results(wanted["results"]))
    log = capsys.readouterr().err
    assert "resuming after step 3" in log
    assert "24 of 24 rows were found in it" in log  # in trunks/


def test_a_ledger_is_shown_as_it_was(capsys):
    shutil.rmtree("base")  # nothing is computed
    wanted = EXPECTED["ledger"]
    entries = json.loads(out_of(capsys, "log", "--ledger", "ledger", "--json"))
    assert_like(entries, wanted["entries"], rel=0)
    found = json.loads(out_of(capsys, "show", "--ledger", "ledger", "--json"))
    assert (found["base"], found["in_force"]) == (wanted["base"], wanted["in_force"])
    assert [entry["number"] for entry in found["entries"]] == wanted["in_force"]
    text = out_of(capsys, "show", "--ledger", "ledger", "--entry", "2")
    assert "edit 2 (reverted " in text and "verdict: " in text
    assert f"plain text: KL {wanted['entries'][1]['measured']['text']['kl']:.3f}" in text
    out_of(capsys, "show", "--ledger", "ledger", "--html", "page.html")
    assert "One and one is" in Path("page.html").read_text(encoding="utf-8")


def test_the_active_edits_of_a_ledger_are_exported(capsys):
    """The sum of those that are not reverted: one dense, one of low rank."""
    out_of(capsys, "export", "all", "--ledger", "ledger", "--to", "merged", "--as", "merged")
    merged = mend_jax.load_model("merged", last_n_blocks=1)
    assert_log_probs(merged, EXPECTED["ledger"]["log_probs"])
    kinds = [type(mend_jax.Edit.load(path).deltas["block_1/mlp/up"]).__name__
             for path in sorted(Path("ledger/edits").iterdir())]  # fmt: skip
    assert kinds == ["Dense", "LowRank", "LowRank"]


@pytest.mark.parametrize("file", EXPECTED["editor_files"])
def test_an_editor_file_adds_an_edit_to_an_existing_ledger(file, capsys):
    flags = ["--ledger", "ledger", "--fact", " => ".join(FACT), "--editor", file, "--json"]
    (entry,) = json.loads(out_of(capsys, "apply", *flags))["entries"]
    assert entry["number"] == 4
    assert entry["editor"] == EXPECTED["editor_files"][file]["editor"]
    wanted = EXPECTED["editor_files"][file]["norm"]
    assert entry["measured"]["edit"]["norm"] == pytest.approx(wanted, rel=1e-4)
    out_of(capsys, "revert", "3", "--ledger", "ledger")
    found = json.loads(out_of(capsys, "show", "--ledger", "ledger", "--json"))
    assert found["in_force"] == [1, 4]


@pytest.mark.full
def test_a_stored_batch_is_run_again(capsys):
    step = EXPECTED["batch"]["step"]
    shutil.copytree("batch", f"run/non_finite/{step}")
    assert replay_step.main([f"run/non_finite/{step}"]) == 0
    line = re.match(r"step (\d+): loss (\S+); all finite", capsys.readouterr().out)
    assert int(line[1]) == step
    assert float(line[2]) == pytest.approx(EXPECTED["batch"]["loss"], rel=1e-4)


@pytest.fixture
def no_process(monkeypatch):
    """Starting a run fails the test."""

    def refused(*args, **kwargs):
        raise AssertionError("a run was started")

    monkeypatch.setattr(subprocess, "Popen", refused)


def scores_of(folder):
    return {row["cell"]: row["scores"]["kl"] for row in read(f"{folder}/grid.json")["rows"]}


def test_a_finished_grid_only_writes_its_report_again(no_process):
    Path("grid/grid.json").unlink()
    assert main.main(["--config=table.py", "--workdir=grid"]) == 0
    assert scores_of("grid") == EXPECTED["grid"]
    assert Path("grid/report.html").exists()


def test_the_table_of_a_grid_is_joined():
    assert join_grids.main(["joined", "grid/grid.json"]) == 0
    assert scores_of("joined") == EXPECTED["grid"]
    new, old = (Path(folder, "table.md").read_text().splitlines() for folder in ("joined", "grid"))
    old = [line.replace("same choice", "arg max kept") for line in old]  # a column's old name
    assert sorted(new) == sorted(old)


def test_finished_runs_of_several_seeds_are_summarised(no_process):
    flags = ["--config=recipe.py:cell", "--workdir=grid/mend", "--seeds=0,1"]
    assert multi_seed.main(flags) == 0
    found = read("grid/mend/seeds.json")["eval"]["locality.kl"]
    assert found["values"] == EXPECTED["grid"]["mend"]["values"]


def test_a_finished_fact_checker_is_reported_and_scores_claims(capsys):
    config = read("checker/config.json")
    flags = [f"--config.{group}.{name}={value}" for group in ("model", "data", "train", "eval")
             for name, value in config[group].items()]  # fmt: skip
    assert main.main(["--config=fever_finetune.py", "--workdir=checker", *flags]) == 0
    accuracy = EXPECTED["checker"]["accuracy"]
    assert f"test accuracy {accuracy:.3f}" in capsys.readouterr().err
    model = mend_jax.load_model("checker/model", last_n_blocks=1)
    assert model.fingerprint == EXPECTED["checker"]["fingerprint"]
    claims = EXPECTED["checker"]["judged"]
    assert model.score_claims(list(claims)) == pytest.approx(list(claims.values()), rel=1e-4)
