"""The forms of a weights spec, and the error for each wrong one."""

import json

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy

from mend_jax import hub
from mend_jax.errors import WeightsError


def model_folder(folder, files=("config.json", "model.safetensors")):
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        if name.endswith(".safetensors"):
            safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, folder / name)
        else:
            (folder / name).write_text(json.dumps({"model_type": "llama"}))
    return folder


def test_local_folder(tmp_path):
    source = hub.resolve(model_folder(tmp_path))
    assert source == hub.Source("safetensors", tmp_path, str(tmp_path))
    assert hub.read_model_config(source) == {"model_type": "llama"}


@pytest.mark.parametrize(
    "files,message",
    [
        (
            ["config.json", "pytorch_model.bin"],
            "pytorch_model.bin.*python -m mend_jax.hub convert ",
        ),
        (["model.safetensors"], "no config.json"),
        (["config.json"], r"no \*.safetensors"),
        (["config.json", "m.Q4_1.gguf"], "holds GGUF files: give one of them.*m.Q4_1.gguf"),
        ([], r"no config.json and no \*.safetensors"),
    ],
)
def test_incomplete_folders_are_refused(tmp_path, files, message):
    with pytest.raises(WeightsError, match=message):
        hub.resolve(model_folder(tmp_path, files))


def test_pickles_beside_safetensors_are_ignored(tmp_path):
    files = ("config.json", "model.safetensors", "pytorch_model.bin")
    assert hub.resolve(model_folder(tmp_path, files)).kind == "safetensors"


def test_files_that_are_not_weights(tmp_path):
    model_folder(tmp_path, ("config.json", "model.safetensors", "notes.txt"))
    with pytest.raises(WeightsError, match="give the folder"):
        hub.resolve(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"expected a \.gguf file, or a folder"):
        hub.resolve(tmp_path / "notes.txt")


@pytest.mark.parametrize("spec", ["gpt 2", "/no/such/folder", "a/b/c", "no/such.gguf", "", "a/b@"])
def test_specs_that_name_nothing(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.chdir(model_folder(tmp_path / "inner", ()))
    with pytest.raises(WeightsError, match="cannot find the weights|has no config"):
        hub.resolve(spec)


@pytest.mark.parametrize("revision", [None, "main", "refs/pr/1"])
def test_a_hub_id_downloads_the_needed_files_of_the_revision(tmp_path, monkeypatch, revision):
    requested = {}

    def download(repo, *, revision, allow_patterns, ignore_patterns):
        names = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/m.safetensors"]
        names += ["model.safetensors.index.json", "tokenizer.json", "consolidated.safetensors"]
        filtered = huggingface_hub.utils.filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        requested.update(repo=repo, revision=revision, files=sorted(filtered))
        return str(model_folder(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    spec = "org/some-model.v1" + (f"@{revision}" if revision else "")
    assert hub.resolve(spec) == hub.Source("safetensors", tmp_path, spec)
    assert (requested["repo"], requested["revision"]) == ("org/some-model.v1", revision)
    assert requested["files"] == sorted(
        ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    )


def test_a_failure_of_the_hub_suggests_an_alternative(monkeypatch):
    def download(*args, **kwargs):
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(WeightsError, match=r"ConnectionError: no route\).*give its path instead"):
        hub.resolve("org/name")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": 3}'])
def test_invalid_configs_are_named(tmp_path, text):
    source = hub.resolve(model_folder(tmp_path))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match="config.json"):
        hub.read_model_config(source)
