"""Writing a gallery's new state: embeddings, items and what `gallery.json` says of them."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crosspair.gallery.gallery import Item
from crosspair.gallery.items import SCHEMA
from crosspair.gallery.layout import EMBEDDINGS, ITEMS, Manifest, commit, new_state


def write_gallery(gallery: Path, manifest: Manifest, items: list[Item], embeddings: Iterable[np.ndarray]) -> None:
    """Make these pictures the whole of a gallery, at once; thumbnails are written elsewhere.

    embeddings: blocks float32 [b, dimension] of unit length, in the order of the items.
    """
    with new_state(gallery) as folder:
        write_items(folder / ITEMS, items)
        write_embeddings(folder / EMBEDDINGS, embeddings, (len(items), manifest.dimension))
        commit(gallery, folder, replace(manifest, count=len(items)))


def write_items(path: Path, items: list[Item]) -> None:
    rows = [asdict(item) for item in items]
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    pq.write_table(pa.table(columns, schema=SCHEMA), path, compression="zstd")


def write_embeddings(path: Path, blocks: Iterable[np.ndarray], shape: tuple[int, int]) -> None:
    """A .npy file, block after block. Raises ValueError unless they make up the shape."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    written = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=np.float32).tobytes())
            written += len(block)
    if written != shape[0]:
        raise ValueError(f"{written} embeddings for {shape[0]} items")
