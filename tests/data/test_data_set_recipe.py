"""Recipes: their stamps cover all code that decides the rows; data sets from outside."""

import functools
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mend_jax import data
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe
from mend_jax.data.rows import SPLITS, make_row
from mend_jax.errors import ConfigError, DataError

HOME = "mend_jax.data"
FILES = (
    *(f"counterfact/counterfact-{name}.json" for name in ("train", "val", "edit")),
    *("knowedit/wiki_counterfact_train.jsonl", "knowedit/wiki_counterfact_test.jsonl"),
    *("mquake/MQuAKE-CF-3k.json", "qaedit/QAEdit.json"),
    *("ripple_edits/popular.json", "ripple_edits/random.json"),
    "wiki_big_edit/wiki_big_edit_20240201_20240220.json",
    *(f"ctrl_ripple/{name}.json" for name in ("train_4K", "eval_4K", "test_id")),
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
# Some modules that decide the rows of each data set besides its own.
DECIDES = {
    "counterfact": {"name_matching", "raw_files", "rows"},
    "ctrl_ripple": {"name_matching", "raw_files", "rows"},
    "facts": {"facts", "keyed_random", "rows"},
    "fever": {f"sources.fever.{name}" for name in ("paraphrases", "grammar", "vocabulary")},
    "knowedit": {"name_matching", "neighbours", "raw_files", "rows"},
    "mquake": {"name_matching", "neighbours", "raw_files", "rows"},
    "qaedit": {"name_matching", "raw_files", "rows"},
    "ripple_edits": {"name_matching", "neighbours", "raw_files", "rows"},
    "wiki_big_edit": {"name_matching", "raw_files", "rows"},
    "named_things": {f"sources.named_things.{name}" for name in ("names", "people", "everyday")},
    "nq_open": {"raw_files", "rows"},
    "texts": {"prose"},
    "wikitext": {"prose"},
    "wikitext_gen": {"sources.wikitext", "sources.wikitext_gen.continuations", "prose"},
    "world_facts": {
        f"sources.world_facts.{name}"
        for name in (
            "counterfactuals",
            "facts",
            "geography",
            "passages",
            "templates",
            "wiki_markup",
        )
    },
    "zsre": {
        "sources.zsre.levy",
        "sources.zsre.published",
        "sources.nq_open",
        "neighbours",
        "far_texts",
    },
}


@pytest.mark.parametrize("name", list(data.DATA_SETS))
def test_the_stamp_covers_all_modules_that_decide_the_rows(tmp_path, name):
    for file in FILES:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    function = data.DATA_SETS[name]
    with_model = (BASE,) if name == "wikitext_gen" else ()
    recipe = function(CONFIG.get(name, "default"), tmp_path, *with_model)
    covered = recipe.source_files()
    assert function.__module__ in covered and len(recipe.stamp) == 12
    assert {f"{HOME}.{module}" for module in DECIDES[name]} <= set(covered)
    others = {f"{HOME}.{module}" for module in ("prepared_files", "batches", "encoded_rows")}
    assert not others & set(covered)
    assert all(path.is_file() for path in covered.values())
    if name == "wikitext_gen":
        assert {"mend_jax.hub.text_encoding", "mend_jax.models.generation"} <= set(covered)


def recipe_of(build):
    return Recipe("a", "default", "1.0.0", "d", "l", build)


def test_a_change_of_any_module_of_an_outside_package_changes_the_stamp(tmp_path, monkeypatch):
    package = tmp_path / "outside_sets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("import json\nfrom mend_jax.data import prose\n")
    (package / "one.py").write_text("from . import helper\n\ndef build():\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from outside_sets import one

    for build in (one.build, functools.partial(one.build)):
        files = recipe_of(build).source_files()
        assert {"outside_sets.one", "outside_sets.helper", f"{HOME}.prose"} <= set(files)
        assert "json" not in files
    first = recipe_of(one.build).stamp
    assert recipe_of(one.build).stamp == first
    (package / "helper.py").write_text("from mend_jax.data import prose\nWORDS = 3\n")
    assert recipe_of(one.build).stamp != first


def test_a_recipe_without_a_source_file_is_refused(monkeypatch):
    def build():
        return BuiltSplits({})

    build.__module__ = "typed_into_a_console"
    monkeypatch.setitem(sys.modules, "typed_into_a_console", SimpleNamespace())
    with pytest.raises(DataError, match="typed_into_a_console has no source file.*in a .py file"):
        recipe_of(build).source_files()


def test_a_data_set_can_be_added_from_outside(tmp_path):
    def recipe(config, root):
        row = make_row(key=config, subject="s", prompt="p", target="t", rephrase="r")
        return Recipe("own", config, "1.0.0", "d", "l", lambda: BuiltSplits({"test": [row]}))

    data.register_data_set("own", recipe)
    try:
        assert data.load("own/form", folder=tmp_path).split("test")[0]["key"] == "form"
        with pytest.raises(ConfigError, match="data set 'own' is registered already"):
            data.register_data_set("own", "some.module")
    finally:
        data.DATA_SETS.unregister("own")
    assert "own" not in data.DATA_SETS


def test_a_data_set_can_be_named_by_its_module():
    data.register_data_set("again", "mend_jax.data.sources.nq_open")
    try:
        assert data.DATA_SETS["again"] is data.DATA_SETS["nq_open"]
    finally:
        data.DATA_SETS.unregister("again")


def test_the_data_set_of_the_documentation_works(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (code,) = re.findall(r"```python\n# my_package/rivers.py\n(.*?)```", page, re.S)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").write_text("")
    (tmp_path / "my_package/rivers.py").write_text(code)
    (tmp_path / "rivers").mkdir()
    lines = [{"river": f"River {i}", "mouth": f"Sea {i}", "wrong": "a desert"} for i in range(60)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "rivers/rivers.jsonl").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    data.register_data_set("rivers", "my_package.rivers")
    try:
        loaded = data.load("rivers", tmp_path, tmp_path / "prepared")
    finally:
        data.DATA_SETS.unregister("rivers")
    assert sum(len(loaded.split(name)) for name in SPLITS) == 60
    row = loaded.split("train")[0]
    assert row["near_answer"].startswith("Sea") and row["near_subject"] != row["subject"]
