"""PropMEND for SmolLM2-135M: edits that are trained on what follows from them (Liu et al. 2025).

Command: python -m mend_jax.main --config=propmend_smollm2.py --config.data.dir=DATA
DATA is the folder of raw data (or set MEND_DATA_DIR) with ctrl_ripple; see docs/data.md.
Hardware and time: two cores; see docs/results/propagation.md, also for the numbers.

The edit is a text of three sentences about an invented person or company; the inner loss is that of
all its tokens. The outer loss is that of the answers to questions that follow from the text and
from what the base knows (train.c_hops), of the text itself, and KL on other texts. Variant "mend"
is plain MEND: without the questions.

Deviations from the paper: SmolLM2-135M-Instruct as it is, where the paper first fine-tunes its 1B
bases on questions; the MLPs of the last ten of 30 blocks, where it edits 12 of 16; rank 512 for
1,920; the text itself has a fifth of the weight of edit success, where the paper leaves it out.
"""

from mend_jax.training.config import load_config


def get_config(variant=""):
    """Variants: "" (PropMEND), "mend" (without the questions) and "smoke" (a dozen steps)."""
    c = load_config("quickstart.py" + {"": "", "mend": "", "smoke": ":lean"}[variant])
    c.scope.file, c.train.c_after = "", 0.0
    c.model.last_n_blocks = 10 if variant != "smoke" else 2
    c.data.name = "ctrl_ripple"
    c.data.far_source = "wikitext"
    c.data.max_len = 96
    c.data.max_target = 84
    c.data.length_buckets = (72,) if variant != "smoke" else ()
    c.train.c_hops = 0.0 if variant == "mend" else 4.0
    c.train.c_edit_start = c.train.c_edit = 1.0
    c.train.edit_from_paraphrase = False  # the paraphrase is the prompt again
    c.train.near_share = 0.3
    c.eval.max_new_tokens = 85  # the target is the rest of the text
    c.eval.hard_neighbours = c.eval.continuation_tokens = 0  # an edit is a whole text
    c.eval.baselines = {"in_context": {"separator": (198,)}}
    if variant != "smoke":
        c.train.edits_per_step = 4
        c.train.steps = 400
        c.train.val_every = 400
        c.train.val_edits = 32
        c.train.checkpoint_every = 50
        c.eval.edits = 100
        c.eval.edits_per_step = 4
        c.eval.extra_data_sets = ("ctrl_ripple/ood_entity", "ctrl_ripple/ood_relation")
    return c
