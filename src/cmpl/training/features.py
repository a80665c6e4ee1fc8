"""Features of a frozen image encoder: each picture goes through it once (and once mirrored); they are kept on disk."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from cmpl.data.pictures import decode_picture
from cmpl.files import full_disk_is_an_error
from cmpl.models.dual_encoder import DualEncoder

if TYPE_CHECKING:
    from cmpl.data.dataset import Split

BATCH = 64


def cache_directory() -> Path:
    """Where features are kept between runs: $CMPL_CACHE, or cmpl in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CMPL_CACHE") or Path(base) / "cmpl") / "features"


def picture_features(model: DualEncoder, split: "Split", *, mirror: bool, progress: bool = True) -> np.ndarray:
    """float32 [n, 1 or 2, num_features], memory-mapped: of every picture and, with `mirror`, of its mirror image.

    The encoder must be frozen in evaluation mode. What is on disk already is used, also a part that an interrupted
    run left; the name holds a checksum of pictures, weights and input, so that nothing stale is ever read.
    """
    views = 2 if mirror else 1
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{_key(model, split, views)}.npy"
    if not path.exists():
        with full_disk_is_an_error(path):
            _encode(model, split, views, path, progress)
    features: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return features


def _key(model: DualEncoder, split: "Split", views: int) -> str:
    key = hashlib.sha256(f"{split.fingerprint} {views} {asdict(model.picture_input)}".encode())
    for name, value in model.image_encoder.state_dict().items():
        key.update(name.encode())
        key.update(value.detach().cpu().contiguous().numpy().tobytes())
    return key.hexdigest()[:32]


def _encode(model: DualEncoder, split: "Split", views: int, path: Path, progress: bool) -> None:
    """Fill a partial file from where it was left, then give it its name."""
    shape = (len(split), views, model.num_image_features)
    partial, position = path.with_suffix(".partial.npy"), path.with_suffix(".position")
    done = int(position.read_text()) if position.exists() and partial.exists() else 0
    mode = "r+" if done else "w+"
    features = np.lib.format.open_memmap(partial, mode, dtype=np.float32, shape=shape)
    image_encoder = model.image_encoder
    image_encoder.eval()

    def load(index: int) -> torch.Tensor:
        return model.picture_input.resize(decode_picture(split.picture(index), split.image_ids[index]))

    label = f"image features ({'each picture and its mirror image' if views == 2 else 'each picture'})"
    with (
        torch.inference_mode(),
        ThreadPoolExecutor() as threads,
        tqdm(total=len(split), initial=done, desc=label, unit=" pictures", disable=not progress) as bar,
    ):
        for start in range(done, len(split), BATCH):
            indices = range(start, min(start + BATCH, len(split)))
            pictures = torch.stack(list(threads.map(load, indices))).to(model.device)
            for view in range(views):
                seen = model.image_features(pictures.flip(-1) if view else pictures)
                features[indices.start : indices.stop, view] = seen.float().cpu().numpy()
            features.flush()
            position.write_text(str(indices.stop))
            bar.update(len(indices))
    del features
    partial.replace(path)
    position.unlink()
