"""A package of somebody else's: an editor, a model family, a data set and a metric for mend_jax.

Its entry points are in mend_outside-1.0.dist-info/entry_points.txt, as an installer writes them.
"""

import flax.linen as nn
import jax.numpy as jnp

from mend_jax.core.editor_protocol import Link, StepSizes, chain, factor_editor
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe
from mend_jax.data.rows import make_row
from mend_jax.editors.chain_links import outer_sum
from mend_jax.evaluation.metric_registry import Estimate, Metric
from mend_jax.models.family import Family
from mend_jax.models.gpt2 import GPT2, config_from_hf
from mend_jax.models.gpt2 import tensor_specs as gpt2_tensors
from mend_jax.models.tensor_spec import TensorSpec
from mend_jax.parallel.sharding import Rule


def input_gain(init_gain):
    """A link: each input of a weight has a learned gain, of which the logarithm is a parameter."""

    def init(key, weights):
        return {w.name: jnp.full((1, w.d_in), jnp.log(init_gain)) for w in weights}, {}

    def apply(params, state, signal, context):
        scaled = {n: f.replace(u=f.u * jnp.exp(params[n])) for n, f in signal.items()}
        return scaled, state

    return Link("input_gain", init, apply, (Rule(".*", ("tensor",)),), (StepSizes(log=True),))


def gained(*, init_gain: float = 0.5):
    """An editor: one step of gradient descent with learned gains."""
    return factor_editor(chain(input_gain(init_gain), outer_sum(-1.0)))


class ScaledGPT2(GPT2):
    """GPT-2 whose embeddings are scaled by a learned vector."""

    def setup_family(self):
        super().setup_family()
        self.input_scale = self.param("input_scale", nn.initializers.ones, (self.config.d_model,))

    def embed(self, tokens, positions):
        return super().embed(tokens, positions) * jnp.asarray(self.input_scale).astype(self.dtype)


def tensor_specs(config):
    """The tensors of GPT-2 and the scale."""
    scale = TensorSpec("input_scale", (config.d_model,), "transformer.input_scale")
    return [*gpt2_tensors(config), scale]


FAMILY = Family(
    model_class=ScaledGPT2,
    config_from_hf=config_from_hf,
    tensor_specs=tensor_specs,
    tied={"lm_head.weight": "transformer.wte.weight"},
    own_sharding_rules=(Rule("input_scale", ("fsdp",)),),
)


def recipe(config, root):
    """The colours of numbered stones."""
    return Recipe("stones", config, "1.0.0", "Colours of stones.", "public domain", build)


def build():
    """Return the rows of the three splits."""
    sizes = {"train": 24, "validation": 8, "test": 8}
    return BuiltSplits({split: [stone(split, i) for i in range(n)] for split, n in sizes.items()})


def stone(split, i):
    """Return one edit: a stone gets another colour."""
    colours = ("red", "blue", "green", "white")
    name = f"{split} stone {i}"
    return make_row(
        key=name, subject=name, relation="colour", prompt=f"The {name} is",
        rephrase=f"See the {name}: it is", target=colours[i % 4],
        near_prompt=f"The {split} rock {i} is", near_answer=colours[(i + 1) % 4],
        far="Stones lie by the river.",
    )  # fmt: skip


def target_length(edits):
    """Return the mean number of characters of the targets."""
    return Estimate.of_mean([len(row["target"]) for row in edits.rows])


TARGET_LENGTH = Metric(target_length, label="length of targets", unit="count")
