"""A gallery: the images that `crosspair index` encoded, opened to be searched and looked at.

gallery = Gallery.open("GALLERY")
found = gallery.search(gallery.model().encode_text(["a dog runs"]).numpy(), top=10)
gallery.item(found.rows[0, 0]).item_id, gallery.thumbnail(found.rows[0, 0])
"""

import hashlib
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from crosspair.errors import UserError
from crosspair.gallery.engines.engine import Content, Engine, SearchResult, find_engine
from crosspair.gallery.items import Item, make_thumbnail, map_embeddings, read_items, thumbnail_path
from crosspair.gallery.layout import (
    EMBEDDINGS,
    INDEX,
    THUMBNAILS,
    Manifest,
    Place,
    checked_file,
    current_file,
    read_manifest,
)
from crosspair.storage.files import leads_out

if TYPE_CHECKING:
    from crosspair.data.dataset import Data
    from crosspair.encode.model import DualEncoder


class Gallery:
    """n images; row i of everything below is image i. Many threads may use one gallery."""

    def __init__(self, path: Path, manifest: Manifest, device: str = "auto") -> None:
        self.path = path
        self.device = device
        self.manifest = manifest
        self._embeddings_file = checked_file(path, EMBEDDINGS, manifest.files[EMBEDDINGS], contents=False)
        self.embeddings = map_embeddings(self._embeddings_file, manifest)
        self.items = read_items(path, manifest)
        self._loading = Lock()

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto") -> "Gallery":
        """Open what `crosspair index` wrote. Raises UserError when it is something else, unfinished or damaged.

        device: that queries are encoded on: auto, cpu, cuda, cuda:1 or mps.
        """
        gallery = Path(path)
        return cls(gallery, read_manifest(gallery), device)

    def __len__(self) -> int:
        return self.manifest.count

    def verify(self) -> None:
        """Read all files but thumbnails. Raises UserError when one is not as it was written."""
        for name, facts in self.manifest.files.items():
            checked_file(self.path, name, facts, contents=True)

    @property
    def dimension(self) -> int:
        return self.manifest.dimension

    def search(self, queries: np.ndarray, top: int = 10) -> SearchResult:
        """The `top` nearest images of each query: float32 [q, dimension], unit length.

        Raises ValueError for queries of another shape, or a top below 1.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension or top < 1:
            raise ValueError(f"found queries {queries.shape} and top {top}; expected [q, {self.dimension}], top >= 1")
        with self._loading:
            engine = self._engine
        return SearchResult(*engine.search(queries, top))

    def item(self, row: int) -> Item:
        """Raises IndexError unless 0 <= row < n."""
        return self.items.item(int(row))

    def image(self, row: int) -> bytes:
        """The encoded image as it was indexed. Raises UserError when it is gone or another one."""
        item = self.item(row)
        data = self._read(item)
        # This also keeps a gallery that somebody made up from naming any file of the machine as its image.
        if hashlib.sha256(data).hexdigest() != item.sha256:
            raise UserError(f"{item.item_id} is no longer the picture that was indexed; run `crosspair index` again")
        return data

    def thumbnail(self, row: int) -> bytes:
        """The image as a JPEG of at most 256 pixels a side. Raises UserError when it and its image are gone."""
        try:
            data = thumbnail_path(self.path / THUMBNAILS, self.item(row).sha256).read_bytes()
        except OSError:
            data = b""
        return data or make_thumbnail(self.image(row), self.item(row).item_id)

    def model(self) -> "DualEncoder":
        """The model the images were encoded with, loaded once. Raises UserError when it is gone or another one."""
        with self._loading:
            return self._model

    @cached_property
    def _model(self) -> "DualEncoder":
        from crosspair.encode.model import DualEncoder
        from crosspair.encode.storage import model_checksum

        model = self.manifest.model
        where = str(model.find(self.path)) if isinstance(model, Place) else model
        if isinstance(model, Place) and not Path(where).exists():
            raise UserError(f"{self.path} was made with the model {where}, which is gone; put it back or index anew")
        if model_checksum(where) != self.manifest.model_checksum:
            raise UserError(
                f"the model {where} is not the one {self.path} was made with; put that one back, "
                "or index the pictures into a new gallery"
            )
        return DualEncoder.from_pretrained(where, device=self.device)

    @cached_property
    def _engine(self) -> Engine:
        if INDEX in self.manifest.files:
            checked_file(self.path, INDEX, self.manifest.files[INDEX], contents=True)
        return find_engine(str(self.manifest.index["kind"])).open(self.content())

    def content(self) -> Content:
        """The part of this gallery that an engine is given."""
        file = current_file(self.path, INDEX)
        return Content(self.path, self.embeddings, file, self.manifest.index, lambda: self.items["sha256"])

    @cached_property
    def _data(self) -> "Data":
        from crosspair.data.dataset import open_data

        return open_data(self.manifest.source.find(self.path))

    def _read(self, item: Item) -> bytes:
        if item.path is None:
            split = self._data.split(str(item.split))
            if item.data_row is None or not 0 <= item.data_row < len(split):
                raise UserError(f"{item.item_id} is no longer in {self._data.path}; run `crosspair index` again")
            return split.image(item.data_row)
        folder = self.manifest.source.find(self.path)
        path = folder / item.path
        try:
            if not path.is_relative_to(folder) or ".." in Path(item.path).parts or leads_out(path, folder):
                raise UserError(f"{item.item_id} leads out of {folder}; run `crosspair index` again")
            return path.read_bytes()
        except (OSError, ValueError) as error:
            raise UserError(f"the picture {path} is gone or can't be read; run `crosspair index` again") from error
