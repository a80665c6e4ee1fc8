"""Items of a gallery: for each image a row of items.parquet, a row of embeddings.npy and a thumbnail."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from crosspair.data.images import decode_image, encode_jpeg
from crosspair.encode.store import npy_header
from crosspair.errors import UserError
from crosspair.gallery.layout import ITEMS, Manifest, checked_file

SIDE = 256  # pixels of a thumbnail's longer side, at most
QUALITY = 80  # of a thumbnail's JPEG

# The columns of items.parquet, in the order of the fields of Item.
SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("path", pa.string()),
        ("split", pa.string()),
        ("data_row", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("label", pa.int64()),
        ("captions", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Item:
    """A row of `items.parquet`."""

    item_id: str  # the path inside its folder, or DATA's image_id
    path: str | None  # inside the folder
    split: str | None  # of DATA
    data_row: int | None  # in the split
    sha256: str  # of the encoded image
    width: int  # pixels, upright
    height: int
    bytes: int
    label: int | None
    captions: list[str] | None


class Items:
    """The columns of `items.parquet`: `items["item_id"]` is a list, or an array for numbers that none lacks."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._columns: dict[str, Any] = {}

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, name: str) -> Any:
        if name not in self._columns:
            self._columns[name] = self._table.column(name).to_pylist()
        return self._columns[name]

    def item(self, row: int) -> Item:
        """Raises IndexError unless 0 <= row < n."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return Item(**self._table.slice(row, 1).to_pylist()[0])


def write_items(path: Path, items: list[Item]) -> None:
    rows = [asdict(item) for item in items]
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    pq.write_table(pa.table(columns, schema=SCHEMA), path, compression="zstd")


def write_embeddings(path: Path, blocks: Iterable[np.ndarray], shape: tuple[int, int]) -> None:
    """A .npy file, block after block. Raises ValueError unless they make up the shape."""
    written = 0
    with path.open("wb") as file:
        file.write(npy_header(shape))
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=np.float32).tobytes())
            written += len(block)
    if written != shape[0]:
        raise ValueError(f"{written} embeddings for {shape[0]} items")


def read_items(gallery: Path, manifest: Manifest) -> "Items":
    """The table of a gallery's newest whole state. Raises UserError when it is damaged."""
    path = checked_file(gallery, ITEMS, manifest.files[ITEMS], contents=True)
    try:
        table = pq.read_table(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({error!s:.100}); copy the gallery again or index anew") from error
    if not table.schema.equals(SCHEMA) or len(table) != manifest.count:
        raise UserError(f"{path} is damaged (other columns or rows than expected); copy the gallery again")
    return Items(table.combine_chunks())


def map_embeddings(path: Path, manifest: Manifest) -> np.ndarray:
    """float32 [count, dimension] of an embeddings.npy. Raises UserError when it is damaged."""
    try:
        embeddings: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error!s:.100}); copy the gallery again or index anew") from error
    if embeddings.dtype != np.float32 or embeddings.shape != (manifest.count, manifest.dimension):
        raise UserError(
            f"{path} is damaged (it has {embeddings.dtype} {list(embeddings.shape)}, expected float32 "
            f"[{manifest.count}, {manifest.dimension}]); copy the gallery again or index anew"
        )
    return embeddings


def thumbnail_path(folder: Path, sha256: str) -> Path:
    return folder / sha256[:2] / f"{sha256}.jpg"


def make_thumbnail(data: bytes, name: str = "") -> bytes:
    """The thumbnail of an encoded image. Raises ImageError with `name` when it can't be read."""
    return encode_thumbnail(decode_image(data, name))


def encode_thumbnail(image: Tensor) -> bytes:
    """uint8 [3, h, w] -> a JPEG of at most SIDE pixels a side; small images keep their size."""
    height, width = image.shape[-2:]
    scale = SIDE / max(height, width)
    if scale < 1:
        image = F.resize(image, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)
    return encode_jpeg(image, QUALITY)
