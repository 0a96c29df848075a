"""Named errors: each message says what was wrong, where, and how to fix it.

The exit status of a command says what a launcher may do about its end (launch/README.md):

    0    finished
    2    an error that the message explains; starting again gives the same error
    143  stopped by a signal, with the state saved; the same command continues
    else something outside the command, such as a lost machine: starting again may help
"""

import difflib
import sys
from collections.abc import Sequence


class MendError(Exception):
    """Base class of every error that mend_jax raises on purpose.

    Attributes:
      exit_status: the exit status of a command that ends with it.
      everywhere: whether all processes of the run have the error and end in an orderly way.
    """

    exit_status = 2
    everywhere = False


def report_error(error: MendError) -> int:
    """Print the error that ends a command, and return its exit status."""
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
    """A ledger of edits that is damaged, cannot be written, or lacks what a command requires."""


class TrainingError(MendError):
    """Training that cannot continue, such as a loss that is not finite."""


class PeerError(MendError):
    """Another process of the run failed in a step that all must complete."""


class Preempted(MendError):
    """A run received a stop request and saved its state; the same command continues it."""

    exit_status = 143


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the machine, or one of its devices, is out of memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return " (did you mean ...?)" for an error about an unknown name, or "".

    Dotted names with the same last part are close, whatever their group.
    """
    last = name.lower().split(".")[-1]
    close = sorted((k for k in known if k.split(".")[-1] == last), key=len)
    if not close or len(close) == len(known):  # file names all end in .py
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
