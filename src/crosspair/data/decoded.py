"""Training images kept decoded on disk, so that an epoch copies pixels instead of decoding them.

CACHE/decoded/KEY.pixels: uint8 [h, w, 3], image after image; then int64 [n, 2], the h and w of each
"""

import errno
import hashlib
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crosspair.data.images import image_format, load_image
from crosspair.errors import UserError
from crosspair.progress import progress_bar
from crosspair.storage.cache import locked, user_cache
from crosspair.storage.files import FullDiskError, full_disk_is_an_error, remove_leftovers, whole_file

if TYPE_CHECKING:
    from crosspair.data.batching import Split
    from crosspair.data.transforms import ImageInput

CHUNK = 64  # images decoded at a time
GB = 10**9

logger = logging.getLogger(__name__)


class DecodedImages:
    """The images of a whole cache file by row; usable from several threads and processes."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.count = count
        self._sizes = _read_sizes(path, count)
        self._ends = np.cumsum(3 * self._sizes.prod(axis=1))
        self._file = path.open("rb")  # open from now on: whoever makes room may remove its name

    def __reduce__(self) -> tuple[type["DecodedImages"], tuple[Path, int]]:
        return type(self), (self.path, self.count)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [3, h, w]."""
        height, width = self._sizes[index].tolist()
        pixels = torch.empty((height, width, 3), dtype=torch.uint8)
        # Read rather than mapped: a damaged file is then an error and no crash, and memory stays flat.
        read = os.preadv(self._file.fileno(), [pixels.numpy().data], int(self._ends[index]) - pixels.numel())
        if read != pixels.numel():
            raise UserError(f"{self.path} is damaged; delete it and run again")
        return pixels.permute(2, 0, 1)  # as the decoder lays images out


def decoded_images(
    split: "Split", image_input: "ImageInput", *, resized: bool, budget_gb: float, progress: bool = True
) -> DecodedImages | None:
    """The images of a split, decoded by the first run that needs them; None where the budget is too small.

    resized: at the encoder's size, as it would see them; otherwise as large as they are stored, for crops. Either way
    training sees the same values as without the cache. budget_gb: of all decoded images together; the files used
    longest ago make room. A file's name holds a checksum of images and size, so that nothing stale is ever read. A
    full disk is no error: training then decodes.
    """
    if budget_gb <= 0:
        return None
    resized = resized and image_input.resample == "antialias"  # the original's resize leaves values between integers
    directory = user_cache("decoded")
    directory.mkdir(parents=True, exist_ok=True)
    key = f"{split.checksum} {asdict(image_input) if resized else 'as stored'}"
    path = directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.pixels"
    with locked(directory / "lock"):
        if not _is_whole(path, len(split)):
            path.unlink(missing_ok=True)
            try:
                with full_disk_is_an_error(path):
                    if not _make_room(directory, _bytes_needed(split, image_input, resized), budget_gb):
                        return None
                    _decode(split, image_input, resized, path, progress)
            except FullDiskError as error:
                logger.warning("pictures are decoded in every epoch: %s", error)
                return None
        os.utime(path, ns=(time.time_ns(), time.time_ns()))  # used last; the system's own clock is too coarse
        return DecodedImages(path, len(split))


def _decode(split: "Split", image_input: "ImageInput", resized: bool, path: Path, progress: bool) -> None:
    def load(index: int) -> Tensor:
        image = load_image(split.image(index), split.image_ids[index])
        return image_input.resize(image) if resized else image

    sizes = np.empty((len(split), 2), dtype=np.int64)
    bar = progress_bar(total=len(split), desc="decoding pictures", unit=" pictures", disable=not progress)
    with whole_file(path) as file, ThreadPoolExecutor(os.cpu_count()) as threads, bar:
        for start in range(0, len(split), CHUNK):
            indices = range(start, min(start + CHUNK, len(split)))
            for index, image in zip(indices, threads.map(load, indices), strict=True):
                sizes[index] = image.shape[1:]
                # numpy's copy: torch would share each small one among its threads, which costs more than it saves.
                file.write(np.ascontiguousarray(image.permute(1, 2, 0).numpy()).data)
            bar.update(len(indices))
        file.write(sizes.data)


def _read_sizes(path: Path, count: int) -> np.ndarray:
    """int64 [n, 2]: height and width of every image."""
    footer = path.stat().st_size - 16 * count
    return np.fromfile(path, dtype=np.int64, offset=max(0, footer)).reshape(-1, 2)


def _is_whole(path: Path, count: int) -> bool:
    if not path.exists() or path.stat().st_size < 16 * count:
        return False
    pixels = int((3 * _read_sizes(path, count).prod(axis=1)).sum())
    return pixels + 16 * count == path.stat().st_size


def _bytes_needed(split: "Split", image_input: "ImageInput", resized: bool) -> int:
    if resized:
        return len(split) * (3 * image_input.height * image_input.width + 16)
    return sum(3 * _pixels(split, row) + 16 for row in range(len(split)))


def _pixels(split: "Split", row: int) -> int:
    """Width times height of an image, which encoded bytes tell without being decoded."""
    image, name = split.image(row), split.image_ids[row]
    if isinstance(image, bytes):
        width, height, _ = image_format(image, name)
        return width * height
    return load_image(image, name)[0].numel()


def _make_room(directory: Path, needed: int, budget_gb: float) -> bool:
    """Whether `needed` bytes fit the budget and the disk, once what was used longest ago is removed."""
    if needed > budget_gb * GB:
        logger.warning(
            "decoded pictures would take %.1f GB, more than decoded_cache_gb (%g): they are decoded in every epoch",
            needed / GB,
            budget_gb,
        )
        return False
    remove_leftovers(directory)  # of a killed run: whoever writes holds the lock
    kept = sorted(directory.glob("*.pixels"), key=lambda file: file.stat().st_mtime)
    while kept and needed + sum(file.stat().st_size for file in kept) > budget_gb * GB:
        kept.pop(0).unlink()
    if shutil.disk_usage(directory).free < needed:
        raise OSError(errno.ENOSPC, "too little space")
    return True
