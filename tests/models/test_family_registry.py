"""Model families from other packages: registered at run time or found as entry points."""

import dataclasses
from importlib.metadata import EntryPoint

import jax
import numpy as np
import pytest
from support.tiny import HF

from mend_jax import hub, models
from mend_jax.errors import ConfigError, WeightsError
from mend_jax.hub.language_model import load_model
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.io import registry
from mend_jax.io.registry import Registry
from mend_jax.models import family as families
from mend_jax.models import gpt2
from mend_jax.models.layers import broadcast_last
from mend_jax.models.params import random_params
from mend_jax.models.tensor_spec import TensorSpec
from mend_jax.parallel.mesh import make_mesh
from mend_jax.parallel.sharding import Rule


class Scaled(gpt2.GPT2):
    """GPT-2 with a learned scale of each logit, a tensor that no general rule covers."""

    def setup_family(self):
        super().setup_family()
        self.logits_scale = self.param("logits_scale", jax.nn.initializers.ones, (300,))

    def head(self, h):
        logits = super().head(h)
        return logits * broadcast_last(self.logits_scale, logits)


def tensor_specs(config):
    extra = TensorSpec("logits_scale", (config.vocab_size,), "lm_head.scale")
    return [*gpt2.tensor_specs(config), extra]


SCALED = dataclasses.replace(
    gpt2.FAMILY,
    model_class=Scaled,
    tensor_specs=tensor_specs,
    own_sharding_rules=(Rule("logits_scale", ("tensor",)),),
)


@pytest.fixture
def own_registry(monkeypatch):
    """A registry without plug-ins, whose changes end with the test."""
    fresh = Registry("model_type", entries={"gpt2": "mend_jax.models.gpt2:FAMILY"})
    monkeypatch.setattr(families, "FAMILIES", fresh)


def test_a_family_from_outside_is_loaded_sharded_and_generates(own_registry, tmp_path):
    models.register_family("scaled_gpt2", SCALED)
    hf = HF["gpt2"] | {"model_type": "scaled_gpt2"}
    specs = tensor_specs(models.parse_config(SCALED, hf))
    flat = random_params(specs, 0, 0.2)
    hub.save_hf(tmp_path, hf, flat, specs)
    Tokenizer.tiny().save(tmp_path)
    whole = load_model(str(tmp_path), last_n_blocks=2)
    split = load_model(
        str(tmp_path), last_n_blocks=2, mesh=make_mesh(dict(data=2, fsdp=2, tensor=2))
    )
    np.testing.assert_array_equal(whole.params["logits_scale"], flat["logits_scale"])
    assert split.params["logits_scale"].sharding.spec == jax.sharding.PartitionSpec("tensor")
    assert split.fingerprint == whole.fingerprint
    assert whole.generate("The sky", 4) == split.generate("The sky", 4)


def test_a_model_type_is_registered_once(own_registry):
    with pytest.raises(ConfigError, match="'gpt2' is registered already"):
        models.register_family("gpt2", SCALED)


def test_a_family_of_an_installed_package_is_found(monkeypatch):
    plugin = EntryPoint("scaled_gpt2", f"{__name__}:SCALED", "mend_jax.models")
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [plugin] if group == plugin.group else []
    )
    fresh = Registry("model_type", group="mend_jax.models", entries={})
    monkeypatch.setattr(families, "FAMILIES", fresh)
    assert models.find_family({"model_type": "scaled_gpt2"}) is SCALED
    assert models.model_kind({"model_type": "scaled_gpt2"}) == "causal"


def test_an_unknown_model_type_names_the_nearest():
    with pytest.raises(WeightsError, match="did you mean 'llama'"):
        models.find_family({"model_type": "lama"})
    with pytest.raises(WeightsError, match="save its language model alone"):
        models.find_family({"model_type": ["x"], "text_config": {}})


def test_every_built_in_family_can_be_imported():
    assert {name for name in models.FAMILIES if models.FAMILIES[name]} >= {
        hf["model_type"] for hf in HF.values()
    }
