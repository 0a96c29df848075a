"""`serve`: the local page on which edits are tried, kept and undone."""

from __future__ import annotations

import argparse

from mend_jax.ledger import web_server as server
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.measure import require_text_model
from mend_jax.ledger.open_ledger import open_base, say
from mend_jax.ledger.session import Session


def serve(args: argparse.Namespace) -> int:
    """The command; it ends with Ctrl-C."""
    model, ledger = open_base(args.ledger, args.model, args.dtype, args.last_n_blocks)
    require_text_model(model)
    editor = choose_editor(model, args.editor, args.strength, dict(args.option), say)
    server.serve(Session(model, editor, ledger, args.strength), args.port)
    return 0
