"""Preparing data: images a second, bytes, what is lost of an image, and memory, against the original's way.

    python benchmarks/prepare.py [--images DIR] [--count 2000]     speed, bytes and loss
    python benchmarks/prepare.py --memory [--captions 10000000]       memory at a tenth of the captions, and at all

The images have 500 x 375 pixels: with --images they are patchworks of four of the photographs there, which may be as
small as 224 x 224, else noise with edges and the spectrum of photographs. The original decoded and encoded an image
once per caption (five here).
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

WIDTH, HEIGHT, CAPTIONS, TRAINING_SIZE = 500, 375, 5, 224
SOURCE_QUALITY = 95  # about 120 kB an image, as Flickr's own of this size have


def drawn(generator: np.random.Generator) -> np.ndarray:
    """uint8 [h, w, 3]: noise whose amplitude falls with the frequency as in photographs, in patches with edges."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1
    layers = []
    for _ in range(2):
        noise = generator.normal(size=(HEIGHT, WIDTH, 3))
        layers.append(
            np.fft.irfft2(np.fft.rfft2(noise, axes=(0, 1)) / frequency[..., None] ** 1.1, (HEIGHT, WIDTH), (0, 1))
        )
    pixels = np.where(layers[0][..., :1] > 0, layers[0], layers[1])
    pixels = 128 + 50 * pixels / pixels.std() + generator.normal(0, 2, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def patchwork(paths: list[Path], generator: np.random.Generator) -> np.ndarray:
    """uint8 [h, w, 3]: two by two photographs, brought to size."""
    from crosspair.data.images import read_image

    tiles = [F.center_crop(read_image(paths[place]), [224, 224]) for place in generator.integers(0, len(paths), 4)]
    whole = torch.cat([torch.cat(tiles[:2], dim=2), torch.cat(tiles[2:], dim=2)], dim=1)[:, 56:392]
    return F.resize(whole, [HEIGHT, WIDTH], antialias=True).permute(1, 2, 0).numpy()


def make_images(folder: Path, count: int, images: Path | None) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    paths = sorted(path for path in images.iterdir() if path.suffix == ".jpg") if images else []
    for number in range(count):
        pixels = patchwork(paths, generator) if paths else drawn(generator)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=SOURCE_QUALITY)


def as_the_original(paths: list[Path], output: Path) -> int:
    """Every image decoded and encoded once per caption, its records written one after the other; the bytes."""
    from crosspair.data.images import encode_jpeg, read_image

    with output.open("wb") as file:
        for path in paths:
            for number in range(CAPTIONS):
                file.write(encode_jpeg(read_image(path), 95) + f"caption {number}".encode())
    return output.stat().st_size


def likeness_in_training(paths: list[Path], output: Path) -> dict[str, tuple[float, float]]:
    """What training sees of an image against what it would see of its source: decibels and SSIM, means of some 100.

    "resized": the same without compression, only brought to 256 before it is brought to 224.
    """
    from crosspair.data.dataset import open_data
    from crosspair.data.images import decode_image, read_image, resize_shorter_side

    split = open_data(output).split("train")
    likeness: dict[str, list[tuple[float, float]]] = {"stored": [], "resized": []}
    for row in range(0, len(split), max(1, len(split) // 100)):
        source = read_image(paths[row])
        exact = resize_shorter_side(source, TRAINING_SIZE)
        seen = {"stored": decode_image(split.image(row)), "resized": resize_shorter_side(source, 256)}
        for name, image in seen.items():
            small = resize_shorter_side(image, TRAINING_SIZE)[..., : exact.shape[-1]]
            exact_part = exact[..., : small.shape[-1]]  # the longer side is rounded twice
            likeness[name].append((decibels(exact_part, small), ssim(exact_part, small)))
    return {name: tuple(np.mean(values, axis=0)) for name, values in likeness.items()}  # type: ignore[misc]


def decibels(first: torch.Tensor, second: torch.Tensor) -> float:
    difference = (first.float() - second.float()).square().mean()
    return float(10 * torch.log10(255**2 / difference))


def ssim(first: torch.Tensor, second: torch.Tensor) -> float:
    """Structural similarity of the grey images (Wang et al. 2004): 11 x 11 windows of sigma 1.5; 1 is the same."""
    x, y = (F.rgb_to_grayscale(image).double() for image in (first, second))

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.gaussian_blur(values, [11, 11], [1.5, 1.5])

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variances + c2)).mean())


def processor_seconds() -> float:
    """Of this process and its ended children: a busy machine changes it less than the time on the clock."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_speed(count: int, images: Path | None) -> None:
    from crosspair.data.prepare import prepare
    from crosspair.data.records import Record

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "images").mkdir()
        make_images(work / "images", count, images)
        paths = [work / "images" / f"{number}.jpg" for number in range(count)]
        bytes_in = sum(path.stat().st_size for path in paths)
        captions = tuple(f"a caption, number {number}" for number in range(CAPTIONS))
        records = [Record(path.name, path, number, captions, "train") for number, path in enumerate(paths)]
        prepare(records[:20], work / "warm", source={}, progress=False)
        few = paths[: count // 10]
        original_bytes = 0

        def original() -> None:
            nonlocal original_bytes
            original_bytes = as_the_original(few, work / "original")

        before = timed(original)
        summaries = []
        processor = processor_seconds()
        seconds = timed(
            lambda: summaries.append(prepare(records, work / "data", source={}, processes=2, progress=False))
        )
        processor = (processor_seconds() - processor) / count
        after = timed(original)
        slow, fast = len(few) / ((before + after) / 2), count / seconds
        few_bytes = sum(path.stat().st_size for path in few)
        stored = sum(facts.bytes for facts in summaries[0].splits.values())
        likeness = likeness_in_training(paths, work / "data")
    print(f"{count:,} pictures of {WIDTH} x {HEIGHT}, {bytes_in / count / 1000:.0f} kB each, {CAPTIONS} captions each")
    print(f"{'':<40}{'images/s':>10}{'bytes out / in':>16}{'crosspair is':>14}")
    print(f"{'crosspair prepare, two processes':<40}{fast:>10.0f}{stored / bytes_in:>16.2f}")
    ratio = original_bytes / few_bytes
    print(f"{'once per caption, our codec, one process':<40}{slow:>10.0f}{ratio:>16.2f}{fast / slow:>8.1f} times")
    print(f"{'the original, measured apart':<40}{50:>10}{6.4:>16}{fast / 50:>8.1f} times")
    print(f"crosspair's processor time: {1000 * processor:.2f} ms a picture, {2 / processor:.0f} a second on two cores")
    for name, (psnr, similarity) in likeness.items():
        how = "as stored" if name == "stored" else "brought to 256, not compressed"
        print(f"at {TRAINING_SIZE} pixels, {how}, against the source: {psnr:.1f} dB, SSIM {similarity:.4f}")


def peak_megabytes() -> float:
    """Of this process, from the system's own account: the one of getrusage begins with that of the starting process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def rows(captions: int, scattered: bool) -> Iterator[str]:
    """Rows of a table: five captions an image, next to each other or each in another part of the file."""
    images = max(1, captions // CAPTIONS)
    for number in range(captions):
        image = number % images if scattered else number // CAPTIONS
        yield f"{image % 1000:03d}/{image:09d}.jpg,a brown dog number {number} runs over wet grass to its owner\n"


def read_table(folder: Path, captions: int, scattered: bool) -> None:
    """The reader alone, with drawn splits."""
    from crosspair.data.readers.table import read_table
    from crosspair.data.splitting import Shares, with_splits

    with (folder / "t.csv").open("w") as file:
        file.write("image,caption\n")
        file.writelines(rows(captions, scattered))
    records = with_splits(lambda: read_table(folder / "t.csv", folder), Shares(0.8, 0.1, 0.1), 0)
    assert sum(len(record.captions) for record in records) == captions


def store(folder: Path, captions: int, per_image: int) -> None:
    """All of preparing but the decoding: every image other bytes, a few of them, kept as they are."""
    from crosspair.data import prepare as module
    from crosspair.data.conversion import Converted
    from crosspair.data.records import Record
    from crosspair.data.scratch import short_checksum

    def unconverted(records: Iterator[Record], *_: object) -> Iterator[tuple[Record, Converted]]:
        for record in records:
            assert isinstance(record.image, bytes)
            yield record, Converted(record.image, 8, checksum=short_checksum(record.image))

    module.convert_images = unconverted  # type: ignore[assignment]
    words = tuple(f"a brown dog runs over the wet grass to its owner, number {number}" for number in range(per_image))
    records = (
        Record(f"{number:09d}.jpg", number.to_bytes(8), number, words, "train")
        for number in range(captions // per_image)
    )
    module.prepare(records, folder / "data", source={}, size=0, progress=False)


MEMORY: dict[str, Callable[[Path, int], None]] = {
    "table, rows of a picture together": lambda folder, captions: read_table(folder, captions, False),
    "table, rows in any order": lambda folder, captions: read_table(folder, captions, True),
    "store, five captions a picture": lambda folder, captions: store(folder, captions, CAPTIONS),
    "store, one caption a picture": lambda folder, captions: store(folder, captions, 1),
}


def measure_memory(captions: int) -> None:
    print(f"{'peak memory, MB':<36}{captions // 10:>14,}{captions:>14,}{'a further million':>20}{'seconds':>10}")
    for name in MEMORY:
        peaks = []
        for count in (captions // 10, captions):
            start = time.perf_counter()
            command = [sys.executable, __file__, "--memory-of", name, "--captions", str(count)]
            peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            seconds = time.perf_counter() - start
        growth = (peaks[1] - peaks[0]) / (0.9 * captions / 1e6)
        print(f"{name:<36}{peaks[0]:>14.0f}{peaks[1]:>14.0f}{growth:>20.1f}{seconds:>10.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs to make the pictures of")
    parser.add_argument("--count", type=int, default=2000, help="of the pictures (default 2000)")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--captions", type=int, default=10_000_000)
    parser.add_argument("--memory-of", choices=MEMORY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # what is measured uses processes
    if options.memory_of:
        with tempfile.TemporaryDirectory() as folder:
            MEMORY[options.memory_of](Path(folder), options.captions)
        print(peak_megabytes())
    elif options.memory:
        measure_memory(options.captions)
    else:
        measure_speed(options.count, options.images)


if __name__ == "__main__":
    main()
