"""crosspair serve: a web page and an HTTP API to search a GALLERY."""

from argparse import Namespace

from crosspair.errors import UserError


def run(options: Namespace) -> None:
    """Serve a gallery until a signal comes."""
    try:
        from crosspair.serve.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs the package {error.name}; run: pip install 'crosspair[search]'") from error
    serve(options.gallery, options.host, options.port, options.token, options.device)
