"""HTML pages: every text is escaped, and only the scripts of this package run."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mend_jax.evaluation.reports.formatting import starts_with
from mend_jax.io.files import write_bytes, write_text

_TEMPLATES = Path(__file__).resolve().parent / "templates"


@functools.cache
def page_environment() -> jinja2.Environment:
    """Return the environment of templates: every text is escaped, missing names are errors.

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


def render(template: str, view: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return a page with its pictures inside."""
    encoded = {name: base64.b64encode(png).decode("ascii") for name, png in pictures.items()}
    return page_environment().get_template(template).render({**view, "pictures": encoded})


def write_report(workdir: Any, html: str, pictures: Mapping[str, bytes]) -> Any:
    """Write report.html, and its pictures beside it; return the page's path."""
    for name, png in pictures.items():
        write_bytes(workdir / name, png)
    write_text(workdir / "report.html", html)
    return workdir / "report.html"


def inline_script(name: str) -> Markup:
    """Return the text of a script among the templates, to put between <script> and </script>."""
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def content_security_policy(*scripts: str, talks: bool = False) -> str:
    """Return a Content-Security-Policy: nothing is loaded from anywhere, only these scripts run.

    A script is allowed by the hash of its text: a script in a model's output would not run even if
    it were not escaped.

    Args:
      scripts: names, as `inline_script` expects them.
      talks: whether a server sends the page: its scripts may then call that server, and no other
        page may frame it.
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
