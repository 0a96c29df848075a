"""The command `python -m mend_jax.doctor`; see `mend_jax.apps.doctor.command`."""

import sys

from mend_jax.apps.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
