"""The doctor: a sound run passes, and each planted fault fails its own check."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import HF, save_tiny
from test_fact_checker_job import SETTINGS as CLAIM_SETTINGS
from test_fact_checker_job import claims_set
from test_train_and_evaluate import SETTINGS

import mend_jax
from mend_jax import data, hub, models
from mend_jax.apps import doctor, grid
from mend_jax.apps.doctor import (
    check_base,
    check_editing,
    check_machine,
    check_splits,
    job_checks,
)
from mend_jax.apps.doctor.check_config import check_config, schedule_problems
from mend_jax.apps.doctor.check_result import CheckResult
from mend_jax.apps.doctor.command import main
from mend_jax.apps.run_command import parse
from mend_jax.apps.train_and_evaluate import run_doctor
from mend_jax.core.forward import scored_states, trunk_states
from mend_jax.core.weight_edit import Edit
from mend_jax.data.rows import make_row
from mend_jax.editors import EditTransform, low_rank_mlp, make_editor
from mend_jax.errors import TrainingError
from mend_jax.hub.text_encoding import encode_text, stack_batches
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.models.params import random_params, stack_trunk
from mend_jax.training import checkpoints
from mend_jax.training import config as configs
from mend_jax.training.assembly import build_optimizer, open_experiment

KIND = "llama3"  # its head is a matrix of its own
STEPS = 300
CHECKS = [
    "config", "weights", "workdir", "base", "tokenizer", "data", "memory", "factors", "gradients",
    "learning", "edit",
]  # fmt: skip


def sound_params(*zeroed):
    """Return flat parameters of a tiny base whose head is fitted to the known text.

    The fit is a softmax regression from the states of a random trunk; `STEPS` steps of descent
    leave the text likely, but not memorised. `zeroed`: weights that are zero.
    """
    family = models.find_family(HF[KIND])
    config = models.parse_config(family, HF[KIND])
    flat = random_params(family.tensor_specs(config), seed=0, std=0.1)
    flat |= {path: np.zeros_like(flat[path]) for path in zeroed}
    module = family.model_class(config, 1)
    params = stack_trunk(flat, module.stacks)
    seqs = stack_batches([encode_text(Tokenizer.tiny(), check_base.TEXT, check_base.MAX_TOKENS)])

    @jax.jit
    def states_of(params):
        return scored_states(module, params, trunk_states(module, params, seqs), seqs)

    states = states_of(params)
    h_TxD, target = np.asarray(states)[0], np.asarray(seqs.target)[0]
    wanted = np.eye(config.vocab_size, dtype=np.float32)[target]
    head = np.zeros((h_TxD.shape[-1], config.vocab_size), np.float32)
    rate = 2.0 / np.linalg.eigvalsh(h_TxD.T @ h_TxD)[-1]  # the Hessian's bound is half of it
    for _ in range(STEPS):
        p = np.exp(h_TxD @ head)
        p /= p.sum(-1, keepdims=True)
        head += rate * h_TxD.T @ (wanted - p)
    return flat | {"unembedding": head}


def write_base(folder, flat, tokenizer=None):
    family = models.find_family(HF[KIND])
    specs = family.tensor_specs(models.parse_config(family, HF[KIND]))
    hub.save_hf(folder, HF[KIND], flat, specs)
    (tokenizer or Tokenizer.tiny()).save(folder)
    return folder


def run_flags(base, **more):
    settings = SETTINGS | {
        "model.spec": base,
        "model.last_n_blocks": 1,
        "train.edit_from_paraphrase": False,
    }
    settings |= {"editor.options.step_size": 1e-2, "editor.options.log_step_size": False}
    settings |= {"train.step_size_lr": 1e-3}  # of alpha itself
    return [f"--config.{k}={v}" for k, v in (settings | more).items()]


def run_config(base, **more):
    return parse(["--config=quickstart.py", *run_flags(base, **more)]).config


@pytest.fixture(scope="module")
def flat():
    return sound_params()


@pytest.fixture(scope="module")
def base(flat, tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), flat)


@pytest.fixture(scope="module")
def sound(base):
    """Return the experiment of a sound run."""
    return open_experiment(run_config(base))


@pytest.fixture
def start(sound):
    """Return the state that its training begins with."""
    return sound.fresh_state()


def only_failure(results):
    """Return the one check that failed, after checking that its lines contain the fix."""
    failed = [result for result in results if result.failed]
    assert len(failed) == 1, failed
    assert failed[0].fix and any(failed[0].fix in line for line in failed[0].lines())
    return failed[0]


def with_step_sizes(start, value):
    """Return the state with all step sizes set to a value."""
    step_sizes = start.params["scale_by_layer_lr"]
    set_to = jax.tree.map(lambda size: jnp.full_like(size, value), step_sizes)
    return start.replace(params=start.params | {"scale_by_layer_lr": set_to})


@pytest.mark.slow
def test_a_sound_run_passes_every_check(base, tmp_path, capsys):
    workdir = tmp_path / "new/run"
    flags = ["--config=quickstart.py", f"--workdir={workdir}", *run_flags(base), "--json"]
    status = main(flags)
    report = json.loads(capsys.readouterr().out)
    assert [c["check"] for c in report["checks"]] == CHECKS
    assert {c["status"] for c in report["checks"]} == {"ok"}, report
    assert all(c["measured"] and not c["fix"] for c in report["checks"])
    assert status == 0 and report["ok"] and report["config"] == "quickstart.py"
    assert not workdir.parent.exists()


def test_a_base_with_shuffled_weights_fails_base(flat, tmp_path):
    rng = np.random.default_rng(0)
    shuffled = {path: rng.permutation(w.ravel()).reshape(w.shape) for path, w in flat.items()}
    base = write_base(tmp_path / "base", shuffled)
    failure = only_failure(job_checks.check_editing_run(run_config(base), tmp_path))
    assert failure.check == "base" and "check model.spec" in failure.fix


def test_a_base_that_sees_the_next_token_fails_base(sound, monkeypatch):
    monkeypatch.setattr(check_base, "_nll", lambda module, params, texts: jnp.asarray([0.1, 9.0]))
    found = check_base.check_base(sound)
    assert (
        found.failed and "perplexity 1.105" in found.measured and found.required.startswith("2 to")
    )


def test_a_nan_weight_fails_base_and_is_named(flat, tmp_path):
    weight = flat["block_3/mlp/up/kernel"].copy()
    weight[3, 5] = np.nan
    base = write_base(tmp_path / "base", flat | {"block_3/mlp/up/kernel": weight})
    failure = only_failure(job_checks.check_editing_run(run_config(base), tmp_path))
    assert failure.check == "base" and "block_3/mlp/up/kernel" in failure.measured


def test_a_tokenizer_of_another_vocabulary_fails_tokenizer(flat, tmp_path):
    tokenizer = Tokenizer.tiny()
    tokenizer.inner.add_tokens([f"token-{i}" for i in range(60)])
    base = write_base(tmp_path / "base", flat, tokenizer)
    failure = only_failure(job_checks.check_editing_run(run_config(base), tmp_path))
    assert failure.check == "tokenizer" and "largest id 316 of 300" in failure.measured
    assert "tokenizer.json" in failure.fix


def test_a_tokenizer_that_loses_letters_fails_tokenizer(sound):
    class Lossy(Tokenizer):
        def encode(self, text):
            return super().encode(text.replace("q", ""))

    tokenizer = Lossy(sound.model.tokenizer.inner, sound.model.tokenizer.eos_id)
    found = check_base.check_tokenizer(dataclasses.replace(sound.model, tokenizer=tokenizer))
    assert found.failed and "(not English)" in found.measured


@pytest.mark.parametrize(
    "key, value, message", [("edit_roles", ("mlp/nowhere",), "no weight 'mlp/nowhere'"),
                         ("last_n_blocks", 9, "the model has 4 blocks")],
)  # fmt: skip
def test_weights_that_the_base_lacks_fail_weights(base, tmp_path, key, value, message):
    config = run_config(base)
    config.model[key] = value
    failure = only_failure(job_checks.check_editing_run(config, tmp_path))
    assert failure.check == "weights" and message in failure.measured


def test_a_missing_base_fails_weights(tmp_path):
    failure = only_failure(job_checks.check_editing_run(run_config(tmp_path / "nowhere"), tmp_path))
    assert failure.check == "weights" and "nowhere" in failure.measured


@pytest.mark.parametrize(
    "key, value, message",
    [("train.accumulate", 9, "nothing is learned"), ("train.warmup", 6, "never reaches train.lr"),
     ("train.log_every", 7, "no line is logged"), ("train.patience", 2, "stops at the first"),
     ("editor.strength", 0.0, "every edit is zero"),
     ("eval.baselines", "{'x': {'editor': 'fine_tune', 'rate': 1}}", "has no option")],
)  # fmt: skip
def test_a_schedule_that_cannot_train_fails_config(base, tmp_path, key, value, message):
    failure = only_failure(job_checks.check_editing_run(run_config(base, **{key: value}), tmp_path))
    assert failure.check == "config" and message in failure.measured


def test_every_config_of_the_project_has_a_sound_schedule():
    n_checked = 0
    for name in configs.config_names():
        for variant in ("", ":smoke"):
            config = configs.load_config(name + variant)
            if config.job == "edit":
                assert schedule_problems(config) == [], name + variant
                check_config(config)
                n_checked += 1
    assert n_checked > 30


def test_a_workdir_that_cannot_be_written_fails_workdir(sound, start, tmp_path):
    (tmp_path / "file").write_text("")
    failure = only_failure(doctor.run_checks(sound, tmp_path / "file/run", start))
    assert failure.check == "workdir" and "cannot be written" in failure.measured


def test_a_disk_without_room_for_the_checkpoints_fails_workdir(sound, start, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mend_jax.training.run_folder.shutil.disk_usage",
        lambda _: shutil._ntuple_diskusage(9000, 8000, 1000),
    )
    failure = only_failure(doctor.run_checks(sound, tmp_path / "new/run", start))
    assert failure.check == "workdir" and "make room there" in failure.measured
    assert not (tmp_path / "new").exists()


def test_splits_that_share_subjects_fail_data(sound, start, tmp_path):
    mixed = dataclasses.replace(sound, validation=sound.train)
    failure = only_failure(doctor.run_checks(mixed, tmp_path, start))
    assert failure.check == "data" and "train and validation share" in failure.measured
    assert "subjects" in failure.measured and "prompts" in failure.measured


def test_shared_prompts_and_empty_splits_are_found_in_any_case():
    def row(name, prompt, rephrase=""):
        return make_row(key=name, prompt=prompt, target="x", rephrase=rephrase or prompt)

    rows = {"train": [row("a", "Who is a?")], "test": [row("b", "b?", "WHO is A?")]}
    problems, _ = check_splits.split_problems(rows)
    assert problems == ["train and test share 1 prompts, such as 'who is a'"]
    rows["test"] = [row("c", "c?", "?c")]
    assert check_splits.split_problems(rows) == ([], "no subject or prompt shared")
    assert check_splits.split_problems({**rows, "validation": []})[0] == ["validation is empty"]
    for n, good in ((199, False), (200, True)):  # one in 200 is 0.5 %
        many = [row(f"d{i}", f"Is it {i}?", f"Is it {i}?") for i in range(n - 1)]
        train = [row(f"e{i}", f"Was it {i}?") for i in range(300)] + rows["train"]
        problems, remark = check_splits.split_problems(
            {"train": train, "test": many + rows["train"]}
        )
        assert (not [p for p in problems if "prompts" in p]) == good
        assert ("share 1 prompts" in remark) == good


@pytest.mark.full
def test_rows_that_do_not_fit_fail_data(base, tmp_path):
    failure = only_failure(
        job_checks.check_editing_run(run_config(base, **{"data.max_len": 60}), tmp_path)
    )
    assert failure.check == "data" and "of the train rows do not fit" in failure.measured
    assert "data.max_len" in failure.fix


def test_too_little_free_memory_fails_memory(sound, start, tmp_path, monkeypatch):
    monkeypatch.setattr(check_machine, "free_memory", lambda: 1000)
    failure = only_failure(doctor.run_checks(sound, tmp_path, start))
    assert failure.check == "memory" and "train.edits_per_step" in failure.fix


def test_free_memory_is_that_of_the_machine_or_of_its_container(tmp_path, monkeypatch):
    monkeypatch.setattr(check_machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(check_machine, "CGROUP", tmp_path)
    assert check_machine.free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   5000 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert check_machine.free_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    assert check_machine.free_memory() == 4000000 - 1000 + 300


def test_weights_that_no_loss_reaches_fail_factors(tmp_path):
    """Weights behind a matrix of zeros have no gradient."""
    flat = sound_params("block_3/mlp/down/kernel")
    base = write_base(tmp_path / "base", flat)
    failure = only_failure(job_checks.check_editing_run(run_config(base), tmp_path))
    assert failure.check == "factors" and "model.edit_roles" in failure.fix
    assert "block_3/mlp/gate" in failure.measured and "block_3/mlp/down" not in failure.measured


@pytest.mark.slow
def test_an_editor_without_a_gradient_at_zero_fails_gradients(sound, monkeypatch):
    """With an identity start, `jax.nn.relu` has derivative 0 at 0."""
    monkeypatch.setattr(low_rank_mlp, "relu_one_at_zero", jax.nn.relu)
    options = sound.config.editor.options.to_dict() | {"rank": 7}  # not compiled yet
    dead = dataclasses.replace(sound, editor=make_editor("mend", options))
    start = dead.fresh_state()
    step, batch = check_editing.jitted_train_step(dead, start), check_editing.longest_batch(dead)
    failure = only_failure(
        [
            check_editing.check_gradients(
                check_editing.train_on_one_batch(dead, step, start, batch)[1]
            )
        ]
    )
    assert failure.check == "gradients" and "relu_one_at_zero" in failure.fix
    assert "parts have none: low_rank_mlp" in failure.measured


def test_a_gradient_that_is_not_finite_fails_gradients(sound, start, tmp_path):
    failure = only_failure(doctor.run_checks(sound, tmp_path, with_step_sizes(start, 1e30)))
    assert failure.check == "gradients" and "step 1: loss nan" in failure.measured


@pytest.mark.full
def test_tiny_learning_rates_fail_learning(sound, start, tmp_path):
    """The weight of success falls from step to step; that alone is not learning."""
    config = sound.config.copy_and_resolve_references()
    config.train.lr = config.train.step_size_lr = 1e-30
    still = dataclasses.replace(sound, tx=build_optimizer(config))
    failure = only_failure(doctor.run_checks(still, tmp_path, start))
    assert failure.check == "learning" and "raise train.lr" in failure.fix


def test_an_editor_of_the_wrong_sign_fails_edit(sound, start, tmp_path):
    """It adds instead of subtracting, by more than a few updates can reverse."""
    failure = only_failure(doctor.run_checks(sound, tmp_path, with_step_sizes(start, -0.5)))
    assert failure.check == "edit" and "less likely" in failure.measured
    assert "subtract the edit" in failure.fix


@pytest.mark.slow
def test_an_empty_edit_fails_edit(sound, start, tmp_path):
    def nothing(params, state, problem, train):
        return Edit(deltas={}), state

    editor = EditTransform(lambda key, weights: ({}, {}), nothing, trainable=False)
    results = list(doctor.run_checks(dataclasses.replace(sound, editor=editor), tmp_path, start))
    failure = only_failure(results)
    assert failure.check == "edit" and "edits change no weight" in failure.measured
    status = {r.check: (r.status, r.measured) for r in results}
    assert status["gradients"] == status["learning"] == ("skipped", "mend is not trained")


def test_an_editor_that_does_not_fit_the_texts_fails_config(sound, start, tmp_path):
    """It prepends corrections to a text, which is then longer than the tiny context."""
    reads = dataclasses.replace(sound, editor=make_editor("in_context", {}))
    failure = only_failure(doctor.run_checks(reads, tmp_path, start))
    assert failure.check == "config" and "the model's context is 160" in failure.measured


def test_an_edited_model_that_answers_as_the_base_fails_edit(sound):
    nll = np.ones(4, np.float32)
    deltas = {"block_3/mlp/up": nll}
    for after, unchanged, message in (
        (nll, True, "all 4 edited models answer as the base does"),
        (nll * np.nan, True, "4 edited models answer NaN"),
        (nll / 2, False, "the base itself was changed"),
    ):
        found = {"before": nll, "after": after, "deltas": deltas}
        result = check_editing.check_edit(found, sound.editor, unchanged)
        assert result.failed and message in result.measured
    assert not check_editing.check_edit(found, sound.editor, True).failed


def test_an_editor_without_weight_changes_skips_factors(sound):
    in_context = make_editor("in_context", {})
    nll = np.ones(4, np.float32)
    assert check_editing.check_factors({}, in_context).status == "skipped"
    found = {"before": nll, "after": nll / 2, "deltas": {}}
    assert not check_editing.check_edit(found, in_context, True).failed
    assert check_editing.check_edit(found, sound.editor, True).failed


def test_a_classifier_with_a_constant_answer_fails_base(sound, monkeypatch):
    """Accuracy is balanced: with nine true claims and one false, a constant answer scores .5."""
    near = sound.train.encoded.texts["near"]
    label = (np.arange(48) % 10 != 0).astype(np.int32)[:, None]
    near = near.replace(target=label, score_mask=np.ones_like(label, bool))
    encoded = dataclasses.replace(sound.train.encoded, texts={"near": near})
    train = dataclasses.replace(sound.train, encoded=encoded)
    experiment = dataclasses.replace(sound, train=train)
    for right, status in ((label == 1, "failed"), (label >= 0, "ok")):
        monkeypatch.setattr(check_base, "_correct_claims", lambda *_, right=right: right)
        assert check_base._check_classifier(experiment).status == status
    one = dataclasses.replace(encoded, texts={"near": near.replace(target=np.ones_like(label))})
    train = dataclasses.replace(train, encoded=one)
    assert check_base._check_classifier(dataclasses.replace(sound, train=train)).status == "skipped"


def test_a_run_that_fails_a_check_does_not_begin(base, tmp_path, monkeypatch):
    bad = CheckResult("learning", "failed", "a loss of 5", "a loss that falls", "raise train.lr")
    monkeypatch.setattr(doctor, "run_checks", lambda *_: [bad])
    with pytest.raises(TrainingError, match="(?s)1 of the doctor.s 1 checks.*fix: raise train.lr"):
        mend_jax.train_and_evaluate(run_config(base, **{"train.doctor": True}), tmp_path)
    assert checkpoints.open_manager(tmp_path / "checkpoints", read_only=True).latest_step() is None
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("error", [
    MemoryError("std::bad_alloc"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes"),
])  # fmt: skip
def test_memory_that_runs_out_fails_memory(sound, start, tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(check_editing, "train_on_one_batch", fail)
    failure = only_failure(doctor.run_checks(sound, tmp_path, start))
    assert failure.check == "memory" and "out of memory" in failure.measured
    monkeypatch.setattr(check_editing, "train_on_one_batch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(doctor.run_checks(sound, tmp_path, start))


def test_each_result_is_printed_at_once(monkeypatch, capsys):
    printed = []

    def checks(config, workdir):
        for name in ("one", "two"):
            yield CheckResult(name, "ok", "fine")
            printed.append(capsys.readouterr().out)

    monkeypatch.setitem(job_checks.JOB_CHECKS, "edit", checks)
    assert main(["--config=quickstart.py"]) == 0
    assert [line.split() for line in printed] == [["one", "ok", "fine"], ["two", "ok", "fine"]]
    assert capsys.readouterr().out.startswith("all well, ")


def test_a_run_reports_that_all_checks_passed(sound, start, tmp_path, capsys):
    run_doctor(sound, tmp_path, start)
    assert "doctor: 9 checks, all well" in capsys.readouterr().err
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(start))


def test_a_grid_is_checked_cell_by_cell(base, tmp_path):
    (tmp_path / "tiny.py").write_text(
        "from mend_jax.training.config import apply_overrides, load_config\n"
        "def get_config(variant=''):\n"
        "    c = load_config('quickstart.py')\n"
        f"    apply_overrides(c, {[f.removeprefix('--config.') for f in run_flags(base)]})\n"
        "    return c\n"
    )
    cells = {
        "sound": grid.cell(str(tmp_path / "tiny.py"), "MEND", {}),
        "deep": grid.cell(str(tmp_path / "tiny.py"), "MEND", {"model.last_n_blocks": 9}),
    }
    results = list(job_checks.check_grid(grid.new_grid("two", cells), str(tmp_path / "run")))
    assert only_failure(results).check == "weights, cell deep"
    status = {r.check: r.status for r in results}
    assert status["config, cell sound"] == status["weights, cell sound"] == "ok"
    assert status["workdir"] == "ok"
    assert "python -m mend_jax.doctor --config=" in results[-1].measured


def test_fine_tuning_has_its_base_and_claims_checked(tmp_path, monkeypatch):
    claims = claims_set()
    for name, rows in claims.splits.items():  # random words may be equal
        rows[:] = [r | {f: f"{name} {r[f]}" for f in ("prompt", "rephrase")} for r in rows]
    monkeypatch.setattr(data, "load", lambda *_, **__: claims)
    base = save_tiny(tmp_path / "base", "bert", std=0.05)
    flags = [f"--config.{k}={v}" for k, v in CLAIM_SETTINGS.items()]
    config = parse(["--config=fever_finetune.py", f"--config.model.spec={base}", *flags]).config
    results = list(job_checks.check_fine_tuning(config, str(tmp_path / "run")))
    assert {r.check: r.status for r in results} == {
        "workdir": "ok", "base": "ok", "tokenizer": "ok", "data": "ok", "edit": "skipped"
    }  # fmt: skip
    claims.splits["test"][:] = claims.splits["train"]
    assert only_failure(job_checks.check_fine_tuning(config, str(tmp_path / "run"))).check == "data"


def test_the_command_reports_an_unknown_config(capsys):
    assert main(["--config=nowhere.py"]) == 2
    assert "no config 'nowhere.py'" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "mend_jax.doctor --config=" in capsys.readouterr().out
