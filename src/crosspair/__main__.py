"""`python -m crosspair` is the command `crosspair`: what a launcher such as torchrun starts."""

import sys

from crosspair.cli import main

if __name__ == "__main__":
    sys.exit(main())
