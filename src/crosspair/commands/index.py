"""crosspair index: a folder of pictures or DATA into a GALLERY, and later what has changed."""

import sys
from argparse import Namespace

from crosspair.gallery.describe import describe_summary
from crosspair.gallery.indexing import index_images
from crosspair.training.run import model_directory


def run(options: Namespace) -> None:
    """Make or renew a gallery and print what it holds now."""
    summary = index_images(
        model_directory(options.model),
        options.images,
        options.output,
        splits=options.split,
        workers=options.workers,
        engine=options.engine,
        address=options.address,
        distributed=options.distributed,
        tell=lambda line: print(line, file=sys.stderr),
    )
    print(describe_summary(summary))
