"""Dates and times as files record them."""

from __future__ import annotations

import datetime


def utc_timestamp() -> str:
    """Return the present date and time in UTC, in ISO form, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
