"""CONTRIBUTING.md leads to code that exists, and every link in the documents to a file."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATTERN = r"`((?:mend_jax|tests|configs|docs)/[\w./]*)(?::(\w+))?`"
PLACES = sorted(set(re.findall(PATTERN, CONTRIBUTING)))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "launch").glob("*.md")]


def top_level_names(path):
    """The names that a module defines or imports at its top level."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_there_are_places_to_check():
    assert len(PLACES) > 40 and sum(bool(name) for _, name in PLACES) > 30


@pytest.mark.parametrize("path, name", PLACES)
def test_every_place_exists(path, name):
    assert (ROOT / path).exists(), path
    if name:
        assert name in set(top_level_names(ROOT / path)), f"{path} has no {name}"


def test_every_room_is_listed():
    rooms = {p.name for p in (ROOT / "mend_jax").iterdir() if (p / "__init__.py").exists()}
    assert all(f"`{room}/`" in CONTRIBUTING for room in rooms), rooms


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    for link in links:
        if not link.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"
