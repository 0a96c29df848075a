"""Rotary positions: frequencies against the reference, and both spellings of their settings."""

import copy

import numpy as np
import pytest
from support.tiny import HF

from mend_jax import models
from mend_jax.models import gemma
from mend_jax.models.rotary import Rope, inverse_frequencies

LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
LLAMA3_1 = LLAMA3 | dict(original_max_position_embeddings=8192)


def parse(hf):
    return models.parse_config(models.find_family(hf), hf)


def variant(kind, **changes):
    """Return a tiny config with `changes`, where None removes a field."""
    return {k: v for k, v in (HF[kind] | changes).items() if v is not None}


def theirs(hf):
    """Return the config of transformers, made from a copy because it modifies its argument."""
    transformers = pytest.importorskip("transformers")
    fields = {k: copy.deepcopy(v) for k, v in hf.items() if k != "model_type"}
    return transformers.AutoConfig.for_model(hf["model_type"], **fields)


@pytest.mark.parametrize(
    "width, theta, scaling",
    [
        (64, 1e4, None),
        (128, 5e5, {"rope_type": "linear", "factor": 4.0}),
        (128, 5e5, LLAMA3_1),
        (64, 5e5, LLAMA3_1 | {"factor": 32.0}),
        (8, 1e4, LLAMA3),
    ],
)
def test_frequencies_equal_the_reference(width, theta, scaling):
    config = theirs(
        dict(model_type="llama", head_dim=width, rope_theta=theta, rope_scaling=scaling)
    )
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    of_kind = ROPE_INIT_FUNCTIONS | {
        "default": LlamaRotaryEmbedding.compute_default_rope_parameters
    }
    kind = (scaling or {}).get("rope_type", "default")
    expected, amplitude = of_kind[kind](config)
    assert amplitude == 1.0
    ours = inverse_frequencies(width, theta, scaling)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=3e-6)  # theirs is computed in float32
    if scaling:
        assert (ours < 0.9 * inverse_frequencies(width, theta)).any()


SPELLINGS = {
    "default": [dict(rope_theta=5e5), dict(rope_parameters={"rope_theta": 5e5}),
                dict(rope_theta=5e5, rope_scaling={"rope_type": "default"}),
                dict(rope_parameters={"rope_theta": 5e5, "rope_type": "default"})],
    "nothing": [dict(rope_theta=1e4), dict(), dict(rope_parameters={"rope_type": "default"})],
    "linear": [dict(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}),
               dict(rope_parameters={"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}),
               dict(rope_theta=5e5, rope_scaling={"rope_type": "linear", "factor": 2.0},
                    rope_parameters={"rope_type": "default"})],
    "llama3": [dict(rope_theta=5e5, rope_scaling=LLAMA3),
               dict(rope_parameters={"rope_theta": 5e5, **LLAMA3})],
    "length of training": [
        dict(rope_scaling=LLAMA3 | {"original_max_position_embeddings": 160}),
        dict(rope_parameters={k: v for k, v in LLAMA3.items() if not k.startswith("orig")}),],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
@pytest.mark.parametrize("case", sorted(SPELLINGS))
def test_both_spellings_of_rotary_settings_are_equivalent(kind, case):
    spellings = [
        variant(kind, **{"rope_theta": None, "rope_scaling": None, **spelling})
        for spelling in SPELLINGS[case]
    ]
    ropes = [parse(hf).rope for hf in spellings]
    assert len(set(ropes)) == 1 and (case == "nothing") == (ropes[0] == Rope())
    for hf in spellings:
        rope = theirs(hf).rope_parameters
        assert rope["rope_theta"] == ropes[0].theta
        scaling = dict(ropes[0].scaling) or {"rope_type": "default"}
        assert {k: rope[k] for k in scaling} == scaling


GEMMA3_SPELLINGS = [
    dict(rope_theta=5e5, rope_local_base_freq=200.0,
         rope_scaling={"rope_type": "linear", "factor": 8.0}),
    dict(rope_theta=None, rope_local_base_freq=None, rope_scaling=None, rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 200.0}}),
]  # fmt: skip
GEMMA3_BARE = dict.fromkeys(("rope_theta", "rope_local_base_freq", "rope_scaling"))


@pytest.mark.parametrize("spelling", [*GEMMA3_SPELLINGS, GEMMA3_BARE])
def test_gemma3_rotates_local_blocks_by_separate_frequencies(spelling):
    hf = variant("gemma3", **spelling)
    config = parse(hf)
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

    rotary = Gemma3RotaryEmbedding(theirs(hf))
    inverse = gemma.Gemma(config, 1).layers("block")["inverse"]
    sides = ["sliding", "sliding", "full", "sliding"]
    for ours, side in zip(inverse, sides, strict=True):
        expected = getattr(rotary, f"{side}_attention_inv_freq").numpy()
        np.testing.assert_allclose(ours, expected, rtol=3e-6)
    assert np.abs(inverse[1] - inverse[2]).max() > 1e-2
    if spelling is not GEMMA3_BARE:
        assert config == parse(variant("gemma3", **GEMMA3_SPELLINGS[0]))
