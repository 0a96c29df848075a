"""How HTML pages are made: every text escaped, and no script runs but those of this package."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from mend_jax.evaluation.reports.formatting import starts_with

_TEMPLATES = Path(__file__).resolve().parent / "templates"


@functools.cache
def page_environment() -> jinja2.Environment:
    """How templates are read: every text is escaped, and a name that is not there is an error.

    Templates can call `inline_script(NAME)` for an inline script of this package, and
    `content_security_policy(NAME, ...)` for the policy that allows these scripts and nothing else.
    """
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals |= {
        "inline_script": inline_script,
        "content_security_policy": content_security_policy,
    }
    env.filters["starts"] = starts_with
    return env


def inline_script(name: str) -> Markup:
    """The text of a script among the templates, to stand between <script> and </script>."""
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def content_security_policy(*scripts: str, talks: bool = False) -> str:
    """A Content-Security-Policy: nothing is loaded from anywhere, only these scripts run.

    A script is allowed by the hash of its text, so that one that came in with a model's output
    would not run even if it were not escaped.

    Args:
      scripts: names, as of `inline_script`.
      talks: whether it is of a page that a server sends, whose scripts may call that server (and
        which no other page may frame).
    """
    hashes = (hashlib.sha256(inline_script(name).encode()).digest() for name in scripts)
    rules = {
        "default-src": ["'none'"],
        "img-src": ["data:"],
        "style-src": ["'unsafe-inline'"],
        "script-src": [f"'sha256-{base64.b64encode(h).decode()}'" for h in hashes],
        "connect-src": ["'self'"] if talks else [],
        "form-action": ["'none'"],
        "base-uri": ["'none'"],
        "frame-ancestors": ["'none'"] if talks else [],
    }
    return "; ".join(f"{rule} {' '.join(values)}" for rule, values in rules.items() if values)
