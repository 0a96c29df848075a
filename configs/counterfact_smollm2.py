"""MEND on CounterFact for SmolLM2-135M: not in the paper, but today's usual benchmark of editors.

Command: python -m mend_jax.main --config=counterfact_smollm2.py --config.data.dir=DATA
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md.
Hardware and time: two cores of 190 GFLOP/s (2048^3 float32 matmul), 3.8 GB, 48 minutes beside two
other jobs, 30 of them for training.
Expected (measured here, seed 0, n = 198): success 0.884 (edit 0.929, paraphrase 0.838), freely
generated 0.818 / 0.682; far passages: KL 0.042, arg max kept 0.899, perplexity 62.9 + 1.3; near
facts: KL 0.355, arg max kept 0.721. ROME's form (n = 188): 0.827 (0.968 / 0.686), neighbours 0.430
/ 0.688.
"""

from mend_jax.training.config import load_config


def get_config(variant=""):
    """Variants: "" and "smoke" (the same in under two minutes, for CI)."""
    c = load_config("quickstart.py" + {"": "", "smoke": ":lean"}[variant])
    c.scope.file, c.train.c_after = "", 0.0  # edits apply to all texts, as in the paper
    c.data.name = "counterfact"
    c.data.far_source = "wikitext"
    c.data.max_len = 30
    c.data.max_target = 4
    c.data.far_len = 30
    c.data.length_buckets = (18, 22) if variant == "" else ()
    c.train.c_edit = 0.25
    c.eval.max_new_tokens = 6
    if variant == "":
        c.train.steps = 700
        c.train.val_every = 175
        c.train.val_edits = 128
        c.train.checkpoint_every = 125
        c.eval.edits = 200
        c.eval.extra_data_sets = ("counterfact/rome",)  # all paraphrases, ten neighbours an edit
        c.eval.ability_edits = 32
    else:
        c.eval.extra_data_sets = ("counterfact/rome",)
        c.eval.ability_edits = 4
        c.eval.ability_texts, c.eval.ability_facts, c.eval.ability_pool = 4, 4, 16
    return c
