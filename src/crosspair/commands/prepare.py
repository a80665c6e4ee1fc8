"""crosspair prepare: convert annotations and images of any data format into a DATA directory."""

from argparse import Namespace

from crosspair.data.prepare import prepare_format
from crosspair.data.reader import Reader
from crosspair.errors import UserError


def run(options: Namespace) -> None:
    """Prepare the data and print the summary."""
    reader = Reader(options.format)
    _refuse_unknown(options, reader)
    print(
        prepare_format(
            options.format,
            options.annotations,
            options.images,
            options.output,
            size=options.size,
            processes=options.processes,
            on_error=options.on_error,
            split_shares=options.split_shares,
            seed=options.seed,
            options=reader.parse(options.overrides),
        )
    )


def _refuse_unknown(options: Namespace, reader: Reader) -> None:
    """An option that neither the format nor the command has, where the command has a near one."""
    for argument in options.overrides:
        name = argument.partition("=")[0]
        own = name.removeprefix("--").removeprefix("no-").replace("-", "_") in reader.options
        near = options.nearest(name) if name.startswith("--") and not own else None
        if near:
            raise UserError(f"unrecognized {name}; did you mean {near}?")
