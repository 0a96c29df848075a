"""Named errors: each message says what was wrong, where, and how to mend it."""

import difflib
import sys
from collections.abc import Sequence


class MendError(Exception):
    """Base class of every error that mend_jax raises on purpose.

    Attributes:
      exit_status: what a command that ends with it returns.
      everywhere: whether all processes of the run know of it and end in order.
    """

    exit_status = 2
    everywhere = False


def report_error(error: MendError) -> int:
    """Says why a command ends, and returns the status that it ends with."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return error.exit_status


class ConfigError(MendError):
    """A config file, key or value that cannot be used."""


class WeightsError(MendError):
    """Base weights that are missing, truncated, misshapen or unknown."""


class DataError(MendError):
    """A data file or an example that cannot be used."""


class CheckpointError(MendError):
    """A checkpoint or edit file that is damaged or does not belong to this base or config."""


class OutputError(MendError, OSError):
    """A file of a run that cannot be written: a full disk, or one that is read-only."""


class LedgerError(MendError):
    """A ledger of edits that is damaged, cannot be written, or lacks what is asked of it."""


class TrainingError(MendError):
    """Training that cannot go on, such as a loss that is not finite."""


class PeerError(MendError):
    """Another process of the run failed at what all must do."""


class Preempted(MendError):
    """A run was asked to stop and has saved its state; the same command goes on with it."""

    exit_status = 143


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the machine, or a device of it, has no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A clause " (did you mean ...?)" for the message about a name that is not known, or nothing.

    Dotted names that end alike are near, wherever their group.
    """
    last = name.lower().split(".")[-1]
    close = sorted((k for k in known if k.split(".")[-1] == last), key=len)
    if not close or len(close) == len(known):  # file names all end in .py
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
