"""Edits that people can hold: the command `python -m mend_jax.edit` and what it is made of."""
