"""The stamp of a data set covers all code of mend_jax.data that decides its rows."""

import ast
import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from mend_jax.data import DATASETS, TEXT_SETS

HOME = "mend_jax.data"
# In every stamp, or code that reads and keeps rows and decides none.
KNOWN = {f"{HOME}.{name}" for name in ("rows", "names", "raw", "prepare")}
FILES = (
    *(f"counterfact/counterfact-{name}.json" for name in ("train", "val", "edit")),
    *("fever/train.jsonl", "fever/eval.jsonl", "facts/mine.jsonl", "web/a.txt"),
    *("nq_open/NQ-open.train.jsonl", "nq_open/NQ-open.dev.jsonl"),
    *("nq_open/NQ-open.efficientqa.dev.1.1.jsonl", "zsre/levy_positive.jsonl"),
    *(f"wikitext-2/{name}.txt" for name in ("train", "valid", "test")),
)
CONFIG = {"facts": "mine.jsonl", "texts": "web", "zsre": "levy"}
BASE = SimpleNamespace(
    spec="base", fingerprint="f", module=SimpleNamespace(kind="causal"),
    config=SimpleNamespace(n_positions=999),
    tokenizer=SimpleNamespace(boundary_tokens=([], []), fingerprint="t"),
)  # fmt: skip


def imported(module):
    """The modules of mend_jax.data that one of them imports."""
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == HOME:
            yield from (f"{HOME}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith(f"{HOME}."):
            yield node.module


@pytest.mark.parametrize("name", [*DATASETS, *TEXT_SETS])
def test_what_a_recipe_imports_is_in_its_stamp(tmp_path, name):
    for file in FILES:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    module = importlib.import_module((DATASETS | TEXT_SETS)[name])
    made_with = (BASE,) if getattr(module, "NEEDS_MODEL", False) else ()
    recipe = module.recipe(CONFIG.get(name, "default"), tmp_path, *made_with)
    assert module.__name__ in recipe.code and len(recipe.stamp) == 12
    for part in recipe.code:
        assert set(imported(part)) - KNOWN <= set(recipe.code), part
