"""Files of pinned wheels: downloaded once, checked, kept in the cache."""

import dataclasses
import hashlib
import io
import os
import pathlib
import subprocess
import zipfile

import pytest

from mend_jax.errors import DataError
from mend_jax.io import package_cache


def fake_pip(monkeypatch, content, calls):
    """Replace pip by one that serves a wheel with a/b.txt (b"": without a/b.txt; None: fails).

    Returns the pin of that wheel, with a/b.txt as it should be.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr("a/b.txt" if content else "other.txt", content or b"")
    name = "some_package-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"

    def run(command, **_):
        calls.append(command)
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no such package")
        folder = pathlib.Path(command[command.index("--dest") + 1])
        (folder / name).write_bytes(packed.getvalue())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    digests = [hashlib.sha256(data).hexdigest() for data in (packed.getvalue(), b"content")]
    member = package_cache.Member("a/b.txt", 7, digests[1])
    return package_cache.Wheel("some-package==1.0", name, digests[0], (member,))


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_file_is_fetched_once_and_checked(monkeypatch, tmp_path):
    calls = []
    file = fake_pip(monkeypatch, b"content", calls)
    folder = package_cache.fetch_wheel(file, DataError, cache=tmp_path)
    assert package_cache.fetch_wheel(file, DataError, cache=tmp_path) == folder
    kept = folder / "b.txt"
    assert kept.read_bytes() == b"content" and files(tmp_path) == [".lock", "b.txt", "b.txt.ok"]
    assert len(calls) == 1 and "some-package==1.0" in calls[0] and "--no-deps" in calls[0]
    kept.write_bytes(b"damaged")
    os.utime(kept, ns=(1, 1))
    package_cache.fetch_wheel(file, DataError, cache=tmp_path)
    assert kept.read_bytes() == b"content"
    assert len(calls) == 2


def test_every_machine_downloads_the_wheel_of_the_pinned_platform(monkeypatch, tmp_path):
    calls = []
    package_cache.fetch_wheel(fake_pip(monkeypatch, b"content", calls), DataError, cache=tmp_path)
    command = " ".join(calls[0])
    assert " --implementation cp --python-version 311 --abi cp311 " in command
    assert " --platform=manylinux_2_17_x86_64 --platform=manylinux2014_x86_64 " in command


def test_kept_files_follow_the_umask(monkeypatch, tmp_path):
    file = fake_pip(monkeypatch, b"content", [])
    before = os.umask(0o027)
    try:
        kept = package_cache.fetch_wheel(file, DataError, cache=tmp_path) / "b.txt"
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in (kept, kept.with_name("b.txt.ok"))}
    assert modes == {0o640}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot download some-package==1.0 with pip: ERROR: no such package; .* Do this"),
        (b"other", "a/b.txt of .* has 5 bytes and sha256 .*, expected 7 and .*not the .* Do this"),
        (b"", "cannot extract a/b.txt from some_package-1.0.*: .*a/b.txt.* Do this"),
    ],
)
def test_failed_downloads_say_what_to_do(monkeypatch, tmp_path, content, message):
    file = fake_pip(monkeypatch, content, [])
    with pytest.raises(DataError, match=message):
        package_cache.fetch_wheel(file, DataError, "Do this.", tmp_path)
    assert files(tmp_path) == [".lock"]


def test_a_wheel_of_another_name_or_content_is_refused(monkeypatch, tmp_path):
    file = fake_pip(monkeypatch, b"content", [])
    with pytest.raises(
        DataError, match=r"pip: it did not write other-1-py3-none-any.whl; .* Do this"
    ):
        other = dataclasses.replace(file, file="other-1-py3-none-any.whl")
        package_cache.fetch_wheel(other, DataError, "Do this.", tmp_path)
    with pytest.raises(DataError, match=r"has sha256 .*, expected 0: it is not .* Do this"):
        package_cache.fetch_wheel(
            dataclasses.replace(file, sha256="0"), DataError, "Do this.", tmp_path
        )
    assert files(tmp_path) == [".lock"]


@pytest.mark.parametrize("error", [OSError("no python"), subprocess.TimeoutExpired("pip", 3600)])
def test_a_pip_that_cannot_run_or_hangs_is_an_error(monkeypatch, tmp_path, error):
    def run(*_, **options):
        assert 0 < options["timeout"] <= 3600
        raise error

    file = fake_pip(monkeypatch, b"content", [])
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match=r"with pip: .*(no python|timed out).*; .* Do this"):
        package_cache.fetch_wheel(file, DataError, "Do this.", tmp_path)


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path))
    assert package_cache.cache_dir() == tmp_path
    monkeypatch.delenv("MEND_CACHE_DIR")
    assert package_cache.cache_dir().parts[-2:] == (".cache", "mend_jax")
