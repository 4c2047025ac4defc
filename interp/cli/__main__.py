"""`python -m interp.cli`, the same as `interp`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
