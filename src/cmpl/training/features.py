"""Features of a frozen image encoder: each picture goes through it once (and once mirrored); they are kept on disk."""

import fcntl
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cmpl.data.pictures import decode_picture
from cmpl.files import full_disk_is_an_error
from cmpl.models.dual_encoder import DualEncoder
from cmpl.progress import progress_bar

if TYPE_CHECKING:
    from cmpl.data.dataset import Split

BATCH = 64


def cache_directory() -> Path:
    """Where features are kept between runs: $CMPL_CACHE, or cmpl in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CMPL_CACHE") or Path(base) / "cmpl") / "features"


def picture_features(
    model: DualEncoder,
    split: "Split",
    *,
    mirror: bool,
    precision: str = "32-true",
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    progress: bool = True,
) -> np.ndarray:
    """float32 [n, 1 or 2, num_features], memory-mapped: of every picture and, with `mirror`, of its mirror image.

    autocast: entered around the encoder; precision: its name, so that features of another precision are not mixed in.
    The encoder must be frozen in evaluation mode. What is on disk already is used, also a part that an interrupted
    run left; the name holds a checksum of pictures, weights and input, so that nothing stale is ever read.
    """
    views = 2 if mirror else 1
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{_key(model, split, views, precision)}.npy"
    with full_disk_is_an_error(path), _locked(path.with_suffix(".lock")):
        if not path.exists():
            _encode(model, split, views, path, autocast, progress)
    features: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return features


def _key(model: DualEncoder, split: "Split", views: int, precision: str) -> str:
    key = hashlib.sha256(f"{split.fingerprint} {views} {precision}".encode())
    # Encoders of another name can share names and values of weights: the padding of a convolution is not among them.
    key.update(f"{model.config.image.name} {asdict(model.picture_input)}".encode())
    for name, value in model.image_encoder.state_dict().items():
        key.update(name.encode())
        key.update(value.detach().cpu().contiguous().numpy().tobytes())
    return key.hexdigest()[:32]


def _encode(
    model: DualEncoder,
    split: "Split",
    views: int,
    path: Path,
    autocast: Callable[[], AbstractContextManager[object]],
    progress: bool,
) -> None:
    """Append batch after batch to a partial .npy file, from where it was left, then give it its name."""
    partial = path.with_suffix(".partial")
    header = _npy_header((len(split), views, model.num_image_features))
    batch_bytes = BATCH * views * model.num_image_features * 4
    model.image_encoder.eval()

    def load(index: int) -> torch.Tensor:
        return model.picture_input.resize(decode_picture(split.picture(index), split.image_ids[index]))

    label = f"image features ({'each picture and its mirror image' if views == 2 else 'each picture'})"
    with partial.open("ab") as file, torch.inference_mode(), autocast(), ThreadPoolExecutor() as threads:
        batches_done = max(0, file.tell() - len(header)) // batch_bytes
        done = batches_done * BATCH  # whole batches only, so that an interruption changes no batch
        file.truncate(len(header) + batches_done * batch_bytes if done else 0)
        if not done:
            file.write(header)
        with progress_bar(total=len(split), initial=done, desc=label, unit=" pictures", disable=not progress) as bar:
            for start in range(done, len(split), BATCH):
                indices = range(start, min(start + BATCH, len(split)))
                pictures = torch.stack(list(threads.map(load, indices))).to(model.device)
                seen = [model.image_features(pictures.flip(-1) if view else pictures) for view in range(views)]
                file.write(torch.stack(seen, dim=1).float().cpu().numpy().tobytes())
                file.flush()
                bar.update(len(indices))
    partial.replace(path)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """What stands before the float32 values of an array in a .npy file."""
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Runs that need the same features at the same time: one makes them, the others wait for it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
