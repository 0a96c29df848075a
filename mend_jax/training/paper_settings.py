"""The hyper-parameters of the paper, as the config that `configs/` starts its models from."""

from __future__ import annotations

import ml_collections
from ml_collections import ConfigDict

PAPER_DATA = {
    "zsre": dict(name="zsre/mend"),
    "fever": dict(name="fever", max_len=64, max_target=1, append_eos=False, far_len=64),
    "wikitext": dict(
        name="wikitext_gen", far_source="wikitext", max_len=200, max_target=12, append_eos=False,
        far_len=200,
    ),
}  # fmt: skip
"""The paper's tasks, as settings of `data`."""


def paper_config(
    spec: str,
    *,
    task: str = "zsre",
    last_n_blocks: int = 3,
    dtype: str = "float32",
    remat: bool = False,
    variant: str = "",
) -> ml_collections.ConfigDict:
    """MEND as in the paper (section 5 and appendix A; released code where the paper is silent).

    Rank 1920, one hidden layer, networks shared by shape, V ~ N(0, 1), alpha from 1e-4 learned at
    1e-4, Adam 1e-6, batches of 10 by accumulation, gradients clipped at 100, c_edit 0.1, early
    stopping after 20,000 steps without a better loss on 500 validation edits.

    Args:
      spec: the base model.
      last_n_blocks: of every stack, edited: 3 for one stack, 2 + 2 for an encoder-decoder.
      task: what the paper edits it on, one of `PAPER_DATA`: the data of variant "paper".
      variant: "" (world facts, which need no raw data), "paper" (the paper's own data, see
        docs/data.md) or "smoke" (a few steps on world facts with an editor of rank 16, to see that
        all of it runs).

    Raises:
      KeyError: another variant.
    """
    c = ConfigDict()
    c.job, c.seed = "edit", 0
    c.model = ConfigDict(
        dict(
            spec=spec, last_n_blocks=last_n_blocks, edit_roles=(), dtype=dtype, remat=remat,
            text_chunk=0, logits_chunk=0,
        )
    )  # fmt: skip
    c.data = ConfigDict(
        dict(
            name="world_facts", dir="", far_source="", template="{}", train_edits=0,
            edits_per_batch=1,
            max_len=32, max_target=10, append_eos=True, far_len=64, length_buckets=(),
        )
    )  # fmt: skip
    options = dict(
        rank=1920, n_hidden=1, shared=True, norm=True, sides="combined", init="id",
        v_init="normal", step_size=1e-4, log_step_size=False, compat="paper",
    )  # fmt: skip
    c.editor = ConfigDict(
        dict(
            name="mend", init_from="", init_step_size_scale=1.0, strength=1.0,
            options=ConfigDict(options)
        )
    )  # fmt: skip
    c.train = ConfigDict(
        dict(
            steps=500_000, edits_per_step=1, edit_from_paraphrase=False, far_scored_tokens=64,
            accumulate=10,
            lr=1e-6, step_size_lr=1e-4, clip=100.0, warmup=0, decay=False, c_edit_start=0.1,
            c_edit=0.1, c_loc=1.0, near_share=0.5, calibration_texts=512,
            log_every=100, val_every=5000,
            val_edits=500, checkpoint_every=5000, keep_checkpoint="best", patience=20_000,
            trunk_cache="", trunk_cache_gib=4.0, doctor=True, max_non_finite_steps=3,
        )
    )  # fmt: skip
    fine_tune = dict(lr=1e-2, max_steps=100, edits=40, edits_per_step=8)
    c.eval = ConfigDict(dict(edits=500, edits_per_step=8, max_new_tokens=12, examples=10))
    c.eval.update(
        dict(
            extra_data_sets=(),
            ability_edits=0,
            ability_texts=32,
            ability_facts=64,
            ability_pool=1024,
        )
    )
    c.eval.sequential = ()
    c.eval.baselines = ConfigDict(dict(fine_tune=ConfigDict(fine_tune)))
    c.mesh = ConfigDict(dict(data=0, fsdp=0, tensor=0))  # 0: chosen for the chips that there are
    if variant == "smoke":
        c.editor.options.rank = 16
        c.data.train_edits = 64
        c.train.update(dict(steps=4, accumulate=1, edits_per_step=2, log_every=1, val_every=2))
        c.train.update(dict(val_edits=4, checkpoint_every=2, doctor=False))
        c.eval.update(dict(edits=4, edits_per_step=2, examples=2))
        c.eval.baselines.fine_tune.update(dict(max_steps=2, edits=4, edits_per_step=2))
    elif variant == "paper":
        c.data.update(PAPER_DATA[task])
        c.train.near_share = 0.0  # the paper asks for unrelated texts alone
        if task == "fever":
            c.train.far_scored_tokens = c.eval.max_new_tokens = 1
    elif variant:
        raise KeyError(variant)
    return c
