"""Every config key that changes the mathematics is supported or refused, as transformers shows."""

import pytest
from support.config_scan import scan
from support.tiers import in_tiers
from support.tiny import HF

from mend_jax import models
from mend_jax.errors import WeightsError


@pytest.mark.parametrize(
    "kind, key, value",
    [
        ("gpt2", "scale_attn_weights", False),
        ("t5", "dense_act_fn", "gelu"),
        ("t5_v1_1", "dense_act_fn", "relu"),
        ("llama", "mlp_bias", True),
    ],
)
def test_a_key_that_would_be_ignored_is_refused(kind, key, value):
    hf = HF[kind] | {key: value}
    with pytest.raises(WeightsError, match=key):
        models.parse_config(models.find_family(hf), hf)


@pytest.mark.parametrize("kind", in_tiers([], HF, ["gpt2", "t5"]))
def test_no_key_is_read_wrongly(kind):
    pytest.importorskip("torch")
    found = list(scan(kind))
    assert any(finding.outcome == "supported" for finding in found)
    assert [finding for finding in found if finding.outcome == "WRONG"] == []
