"""What a failed test adds to pytest's own report."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def describe_test(item: pytest.Item) -> str:
    """Return a test's claim, the part of the project that it is about, and its command."""
    claim, _, case = item.name.removeprefix("test_").partition("[")
    lines = [f"expected: {claim.replace('_', ' ')}" + (f", for {case[:-1]}" if case else "")]
    if text := getattr(getattr(item, "function", None), "__doc__", None):
        lines.append("          " + " ".join(text.split("\n\n")[0].split()))
    lines.append(f"about:    {subject_of(item.path)}")
    file, _, test = item.nodeid.partition("::")
    path = item.path if not item.path.is_relative_to(ROOT) else item.path.relative_to(ROOT)
    lines.append(f"alone:    python -m pytest '{path}::{test}'")
    return "\n".join(lines)


def subject_of(path: Path) -> str:
    """Return the module that a test file is named after, else its room."""
    room, name = path.parent.name, path.stem.removeprefix("test_")
    package = ROOT / "mend_jax" / room
    if (package / f"{name}.py").is_file():
        return f"mend_jax/{room}/{name}.py"
    return f"mend_jax/{room}/" if package.is_dir() else "the project as a whole"
