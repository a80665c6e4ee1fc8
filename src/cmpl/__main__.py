"""`python -m cmpl` is the command `cmpl`: what a launcher such as torchrun starts."""

import sys

from cmpl.cli import main

if __name__ == "__main__":
    sys.exit(main())
