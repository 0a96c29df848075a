"""python -m mend_jax.edit COMMAND ...: see `mend_jax.ledger.command`."""

import sys

from mend_jax.ledger.command import main

if __name__ == "__main__":
    sys.exit(main())
