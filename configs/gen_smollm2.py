"""MEND on Wikitext generation for SmolLM2-135M (paper, section 5.2 and appendix C.3).

Command: python -m mend_jax.main --config=gen_smollm2.py --config.data.dir=DATA
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md. The edit targets are
sampled from the base model first, which takes a few minutes, once.
Hardware and time: two cores of 190 GFLOP/s (2048^3 float32 matmul), 4.2 GB. Alone 0.7 steps a
second, so about half an hour, of which 6 minutes of sampling and 7 of evaluation; 67 minutes on a
shared machine.
Expected (measured here, seed 0, n = 200): success 0.720 (edit 0.750, paraphrase 0.690), freely
generated 0.630 / 0.570; far passages: KL 0.021, arg max kept 0.920, perplexity 45.9 + 1.09. The
paper's, of distilGPT-2: 0.86 / 0.225, of 68,000 passages and hundreds of times more steps. More
passes over the same passages do not help: 1,000 steps over 2,400 that end at c_edit 0.25 had 0.705
at KL 0.030, perplexity + 1.65.
"""

from mend_jax.training.config import load_config


def get_config(variant=""):
    """Variants: "" and "smoke" (the same in under two minutes, for CI)."""
    c = load_config("quickstart.py" + {"": "", "smoke": ":lean"}[variant])
    c.scope.file, c.train.c_after = "", 0.0  # edits apply to all texts, as in the paper
    c.data.name = "wikitext_gen" if variant == "" else "wikitext_gen/small"
    c.data.far_source = "wikitext"
    c.data.max_len = 60
    c.data.max_target = 12
    c.data.far_len = 48
    c.data.length_buckets = (36, 44, 52) if variant == "" else ()  # tokens: median 40, most 58
    c.train.c_edit = 0.1  # the paper's
    c.train.clip = 0.5
    c.train.far_scored_tokens = 12
    c.eval.max_new_tokens = 12
    if variant == "":
        c.train.steps = 750  # one pass over the 3,000 passages
        c.train.val_every = 150
        c.train.val_edits = 96
        c.train.checkpoint_every = 100
        c.eval.edits = 200
        c.eval.ability_edits = 32
    return c
