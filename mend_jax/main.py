"""The command `python -m mend_jax.main`; see `mend_jax.apps.run_command`."""

import sys

from mend_jax.apps.run_command import main

if __name__ == "__main__":
    sys.exit(main())
