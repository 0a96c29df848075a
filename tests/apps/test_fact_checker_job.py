"""The fine-tuning job: a tiny encoder without a head becomes a fact checker."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from support.tiny import HF, save_tiny

import mend_jax
from mend_jax import data, hub
from mend_jax.apps import fact_checker_job
from mend_jax.apps.run_command import main, parse
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.claims import encode_claims, padded_widths, shuffled_batches, take_trimmed
from mend_jax.data.data_set import DataSet
from mend_jax.data.rows import make_row
from mend_jax.errors import CheckpointError, ConfigError, Preempted, TrainingError
from mend_jax.evaluation.claim_scores import score_claims
from mend_jax.io.files import as_path
from mend_jax.models.params import unstack_trunk
from mend_jax.models.single_stack import CLASSIFIER_HEAD
from mend_jax.training.run_folder import locked_folder

SETTINGS = {
    "model.last_n_blocks": 2, "data.max_len": 24, "train.epochs": 12, "train.batch_size": 8,
    "train.lr": 3e-3, "train.warmup": 4, "train.log_every": 4, "train.val_every": 12,
    "eval.batch_size": 16,
}  # fmt: skip


def claims(count, seed):
    """Return claims with paraphrases; those that end in `y` are true."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        word = "".join(rng.choice(list("abcd"), rng.integers(3, 9)))
        claim, truth = f"{word} {'xy'[number % 2]}", ("false", "true")[number % 2]
        other = ("true", "false")[number % 2]
        rows.append(make_row(key=f"{seed}-{number}", prompt=claim, target=other, truth=truth,
                             rephrase=f"ha {claim}"))  # fmt: skip
    return rows


def claims_set(task="fc"):
    splits = {name: claims(n, i) for i, (name, n) in enumerate(
        (("train", 64), ("validation", 20), ("test", 30)))}  # fmt: skip
    return DataSet("claims", "d", "l", "f00", splits, task)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the folder of an encoder without a head, with tensor names without a prefix."""
    folder = save_tiny(tmp_path_factory.mktemp("base"), "bert", std=0.05)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    bare = {k.removeprefix("bert."): v for k, v in tensors.items() if "classifier" not in k}
    safetensors.numpy.save_file(bare, folder / "model.safetensors")
    config = {k: v for k, v in HF["bert"].items() if k != "num_labels"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def settings(base, **more):
    chosen = {"model.spec": base, **SETTINGS, **more}
    flags = [f"--config.{key}={value}" for key, value in chosen.items()]
    return parse(["--config=fever_finetune.py", *flags])[0]


@pytest.fixture(autouse=True)
def made_up_claims(monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: claims_set())


@pytest.fixture(scope="module")
def ran(base, tmp_path_factory):
    """Return (run folder, results) of a short run."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda *_, **__: claims_set())
        return workdir, fact_checker_job.finetune(settings(base), workdir, "x.py")


def lines_of(workdir, kind):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.slow
def test_a_run_learns_and_reports_its_scores(ran):
    workdir, results = ran
    losses = [line["loss"] for line in lines_of(workdir, "train")]
    assert losses[0] > 0.5 and losses[-1] < 0.1
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))
    assert set(results["eval"]) == {"train", "validation", "test", "test_paraphrase"}
    for name, n in (("train", 30), ("validation", 20), ("test", 30), ("test_paraphrase", 30)):
        found = results["eval"][name]
        low, high = found["accuracy_ci95"]
        assert found["n"] == n and low < found["accuracy"] <= high
        assert found["accuracy"] > 0.8 and 0 < found["nll"] < 0.6
    assert results["training"]["steps"] == 12 * 2 * 64 // 8
    best = [v["accuracy"] for v in lines_of(workdir, "validation")]
    steps = [v["step"] for v in lines_of(workdir, "validation")]
    assert results["training"]["kept_step"] == steps[int(np.argmax(best))]
    assert results["eval"]["validation"]["accuracy"] == max(best)
    assert results["seconds_total"] > 0 and results["versions"]["jax"] and results["hardware"]


@pytest.mark.slow
def test_the_trunk_does_not_change(ran, base):
    before = unstack_trunk(
        mend_jax.load_model(str(base), last_n_blocks=2, new_parameters=CLASSIFIER_HEAD).params
    )
    after = unstack_trunk(mend_jax.load_model(str(ran[0] / "model"), last_n_blocks=2).params)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert {path.split("/")[0] for path in changed} == {
        "block_2", "block_3", "pooler", "classifier"
    }  # fmt: skip
    trained = sum(np.size(before[path]) for path in changed)
    assert ran[1]["training"]["trained_parameters"] >= trained > 0


@pytest.mark.slow
def test_the_written_folder_is_the_trained_model(ran, base):
    workdir, results = ran
    model = mend_jax.load_model(str(workdir / "model"))
    assert model.fingerprint == results["model"]["fingerprint"] != results["base"]["fingerprint"]
    assert model.tokenizer.fingerprint == mend_jax.load_model(
        str(base), new_parameters=CLASSIFIER_HEAD
    ).tokenizer.fingerprint  # fmt: skip
    rows = claims(30, 2)
    probabilities = model.score_claims([row["prompt"] for row in rows])
    is_true = np.asarray([row["truth"] == "true" for row in rows])
    right = np.mean((np.asarray(probabilities) > 0.5) == is_true)
    assert right == pytest.approx(results["eval"]["test"]["accuracy"])
    seqs = encode_claims(rows, ("prompt",), tokenizer=model.tokenizer, max_len=24)
    nll = score_claims(model.module, model.params, seqs, 7)["nll"]
    theirs = -np.log(np.where(is_true, probabilities, 1 - np.asarray(probabilities)))
    np.testing.assert_allclose(nll, theirs, atol=1e-4)
    assert nll.mean() == pytest.approx(results["eval"]["test"]["nll"], abs=1e-5)
    assert hub.read_model_config(hub.resolve(workdir / "model"))["num_labels"] == 1


@pytest.mark.slow
def test_a_finished_run_is_only_reported(ran, base, monkeypatch, capsys):
    workdir, results = ran
    monkeypatch.setattr(fact_checker_job, "load_model", None)
    assert fact_checker_job.finetune(settings(base), workdir) == json.loads(json.dumps(results))
    assert "is finished" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="train.lr"):
        fact_checker_job.finetune(settings(base, **{"train.lr": 1.0}), workdir)


@pytest.mark.full
def test_an_interrupted_run_starts_again_with_equal_results(ran, base, tmp_path, monkeypatch):
    class Stop:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def after_step(self, step):
            return step == 14

    with monkeypatch.context() as patch:
        patch.setattr(fact_checker_job.distributed, "StopRequest", Stop)
        with pytest.raises(Preempted, match="stop requested at step 14"):
            fact_checker_job.finetune(settings(base), tmp_path)
    assert not (tmp_path / "results.json").exists() and lines_of(tmp_path, "train")
    again = fact_checker_job.finetune(settings(base), tmp_path)
    assert again["model"] == ran[1]["model"] and again["eval"] == ran[1]["eval"]
    assert (tmp_path / "metrics.jsonl").read_text() == (ran[0] / "metrics.jsonl").read_text()


@pytest.mark.full
def test_patience_stops_early_and_keeps_the_best_step(base, tmp_path):
    more = {"train.lr": 1e-9, "train.patience": 20, "data.rephrases": False, "eval.rows": 8}
    results = fact_checker_job.finetune(settings(base, **more), tmp_path)
    assert results["training"]["steps"] == 36 and results["training"]["kept_step"] == 12
    assert {e["n"] for e in results["eval"].values()} == {8}


@pytest.mark.slow
def test_the_command_line_runs_the_job(base, tmp_path, capsys):
    flags = [f"--config.{k}={v}" for k, v in (SETTINGS | {"model.spec": base}).items()]
    command = ["--config=fever_finetune.py:smoke", f"--workdir={tmp_path}", *flags]
    command += ["--config.train.epochs=1"]
    assert main(command) == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "accuracy" in capsys.readouterr().err
    assert main([*command, "--compile_for=v5e:2x2"]) == 2
    assert "only editing runs" in capsys.readouterr().err


def test_errors_name_the_mistake(base, tmp_path, monkeypatch):
    config = settings(base)
    with config.unlocked():
        config.train.stesp = 1
        del config.train["clip"]
        config.train.lr = 0.0
    with pytest.raises(ConfigError, match="clip is missing.*lr is 0.0.*stesp is not a key"):
        fact_checker_job.finetune(config, tmp_path)
    with pytest.raises(ConfigError, match="batch_size is 999, more than the 128 claims"):
        fact_checker_job.finetune(settings(base, **{"train.batch_size": 999}), tmp_path)
    with pytest.raises(TrainingError, match="step 4: the loss is nan"):
        fact_checker_job.finetune(settings(base, **{"train.lr": 1e30}), tmp_path)
    with locked_folder(tmp_path), pytest.raises(ConfigError, match="in use by another run"):
        fact_checker_job.finetune(settings(base), tmp_path)
    with pytest.raises(data.DataError, match="none of the 64 claims .* maximum is 3"):
        fact_checker_job.finetune(settings(base, **{"data.max_len": 3}), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fact_checker_job, "prepare_folder", as_path)
        with pytest.raises(ConfigError, match="gs://x/y: fine-tuning needs a local folder"):
            fact_checker_job.finetune(settings(base), "gs://x/y")
    monkeypatch.setattr(data, "load", lambda *_, **__: claims_set("qa"))
    with pytest.raises(ConfigError, match="claims has no claims: use one"):
        fact_checker_job.finetune(settings(base), tmp_path)


def test_dropped_claims_are_logged(base, caplog):
    rows = claims(4, 0) + [make_row(key="x", prompt="a" * 40, target="true", truth="false",
                                    rephrase="b")]  # fmt: skip
    tokenizer = mend_jax.load_model(str(base), new_parameters=CLASSIFIER_HEAD).tokenizer
    found = encode_claims(rows, ("prompt",), tokenizer=tokenizer, max_len=24)
    assert len(found.tokens) == 4 and "dropped 1 of 5 claims; the last: " in caplog.text


def test_batches_have_texts_of_one_width_and_every_text_once():
    lengths = np.random.default_rng(0).integers(3, 25, 100)
    mask = np.arange(24) < lengths[:, None]
    seqs = TokenBatch(np.zeros((100, 24), np.int32), mask, *[np.zeros((100, 1))] * 3)
    found = list(shuffled_batches(seqs, 8, 2, 0))
    assert len(found) == 24
    for epoch in (found[:12], found[12:]):
        assert len(set(np.concatenate(epoch).tolist())) == 96
    assert sum(len(set(padded_widths(seqs)[index])) == 1 for index in found) >= 20
    assert [i.tolist() for i in found] != [i.tolist() for i in found[12:] + found[:12]]
    again = shuffled_batches(seqs, 8, 2, 0)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    some = take_trimmed(seqs, found[0])
    assert some.tokens.shape[1] == padded_widths(seqs)[found[0]].max()
    assert jax.tree.leaves(some)[0].shape[0] == 8
