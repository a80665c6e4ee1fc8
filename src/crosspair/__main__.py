"""Entry point of `python -m crosspair`, which launchers such as torchrun start."""

import sys

from crosspair.cli import main

if __name__ == "__main__":
    sys.exit(main())
