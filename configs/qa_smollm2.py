"""MEND on zsRE questions for SmolLM2-135M (paper, section 5.2: question answering).

Command: python -m mend_jax.main --config=qa_smollm2.py --config.data.dir=DATA
DATA is the folder of raw data (or set MEND_DATA_DIR); see docs/data.md.
Hardware and time: two cores of 190 GFLOP/s (2048^3 float32 matmul), 3.1 GB, 1.0 step a second where
nothing else ran, 43 minutes of training with tests beside; 5 minutes for 250 test edits of a set.
Expected (measured here, seed 0, n = 487, all that fit): success 0.974 (edit 0.977, paraphrase
0.971), freely generated 0.793 / 0.805; far questions: KL 0.015, arg max kept 0.950, accuracy
drawdown -0.0001. On the published form (n = 487) 0.947 (0.955 / 0.938), far 0.017 / 0.947. Other
subjects' questions are not spared: KL 5.3, arg max kept 0.546; see variant "near". The paper's, of
BART-base: 0.98 / 0.002.
"""

from mend_jax.config import load_config


def get_config(variant=""):
    """Variants: "", "near" (other subjects' facts shall stay as well: a twentieth of the locality
    loss, which the paper does not have), and "smoke" (the same in under two minutes, for CI)."""
    c = load_config("quickstart.py" + {"": "", "near": "", "smoke": ":lean"}[variant])
    c.data.name = "zsre"
    c.data.max_len = 26
    c.data.max_target = 10
    c.data.far_len = 26
    c.data.pack = (16, 20) if variant != "smoke" else ()
    c.train.c_edit = 0.25
    c.train.near_share = 0.05 if variant == "near" else 0.0  # 0: far texts alone, as in the paper
    c.train.clip = 0.5  # norms are 0.1 to 0.5; at 100 a rare batch threw the editor off
    c.eval.max_new_tokens = 12
    c.eval.also = ("zsre/mend",)  # the published form, with one-hop questions
    if variant != "smoke":
        c.train.steps = 1800
        c.train.val_every = 450
        c.train.val_edits = 128
        c.train.checkpoint_every = 150
        c.eval.edits = 250
    return c
