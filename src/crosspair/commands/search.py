"""crosspair search: the images of a GALLERY nearest to a sentence or an image."""

from argparse import Namespace

from crosspair.devices import find_device
from crosspair.errors import UserError
from crosspair.gallery.describe import found_json, found_table
from crosspair.gallery.gallery import Gallery
from crosspair.gallery.query import encode_query


def run(options: Namespace) -> None:
    """Print what is found, as a table or as JSON."""
    if options.top < 1:
        raise UserError(f"found --top {options.top}; expected at least 1")
    find_device(options.device)  # before the gallery is opened
    gallery = Gallery.open(options.gallery, device=options.device)
    found = gallery.search(encode_query(gallery.model(), options.query), options.top)
    print(found_json(gallery, found) if options.json else found_table(gallery, found))
