"""The command `serve`: a local page on which edits are tried, kept and reverted."""

from __future__ import annotations

import argparse

from mend_jax.ledger import web_server
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.measure import require_text_model
from mend_jax.ledger.open_ledger import open_base, report_progress
from mend_jax.ledger.session import Session


def serve(args: argparse.Namespace) -> int:
    """Run the command until Ctrl-C."""
    model, ledger = open_base(
        args.ledger, args.model, args.dtype, args.last_n_blocks, args.editor, args.mesh
    )
    require_text_model(model)
    editor = choose_editor(model, args.editor, args.strength, dict(args.option), report_progress)
    session = Session(model, editor, ledger, args.strength, plain=args.plain)
    web_server.serve(session, args.port)
    return 0
