"""Named errors: each message says what was wrong, where, and how to mend it."""


class MendError(Exception):
    """Base class of every error that mend_jax raises on purpose."""


class ConfigError(MendError):
    """A config file, key or value that cannot be used."""


class WeightsError(MendError):
    """Base weights that are missing, truncated, misshapen or unknown."""


class DataError(MendError):
    """A data file or an example that cannot be used."""


class CheckpointError(MendError):
    """A checkpoint or edit file that is damaged or does not belong to this base or config."""


class TrainingError(MendError):
    """Training that cannot go on, such as a loss that is not finite."""
