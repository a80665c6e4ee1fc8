"""A tiny model, a folder of pictures and a gallery of them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmpl.data.text import Vocabulary
from cmpl.models.config import ImageEncoderConfig, ModelConfig, ProjectionConfig, TextEncoderConfig
from cmpl.models.dual_encoder import DualEncoder
from cmpl.search.gallery import Gallery, Item
from cmpl.search.identity import model_checksum
from cmpl.search.layout import THUMBNAILS, Manifest, Place
from cmpl.search.thumbnails import make_thumbnail, thumbnail_path
from cmpl.search.writing import write_gallery

COLOURS = ["red", "green", "blue", "yellow", "black", "white", "orange", "purple"]


def save_picture(path: Path, colour: str | int, size: tuple[int, int] = (48, 32)) -> Path:
    """A square of one colour, or of noise by number, with a corner in white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(colour, int):
        pixels = np.random.default_rng(colour).integers(0, 256, (size[1], size[0], 3), np.uint8)
        image = Image.fromarray(pixels)
    else:
        image = Image.new("RGB", size, colour)
    image.paste("white", (0, 0, 8, 8))
    image.save(path)
    return path


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that reads 32 x 32 pixels and embeds in 8 dimensions."""
    torch.manual_seed(0)
    config = ModelConfig(
        ImageEncoderConfig(name="test_resnet", weights="none", size=[32, 32]),
        TextEncoderConfig(word_dim=8, hidden_dim=8),
        ProjectionConfig(dim=8),
    )
    directory = tmp_path_factory.mktemp("model") / "model"
    DualEncoder(config, Vocabulary(["a", "square", *COLOURS])).save_pretrained(directory)
    return directory


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of eight squares, three of them in a folder of their own."""
    folder = tmp_path / "pictures"
    for number, colour in enumerate(COLOURS):
        save_picture(folder / ("more" if number > 4 else "") / f"{colour}.png", colour)
    return folder


@pytest.fixture
def written_gallery(tmp_path: Path, model_dir: Path, pictures: Path) -> Callable[[], Gallery]:
    """Writes a gallery of the folder as it is, and opens it."""

    def write() -> Gallery:
        output = tmp_path / "gallery"
        model = DualEncoder.from_pretrained(model_dir)
        items = []
        for path in sorted(pictures.rglob("*.png")):
            data = path.read_bytes()
            name = path.relative_to(pictures).as_posix()
            digest = hashlib.sha256(data).hexdigest()
            items.append(Item(name, name, None, None, digest, 48, 32, len(data), None, None))
            thumbnail = thumbnail_path(output / THUMBNAILS, digest)
            thumbnail.parent.mkdir(parents=True, exist_ok=True)
            thumbnail.write_bytes(make_thumbnail(data))
        embeddings = model.encode_image([pictures / item.item_id for item in items]).numpy()
        manifest = Manifest(
            Place.of(model_dir, output),
            model_checksum(str(model_dir)),
            Place.of(pictures, output),
            "folder",
            [],
            8,
            len(items),
            ["32-true"],
            {"kind": "exact"},
        )
        write_gallery(output, manifest, items, [embeddings])
        return Gallery.open(output)

    return write
