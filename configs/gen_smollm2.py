"""MEND on Wikitext generation for SmolLM2-135M (paper, section 5.2 and appendix C.3).

Command: python -m mend_jax.main --config=gen_smollm2.py --config.data.dir=DATA
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md. The edit targets are
sampled from the base model first, which takes some minutes once.
"""

from mend_jax.config import load_config


def get_config(variant=""):
    """Variants: "" and "smoke" (the same in under two minutes, for CI)."""
    c = load_config("quickstart.py" + {"": "", "smoke": ":lean"}[variant])
    c.data.name = "wikitext_gen" if variant == "" else "wikitext_gen/small"
    c.data.far = "wikitext"
    c.data.max_len = 60
    c.data.max_target = 12
    c.data.far_len = 48
    c.train.c_edit = 0.1  # the paper's
    c.train.clip = 0.5
    c.train.far_scored = 12
    c.eval.max_new_tokens = 12
    if variant == "":
        c.train.steps = 600
        c.train.val_every = 150
        c.train.val_edits = 96
        c.train.checkpoint_every = 100
        c.eval.edits = 200
        c.eval.ability_edits = 32
    return c
