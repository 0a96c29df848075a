"""MEND on CounterFact for SmolLM2-135M; not in the paper, but what editors are compared on today.

Command: python -m mend_jax.main --config=counterfact_smollm2.py --config.data.dir=DATA
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md.
"""

from mend_jax.config import load_config


def get_config(variant=""):
    """Variants: "" and "smoke" (the same in under two minutes, for CI)."""
    c = load_config("quickstart.py" + {"": "", "smoke": ":lean"}[variant])
    c.data.name = "counterfact"
    c.data.far = "wikitext"
    c.data.max_len = 30
    c.data.max_target = 4
    c.data.far_len = 30
    c.data.pack = (18, 22) if variant == "" else ()
    c.train.c_edit = 0.25
    c.eval.max_new_tokens = 6
    if variant == "":
        c.train.steps = 700
        c.train.val_every = 175
        c.train.val_edits = 128
        c.train.checkpoint_every = 125
        c.eval.edits = 200
        c.eval.also = ("counterfact/rome",)  # all paraphrases, ten neighbours an edit
        c.eval.ability_edits = 32
    else:
        c.eval.also = ("counterfact/rome",)
        c.eval.ability_edits = 4
        c.eval.ability_texts, c.eval.ability_facts, c.eval.ability_pool = 4, 4, 16
    return c
