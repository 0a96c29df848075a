"""From which change on an edit counts as a fault elsewhere."""

LOCALITY_KL_LIMIT = 0.1
"""KL(base || edited) in nats, mean over the scored tokens of texts that should stay."""
