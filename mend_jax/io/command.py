"""What every command does: it prints in any encoding, and names what the machine lacks."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from mend_jax.errors import ConfigError, MendError, report_error

Main = TypeVar("Main", bound=Callable[..., int | None])


def command(main: Main) -> Main:
    """Return the `main(argv)` of a command, which returns its exit status.

    Signs that the terminal lacks are replaced: an edit that is recorded is not followed by a
    traceback because a name has an accent. A MendError is printed, and so is a backend of JAX that
    is not there.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        replace_unknown_signs()
        try:
            return main(sys.argv[1:] if argv is None else argv) or 0
        except MendError as e:
            return report_error(e)
        except Exception:
            problem = missing_backend()
            if problem is None:
                raise
            return report_error(ConfigError(problem))

    return cast(Main, run)


def replace_unknown_signs() -> None:
    """Let standard output and errors replace the signs that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def missing_backend() -> str | None:
    """Return what is wrong with the backend that JAX was told to use; None if it works."""
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    try:
        jax.devices()
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0].partition(" (set ")[0]
        reason = reason.rstrip(".")
        asked = os.environ.get("JAX_PLATFORMS", "")
        return (
            f"JAX cannot use the devices of JAX_PLATFORMS={asked!r}: {reason}. Unset JAX_PLATFORMS "
            "to use what is there, set it to cpu, or install jax for these devices"
        )
    return None
