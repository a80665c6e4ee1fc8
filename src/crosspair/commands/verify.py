"""crosspair verify: compare losses, encoders, metrics and training with the original's numbers."""

from argparse import Namespace

from crosspair.original.verify.checks import verify


def run(options: Namespace) -> int:
    """Print the table of all checks; 0 when all have passed, else 1."""
    report = verify(progress=True)
    print(report.to_table())
    return 0 if report.passed else 1
