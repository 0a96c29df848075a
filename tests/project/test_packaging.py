"""The contents of an installed package."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_folder_with_modules_is_packaged():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {p.parent.relative_to(ROOT) for p in (ROOT / "mend_jax").rglob("*.py")}
    assert set(listed) == {".".join(p.parts) for p in there} | {"mend_jax.configs"}
