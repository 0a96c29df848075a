"""Train the editor and the scope that come with the package, for SmolLM2-135M-Instruct.

Command: MEND_DATA_DIR=DATA python -m mend_jax.main --config=shipped_smollm2.py
then python -m mend_jax.training.pretrained and pretrained_scopes write the files of the package.
Hardware and time: two cores; 20 minutes for the scope and 22 for the editor.
Expected: the numbers of docs/results/scoped_edits.md.

The scope is learned first, on facts of four data sets (two of them are raw data, see docs/data.md);
then the editor is trained under its gate, on world_facts, named_things and zsRE. Half of its edits
in training are plain, so that plain edits stay usable, and half of its success is the answer to the
paraphrase as a user's message.
"""

from mend_jax.training.config import load_config


def get_config(variant=""):
    """Variants: "" (the files of the package) and "smoke" (a few steps, to check that it works)."""
    c = load_config("quickstart.py" + {"": "", "smoke": ":smoke"}[variant])
    c.data.name = "world_facts/wordings"  # in more wordings than world_facts
    c.data.more_train = ("named_things", "zsre")  # answers of other kinds: people, works, years
    c.data.max_target = 6  # with the quickstart's 5, a quarter of the rows is left out
    c.eval.max_new_tokens = 7
    c.scope.file = ""
    c.scope.learn = True
    c.scope.facts = 800
    c.scope.wordings = 7
    c.train.c_edit_start = c.train.c_edit = 1.0  # the scope sees to locality
    c.train.c_chat = 1.0  # the base is a chat model
    c.eval.baselines = {}  # `evaluate-shipped` evaluates the files on world_facts
    if variant == "smoke":
        c.data.more_train = ("named_things",)  # without raw data
        c.scope.update(dict(facts=40, wordings=3, steps=10, validation_facts=20))
    else:
        c.train.steps = 600
        c.scope.data_sets = ("named_things", "zsre", "counterfact")
        c.scope.validation_facts = 100
    return c
