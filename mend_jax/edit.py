"""The command `python -m mend_jax.edit`; see `mend_jax.ledger.cli`."""

import sys

from mend_jax.ledger.cli import main

if __name__ == "__main__":
    sys.exit(main())
