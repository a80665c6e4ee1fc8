"""crosspair compare: metrics of runs, models and stored results in one table, evaluated where they are missing."""

from argparse import Namespace

from crosspair.devices import find_device
from crosspair.errors import UserError
from crosspair.report.comparison_tables import to_text, write_tables
from crosspair.training.measure import compare


def run(options: Namespace) -> None:
    """Print the comparison of runs, models and stored results; --output also writes it as Markdown, CSV and LaTeX."""
    if options.output is not None and options.output.is_file():
        raise UserError(f"{options.output} is a file; expected a directory for the tables, name another --output")
    find_device(options.device)  # before anything is read
    choices = {"split": options.split, "protocol": options.protocol, "device": options.device}
    comparison = compare(*options.names, data=options.data, **choices)
    print(to_text(comparison))
    if options.output is not None:
        print("written: " + ", ".join(map(str, write_tables(options.output / "comparison", comparison))))
