"""Embeddings of a split as files for other programs, and for `crosspair evaluate --embeddings`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crosspair.errors import UserError
from crosspair.storage.files import refuse_occupied, whole_directory, whole_file

LARGEST_IN_MATLAB = 2**31 - 1  # bytes of a matrix, which its version 5 counts with 32 bits
Kind = Literal["npz", "mat", "directory"]


def kind_of_output(path: Path) -> Kind:
    """What the name of an output says it is to be. Raises UserError for another, or where it can't be written."""
    if path.suffix == ".npz":
        return "npz"
    if path.suffix == ".mat":
        try:
            import scipy.io  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"{path} is MATLAB's format, which needs scipy; run: pip install 'crosspair[matlab]', or name an .npz "
                "file"
            ) from error
        return "mat"
    if path.suffix in (".npy", ".h5", ".hdf5", ".pkl", ".pt", ".csv"):
        raise UserError(
            f"{path} can't hold several arrays that everyone reads; expected FILE.npz, FILE.mat or a directory, which "
            "gets an .npy file for each"
        )
    refuse_occupied(path, "the embeddings")
    return "directory"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to FILE.npz, FILE.mat (MATLAB 5) or a directory of .npy files; whole or not at all.

    Raises UserError as `kind_of_output`, and for an array that is too large for MATLAB 5.
    """
    kind = kind_of_output(path)
    if kind == "directory":
        with whole_directory(path) as directory:
            for name, array in arrays.items():
                np.save(directory / f"{name}.npy", array, allow_pickle=False)
        return
    if kind == "npz":
        with whole_file(path) as file:
            stored: Any = dict(arrays)
            np.savez(file, allow_pickle=False, **stored)
        return
    import scipy.io

    for name, array in arrays.items():
        if array.nbytes > LARGEST_IN_MATLAB:
            raise UserError(
                f"{name} takes {array.nbytes / 1e9:.1f} GB, and MATLAB 5 holds 2 GB a matrix; name an .npz file or a "
                "directory"
            )
    with whole_file(path) as file:
        scipy.io.savemat(file, dict(arrays), format="5", oned_as="column")
