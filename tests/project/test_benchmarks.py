"""The benchmark suite: its formulas against the traced programs, and the command."""

import json

import jax
import numpy as np
import pytest
from support.tiers import in_tiers

from benchmarks import profile, required_flops, scaling, stages, step
from benchmarks.workload import ACCELERATOR, MODELS, Workload, build, full_texts
from mend_jax.hub.published_configs import PUBLISHED
from mend_jax.tpu.flops import matmul_flops


@pytest.mark.parametrize("model", in_tiers(["distilgpt2"], ["distilgpt2", "smollm2"], []))
@pytest.mark.parametrize("edits", in_tiers([1], [1, 32], []))
def test_a_training_step_does_little_more_than_the_required_products(model, edits):
    """What makes a step fast, checked by counting its matrix products.

    The trunk has no backward pass (which would double its share), an edited weight has no dense
    gradient where the pair is thinner, the head sees scored positions only, and the base's logits
    are computed once and outside the gradient. Undoing any of these costs more than the 2% that the
    formulas leave out (products with the rotary table, and of the norms' gradients).
    """
    w = Workload(model=model, edits=edits)
    b = build(w, shapes_only=True)
    train_step, arguments = stages.train_step(b)
    counted = matmul_flops(jax.make_jaxpr(train_step)(*arguments))
    parts = required_flops.training_step(w, b.model)
    assert counted == pytest.approx(sum(parts.values()), rel=0.02)

    train_step, arguments = stages.train_step(stages.with_trunk_states(b))
    cached = matmul_flops(jax.make_jaxpr(train_step)(*arguments))
    assert cached == counted - _matmuls_of_trunk(b)  # no product of the trunk is left
    assert cached == pytest.approx(sum(parts.values()) - parts["trunk"], rel=0.02)


def _matmuls_of_trunk(b):
    run = stages.programs(b)["trunk"]
    return matmul_flops(jax.make_jaxpr(run.func)(*run.args))


@pytest.mark.full
def test_an_edit_and_a_forward_pass_do_the_required_products():
    w = Workload(model="distilgpt2", edits=8)
    b = build(w, shapes_only=True)
    programs = stages.programs(b)
    for name, formula in (
        ("edit alone", required_flops.edit_alone),
        ("forward", required_flops.forward),
    ):
        run = programs[name]
        counted = matmul_flops(jax.make_jaxpr(run.func)(*run.args))
        assert counted == pytest.approx(formula(w, b.model), rel=0.02), name


@pytest.fixture
def tiny_workload(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", "tiny")
    monkeypatch.setitem(PUBLISHED, "tiny", dict(
        model_type="gpt2", vocab_size=64, n_positions=128, n_layer=4, n_embd=16, n_head=2,
    ))  # fmt: skip


@pytest.mark.full
def test_the_command_prints_its_measurements(capsys, tiny_workload):
    flags = ["--model=tiny", "--edits=2", "--rank=8", "--repeats=2"]
    assert step.main([*flags, "--json", "--stages"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["seconds"]) == {step.STEP, step.CACHED, *stages.PROGRAMS}
    assert all(value > 0 for value in found["seconds"].values())
    assert found["matmul_rate"] > 1e9 and found["bandwidth"] > 1e8
    assert found["operations"]["training step"] == sum(found["operations_by_part"].values())
    for name, used in found["utilisation"].items():
        operations, seconds = found["operations"][name], found["seconds"][name]
        assert used == pytest.approx(operations / seconds / found["matmul_rate"])
    original = step.ORIGINAL_TIMES[0]
    text = step.describe(step.compare_with_original(found, original))
    assert (
        "tiny, 1 x 2 edits" in text
        and "with trunk cache" in text
        and "the original, scaled" in text
        and "up to trunk" in text
    )


def test_scaling_resumes_with_the_missing_rows(tmp_path, monkeypatch):
    """Rows are stored at once; the picture has a line for the arithmetic."""
    calls = []

    def fake_measurement(flags):
        calls.append(flags)
        value = int(flags[2].split("=")[1])  # --edits
        if len(calls) == 4:
            raise KeyboardInterrupt
        return {
            "seconds": {step.STEP: 0.5 * value}, "operations": {step.STEP: 3 * value},
            "peak_memory_bytes": 10**9 + value,
        }  # fmt: skip

    monkeypatch.setattr(scaling, "measure_in_subprocess", fake_measurement)
    with pytest.raises(KeyboardInterrupt):
        scaling.main(["--model=distilgpt2", f"--out={tmp_path}"])
    assert len(json.loads((tmp_path / "scaling.json").read_text())["edits"]) == 3
    assert scaling.main(["--model=distilgpt2", f"--out={tmp_path}"]) == 0
    n_rows = sum(map(len, scaling.SWEEPS.values()))
    assert len(calls) == n_rows + 1  # the interrupted row is measured again
    assert any("--text_chunk=64" in flags and "--edits=1000" in flags for flags in calls)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "scaling.json").read_text())["edits"]
    p = scaling.points(found[::-1], "edits")
    assert p["x"] == list(scaling.SWEEPS["edits"]) and p["seconds"] == p["arithmetic"]


def test_the_accelerator_suite_runs_each_size_in_a_process(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        step, "measure_in_subprocess", lambda flags: calls.append(flags) or {"seconds": {}}
    )
    assert step.main(["--suite=accelerator", "--brief", "--json", "--repeats=3"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(calls) == len(ACCELERATOR)
    for flags, w in zip(calls, ACCELERATOR, strict=True):
        args = step.parse([f for f in flags if f != "--brief"])
        assert step.parse_workload(args) == w and args.repeats == 3 and "--brief" in flags
    assert step.workload_flags(Workload(remat=True, edits=2)) == ["--edits=2", "--remat"]


def test_random_texts_have_no_padding():
    texts = full_texts(np.random.default_rng(0), (1, 2), 8, 3, 50)
    assert (
        texts.mask.all()
        and texts.score_mask.all()
        and texts.score_pos.tolist() == [[[4, 5, 6]] * 2]
    )
    np.testing.assert_array_equal(
        texts.target, np.take_along_axis(texts.tokens, texts.score_pos + 1, axis=-1)
    )


@pytest.mark.slow
def test_a_built_workload_has_all_parts():
    b = build(Workload(model="distilgpt2", edits=1, rank=8, far=1, far_length=4, length=16))
    assert set(b.batch) == {"edit", "rephrase", "far"}
    assert b.batch["rephrase"].batch_shape == (1, 4)  # four paraphrases of one fact


HLO = """
%fused (a: f32[2,3], b: f32[3,2]) -> f32[2,2] {
  %a = f32[2,3]{1,0} parameter(0)
  %b = f32[3,2]{1,0} parameter(1)
  ROOT %dot.1 = f32[2,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[2,3]) -> f32[2,2] {
  %x = f32[2,3]{1,0} parameter(0)
  %copy.1 = f32[2,3]{1,0} copy(%x), metadata={op_name="jit(step)/transpose"}
  %exp.1 = (f32[2,3]{1,0}, f32[]) fusion(%copy.1), kind=kLoop, calls=%other
  %while.1 = f32[2,2]{1,0} while(%x), body=%loop, metadata={op_name="jit(step)/while"}
  %gemm.1 = (f32[2,2]{1,0}, s8[9]{0}) custom-call(%x), custom_call_target="__cublas$gemm"
  %call.1 = f32[2,2]{1,0} custom-call(%x), custom_call_target="Sort"
  ROOT %ynn.1 = f32[2,2]{1,0} fusion(%x), calls=%fused, metadata={op_name="jvp(M.run_trunk)/dot"}
}
"""


def test_a_profile_sums_instructions_by_kind_and_part():
    known = profile.instructions(HLO)
    assert known["ynn.1"] == ("matrix products", "jvp(M.run_trunk)/dot")
    assert [known[n].kind for n in ("copy.1", "exp.1", "while.1", "gemm.1", "call.1")] == [
        "moving data", "elementwise", "container", "matrix products", "other",
    ]  # fmt: skip
    seconds = {"ynn.1": 0.5, "copy.1": 0.25, "while.1": 4.0, "unknown.7": 0.125}
    found = profile.summary(seconds, known, n_longest=2)
    assert found["seconds"] == 0.875  # containers are not counted
    assert found["kinds"] == {"matrix products": 0.5, "moving data": 0.25, "other": 0.125}
    assert found["parts"] == {"trunk": 0.5, "editor, losses, rest": 0.375}
    assert [one["name"] for one in found["longest"]] == ["ynn.1", "copy.1"]


class Event:
    def __init__(self, name, ns):
        self.stats, self.duration_ns = [("hlo_op", name)], ns


class Named:
    """A plane with its lines, or a line with its events."""

    def __init__(self, name, *parts):
        self.name, self.planes, self.lines, self.events = name, parts, parts, parts


def test_an_operation_of_an_accelerator_counts_once(tmp_path, monkeypatch):
    """The host lists the same operations, and a device may list them in several lines."""
    (tmp_path / "a.xplane.pb").write_bytes(b"")
    host = Named("/host:CPU", Named("thread", Event("dot", 7e9)))
    stream = Named("Stream #1", Event("dot", 2e9), Event("exp", 1e9))
    ops = Named("XLA Ops", Event("dot", 2e9), Event("exp", 4e9))

    def seconds(*planes):
        found = Named("all", *planes)
        monkeypatch.setattr(jax.profiler.ProfileData, "from_file", lambda path: found)
        return profile.seconds_by_instruction(tmp_path, 2)

    assert seconds(host) == {"dot": 3.5}
    assert seconds(host, Named("/device:GPU:0", stream)) == {"dot": 1.0, "exp": 0.5}
    assert seconds(host, Named("/device:TPU:0", stream, ops)) == {"dot": 1.0, "exp": 2.0}


@pytest.mark.parametrize(
    "source, part",
    [
        ("jit(s)/jvp(M.run_top)/block_3/mlp/up/dot", "top blocks, forward"),
        ("jit(s)/transpose(jvp(M.run_top))/block_3/dot", "top blocks, backward"),
        ("jit(s)/transpose(jvp(M.head))/M.unembed/dot", "head, backward"),
        ("jit(s)/jvp()/dot", "editor, losses, rest"),
    ],
)
def test_an_operation_belongs_to_a_part_of_the_model(source, part):
    assert profile.part_of(source) == part


@pytest.mark.slow
def test_the_profile_command_profiles_a_tiny_step(capsys, tiny_workload):
    assert profile.main(["--model=tiny", "--edits=2", "--rank=8", "--repeats=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kinds"]["matrix products"] > 0 and found["parts"]["trunk"] > 0
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"])
    assert "s of instructions a step" in profile.describe(found)
