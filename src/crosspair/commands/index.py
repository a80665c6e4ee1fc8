"""crosspair index: encode a folder of images or DATA into a GALLERY, or update one with what has changed."""

import sys
from argparse import Namespace

from crosspair.errors import UserError
from crosspair.gallery.describe import describe_summary
from crosspair.gallery.indexing import index_images
from crosspair.training.run import model_directory


def run(options: Namespace) -> None:
    """Make or renew a gallery and print what it holds now."""
    if options.distributed is None and options.ray_workers is not None:
        raise UserError("--ray-workers is for --distributed ray; name the threads of this machine with --threads")
    if options.distributed is not None and options.threads is not None:
        raise UserError("--threads is for this machine alone; name the workers on the cluster with --ray-workers")
    if options.distributed is not None and options.device != "auto":
        raise UserError("Ray's workers take the GPUs of their cluster, if it has any; leave --device out")
    summary = index_images(
        model_directory(options.model),
        options.images,
        options.output,
        splits=options.split,
        threads=options.threads,
        ray_workers=options.ray_workers,
        device=options.device,
        engine=options.engine,
        address=options.address,
        distributed=options.distributed,
        tell=lambda line: print(line, file=sys.stderr),
    )
    print(describe_summary(summary))
