"""crosspair prepare: annotations and pictures of any data format into a DATA directory."""

from argparse import Namespace

from crosspair.data.prepare import prepare_format
from crosspair.data.reader import Reader


def run(options: Namespace) -> None:
    """Prepare the data and print the summary."""
    print(
        prepare_format(
            options.format,
            options.annotations,
            options.images,
            options.output,
            size=options.size,
            workers=options.workers,
            on_error=options.on_error,
            split=options.split,
            seed=options.seed,
            options=Reader(options.format).parse(options.overrides),
        )
    )
