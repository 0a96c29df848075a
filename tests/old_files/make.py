"""python -m tests.old_files.make OUT

Make small files of every form that users keep. Commit ba7cd53 made those in format_2, with its own
modules: this script runs in a checkout of it, and shows how each file came to be. The folder OUT
must not exist. Afterwards it contains

    expected.json          numbers of what is below
    recipe.py              the config of the runs
    base/                  a random base model of two blocks, and its tokenizer
    run/                   a finished run, with a baseline and sequential edits
    edit.safetensors       an edit by the editor of that run
    edit_expected.npz      its deltas, and log-probabilities of next tokens without it and with it
    editor.safetensors     the editor of that run as one file, in float32
    editor_int8.safetensors     and in int8
    batch/                 the batch of step 4 of that run, as training stores one
    data/                  facts and plain texts of a user
    interrupted/           a run on these that was stopped after step 3 of 6
    trunks/                its cache of trunk states
    interrupted_expected.json   the log and results of the same run without a stop
    ledger/                three edits, the second reverted
    table.py, grid/        the config of a grid of three runs, and their results
    checker/               a finished fine-tuning job, with its model

Pages, pictures and logs are left out, because nothing reads them. Paths in the files are relative
to OUT. The script takes minutes on one CPU.
"""

import contextlib
import io
import json
import os
import pprint
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import safetensors.numpy
from mend_jax.data.base import DataSet
from mend_jax.edit.__main__ import main as edit_command
from mend_jax.experiment import open_experiment
from mend_jax.workdir import read_config
from tests.tiny import HF, save_tiny

import mend_jax
from mend_jax import batch_files, data, distributed, replay, shipped
from mend_jax.data.rows import make_row
from mend_jax.errors import Preempted
from mend_jax.ledger import Base, Ledger
from mend_jax.main import main as command

FACT = ("The capital of France is", "Lyon")
PROMPTS = ["The capital of France is", "Where is Lyon? It lies in", "Oslo"]
CLAIMS = ["abcd x", "abcd y", "bad x"]
SMALL = {
    "model.spec": "base", "model.last_n_blocks": 1, "train.edits_per_step": 2,
    "train.both_ways": False, "train.val_edits": 2, "train.checkpoint_every": 100,
    "eval.edits": 4, "eval.edits_per_step": 2, "eval.examples": 2,
}  # fmt: skip
OPTIONS = {"rank": 4, "layer_lr": 0.01}
WORLD = {
    "data.name": "world_facts/offline", "data.train_edits": 8, "data.max_len": 96,
    "data.max_target": 24, "data.far_len": 16, "eval.max_new_tokens": 24,
}  # fmt: skip
OWN = {
    "model.edit_roles": ("mlp/down",), "data.name": "facts/stones.jsonl",
    "data.far": "texts/walks", "data.dir": "data", "data.train_edits": 4, "data.max_len": 32,
    "data.max_target": 8, "data.far_len": 16, "eval.max_new_tokens": 8,
}  # fmt: skip
VARIANTS = {
    "run": WORLD | {
        "train.steps": 3, "train.val_every": 3, "eval.sequential": (1, 2), "eval.baselines": {
            "fine_tune": {"lr": 0.1, "max_steps": 2, "edits": 2, "edits_per_step": 2},
        },
    },
    "interrupted": OWN | {
        "train.steps": 6, "train.val_every": 2, "train.keep": "best", "train.trunk_cache": "disk",
    },
    "cell": WORLD | {
        "train.steps": 2, "train.val_every": 2, "eval.edits": 2, "eval.examples": 1,
    },
}  # fmt: skip
CHECKER = {
    "model.spec": "encoder", "model.last_n_blocks": 1, "data.max_len": 24, "train.epochs": 4,
    "train.batch_size": 8, "train.lr": 3e-3, "train.warmup": 2, "train.log_every": 4,
    "train.val_every": 8, "eval.batch_size": 8,
}  # fmt: skip
RECIPE = '''"""Small runs: every setting of quickstart.py:lean as it was, and some others."""
# fmt: off

import mend_jax

COMMON = {common}
VARIANTS = {variants}


def get_config(variant):
    c = mend_jax.load_config("quickstart.py:lean")
    with c.unlocked():
        for key, value in (COMMON | VARIANTS[variant]).items():
            *groups, name = key.split(".")
            node = c
            for group in groups:
                node = node[group]
            node[name] = value
    return c
'''
TABLE = '''"""A table of three runs, as a user writes one."""

import ml_collections


def cell(method, *settings, seeds=(0,)):
    return ml_collections.ConfigDict(
        dict(config="recipe.py:cell", method=method, settings=settings, seeds=seeds, start="")
    )


def get_config(variant=""):
    c = ml_collections.ConfigDict()
    c.job, c.title, c.only, c.settings = "grid", "Three runs", ("mend", "ft"), ()
    c.cells = ml_collections.ConfigDict()
    c.cells.mend = cell("MEND", seeds=(0, 1))
    fine_tune = ("train.steps=0", "editor.name=fine_tune", "editor.options={'lr': 0.1}")
    c.cells.ft = cell("FT", *fine_tune)
    return c
'''


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write(path, value):
    Path(path).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def done(status):
    assert status == 0, f"a command ended with {status}"


def said_by(*argv):
    """What a command of `mend_jax.edit` prints as JSON."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        done(edit_command([*argv, "--json"]))
    return json.loads(out.getvalue())


def train(variant, folder):
    name = f"recipe.py:{variant}"
    return mend_jax.train_and_evaluate(mend_jax.load_config(name), folder, name)


def sums(tree):
    """How many numbers a tree holds, their sum and that of their sizes."""
    leaves = jax.tree.leaves(jax.device_get(tree))
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    return [flat.size, float(flat.sum()), float(np.abs(flat).sum())]


def flat(settings, prefix=""):
    """Settings by dotted key."""
    found = {}
    for key, value in settings.items():
        one = {prefix + key: value}
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else one
    return found


def make_recipe():
    """Groups that a config may fill as it likes are set as a whole."""
    lean = mend_jax.load_config("quickstart.py:lean")
    whole = ("editor.options", "eval.baselines")
    common = {k: v for k, v in flat(lean.to_dict()).items() if not k.startswith(whole)}
    common |= SMALL | {"editor.options": lean.editor.options.to_dict() | OPTIONS}
    parts = (pprint.pformat(part, width=96) for part in (common, VARIANTS))
    text = RECIPE.format(**dict(zip(("common", "variants"), parts, strict=True)))
    Path("recipe.py").write_text(text)
    Path("table.py").write_text(TABLE)


def make_base():
    save_tiny(Path("base"), "llama", num_hidden_layers=2)
    model = mend_jax.load_model("base", last_n_blocks=1)
    tokens = {prompt: model.tokenizer.encode(prompt) for prompt in PROMPTS}
    return {"fingerprint": model.fingerprint, "tokens": tokens}


def make_run():
    results = train("run", "run")
    editor = mend_jax.Editor.restore("run")
    headline = {name: results["eval"][name]["nll"] for name in ("edit", "rephrase")}
    headline |= {"kl": results["eval"]["locality"]["kl"], "data": results["data"]["fingerprint"]}
    learned = {"params": sums(editor.params), "state": sums(editor.state)}
    return {"editor": editor.id, "learned": learned, "headline": headline}


def make_edit():
    editor = mend_jax.Editor.restore("run")
    edit = editor.edit([FACT])
    edit.save("edit.safetensors")
    deltas = {name: np.asarray(delta.dense()) for name, delta in edit.deltas.items()}
    log_probs = {
        "log_probs": editor.model.next_token_log_probs(PROMPTS),
        "log_probs_edited": editor.model.with_edit(edit).next_token_log_probs(PROMPTS),
    }
    np.savez_compressed("edit_expected.npz", **deltas, **log_probs)
    facts = [list(fact) for fact in edit.facts]
    return {"base": edit.base, "facts": facts, "editor": edit.editor, "made": edit.made}


def make_editor_files():
    """Written, and told by what `apply` says of an edit by each, in a ledger that is not kept."""
    found = {}
    fact = ["--model", "base", "--last_n_blocks", "1", "--fact", " => ".join(FACT)]
    for file, dtype in (("editor.safetensors", "float32"), ("editor_int8.safetensors", "int8")):
        shipped.write("run", file, dtype)
        with tempfile.TemporaryDirectory() as folder:
            told = said_by("apply", *fact, "--ledger", f"{folder}/L", "--editor", file)
        (entry,) = told["entries"]
        found[file] = {"editor": entry["editor"], "norm": entry["measured"]["edit"]["norm"]}
    return found


def make_batch():
    """The batch after the last step of the run, and what the step from there makes of it."""
    batches = open_experiment(read_config(Path("run"))).train_batches()
    batch = [next(batches) for _ in range(4)][-1]
    rows = np.asarray(batch["index"]).reshape(-1).tolist()
    text = f"loss nan and gradient norm nan are not both finite; rows of that batch: {rows}"
    told = {"step": 4, "kind": "guard", "guard": "non_finite", "in_a_row": 3, "rows": rows,
            "terms": [], "gradient_of": [], "text": text}  # fmt: skip
    folder = Path("run/non_finite/4")
    batch_files.save(folder, batch, told)
    found = replay.replay(folder)
    folder.rename("batch")
    folder.parent.rmdir()
    return {"step": 4, "loss": found["loss"]}


def make_data():
    """Facts about stones, and documents of plain text."""
    colours = ("red", "blue", "green", "grey", "black")
    facts = [
        {"prompt": f"Stone {i} is", "target": colours[i % 5], "subject": f"Stone {i}",
         "rephrases": [f"The hue of stone {i} is"]}
        for i in range(60)
    ]  # fmt: skip
    for name in ("facts", "walks"):
        Path("data", name).mkdir(parents=True)
    lines = "".join(json.dumps(fact) + "\n" for fact in facts)
    Path("data/facts/stones.jsonl").write_text(lines)
    sentence = "On day {} of the walk we came to its mile {} by noon."
    walks = [" ".join(sentence.format(i, k) for k in range(4)) for i in range(60)]
    Path("data/walks/all.txt").write_text("\n<|endoftext|>\n".join(walks) + "\n")


def make_interrupted():
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEND_CACHE_DIR"] = f"{folder}/whole"
        train("interrupted", f"{folder}/run")
        results = read(f"{folder}/run/results.json")
        text = Path(f"{folder}/run/metrics.jsonl").read_text()
        os.environ["MEND_CACHE_DIR"] = f"{folder}/stopped"
        stop = mock.patch.object(distributed.StopRequest, "at", lambda self, step: step >= 3)
        with stop, contextlib.suppress(Preempted):
            train("interrupted", "interrupted")
        shutil.copytree(f"{folder}/stopped/trunks", "trunks")
        del os.environ["MEND_CACHE_DIR"]
    found = {
        "data": {"fingerprint": results["data"]["fingerprint"]},
        "training": {k: results["training"][k] for k in ("best", "best_step", "kept_step")},
        "eval": {k: results["eval"][k] for k in ("n", "edit", "rephrase", "locality")},
    }
    metrics = [json.loads(line) for line in text.splitlines()]
    write("interrupted_expected.json", {"metrics": metrics, "results": found})


def make_ledger():
    """The base is named by a relative path, where `apply` alone would write an absolute one."""
    model = mend_jax.load_model("base", last_n_blocks=1)
    Ledger.create("ledger", Base("base", model.fingerprint, "float32", 1, ()))
    flags = ["--ledger", "ledger", "--fact"]
    fine_tune = ["--editor", "fine_tune", "--option", "max_steps=10", "--option", "lr=0.1"]
    done(edit_command(["apply", *flags, "Oslo lies in => Peru", *fine_tune]))
    for fact in (FACT, ("One and one is", "three")):
        done(edit_command(["apply", *flags, " => ".join(fact), "--editor", "run"]))
    done(edit_command(["revert", "2", "--ledger", "ledger"]))
    edited = model.with_edit(Ledger.open("ledger").composed())
    found = said_by("show", "--ledger", "ledger")
    return {
        "base": found["base"],
        "in_force": found["in_force"],
        "entries": said_by("log", "--ledger", "ledger"),
        "log_probs": edited.next_token_log_probs(PROMPTS).tolist(),
    }


def make_grid():
    """Its runs are processes of their own, in this folder."""
    os.environ["PYTHONPATH"] = str(Path(mend_jax.__file__).parents[1])
    done(command(["--config=table.py", "--workdir=grid"]))
    for path in sorted(Path("grid").rglob("*"), reverse=True):
        if path.is_file() and path.name not in ("grid.json", "table.md", "results.json"):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return {row["cell"]: row["scores"]["kl"] for row in read("grid/grid.json")["rows"]}


def claims(count, first):
    """Claims that are true where they end in `y`, each with another wording."""
    rng, rows = np.random.default_rng(first), []
    for number in range(first, first + count):
        said = f"{''.join(rng.choice(list('abcd'), 4))}{number} {'xy'[number % 2]}"
        truth, other = (("false", "true"), ("true", "false"))[number % 2]
        rows.append(make_row(key=str(number), prompt=said, target=other, truth=truth,
                             rephrase=f"ha {said}"))  # fmt: skip
    return rows


def make_encoder(folder):
    """A base without a head."""
    sizes = dict(num_hidden_layers=2, max_position_embeddings=64, intermediate_size=32)
    save_tiny(folder, "bert", **sizes)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    bare = {k.removeprefix("bert."): v for k, v in tensors.items() if "classifier" not in k}
    safetensors.numpy.save_file(bare, folder / "model.safetensors")
    config = {k: v for k, v in (HF["bert"] | sizes).items() if k != "num_labels"}
    write(folder / "config.json", config)


def make_checker():
    """On claims that are made up: those of the data sets need raw files."""
    splits = {"train": claims(32, 0), "validation": claims(8, 100), "test": claims(8, 200)}
    dataset = DataSet("claims", "made up", "none", "f00", splits, "fc")
    make_encoder(Path("encoder"))
    flags = [f"--config.{key}={value}" for key, value in CHECKER.items()]
    with mock.patch.object(data, "load", lambda *_, **__: dataset):
        done(command(["--config=fever_finetune.py", "--workdir=checker", *flags]))
    shutil.rmtree("encoder")
    model = mend_jax.load_model("checker/model", last_n_blocks=1)
    accuracy = read("checker/results.json")["eval"]["test"]["accuracy"]
    judged = dict(zip(CLAIMS, model.judge(CLAIMS), strict=True))
    return {"fingerprint": model.fingerprint, "judged": judged, "accuracy": accuracy}


def tidy():
    """Takes out pages, pictures, and the name of this folder that Orbax leaves."""
    for path in [*Path().rglob("*.html"), *Path().rglob("*.png")]:
        path.unlink()
    for path in Path().rglob("commit_success.txt"):
        path.write_text(path.read_text().replace(f"{Path.cwd()}/", ""))


def main(out):
    jax.config.update("jax_platforms", "cpu")
    Path(out).mkdir(parents=True)
    os.chdir(out)
    make_recipe()
    make_data()
    makers = {
        "base": make_base, "run": make_run, "edit": make_edit, "editor_files": make_editor_files,
        "batch": make_batch, "ledger": make_ledger, "grid": make_grid, "checker": make_checker,
    }  # fmt: skip
    write("expected.json", {name: make() for name, make in makers.items()})
    make_interrupted()
    tidy()


if __name__ == "__main__":
    main(sys.argv[1])
