"""crosspair export: write a model as files for other backends, checked against PyTorch, or a split's embeddings."""

from argparse import Namespace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np

from crosspair.data.images import ImageError, decode_image
from crosspair.devices import find_device
from crosspair.encode.export import LEAST_COSINE, Agreements, Format, Sample, export_model, unfit_precisions
from crosspair.encode.storage import read_model
from crosspair.errors import UserError
from crosspair.storage.directories import kind_of
from crosspair.training.run import model_directory

IMAGES = 64  # the check's
CAPTIONS = 320
_WORDS = [
    "a",
    "man",
    "and",
    "two",
    "dogs",
    "run",
    "along",
    "the",
    "beach",
    "while",
    "children",
    "in",
    "red",
    "coats",
    "play",
]


def run(options: Namespace) -> None:
    """Export a model and print how near it is to PyTorch; or the embeddings of a split and print their number."""
    if (options.format is None) == (options.embeddings is None):
        raise UserError("expected either --format (onnx, openvino, huggingface) or --embeddings DATA")
    if options.embeddings is not None:
        if options.check is not None:
            raise UserError("--check goes with --format; leave it out with --embeddings")
        text = export_embeddings(options.model, options.embeddings, options.split, options.output, options.device)
        print(text)
        return
    if options.split is not None:
        raise UserError("--split goes with --embeddings; leave it out with --format")
    print(export_command(options.model, options.format, options.output, options.check, options.device))


def export_command(name: str, kind: str, output: Path, check: Path | None, device: str = "auto") -> str:
    """Export a model and say how near it is to PyTorch.

    check: a folder of images or DATA; None takes the data a RUN was trained with, where it still is, or else draws
    images. device: that PyTorch encodes on for the comparison.
    """
    find_device(device)
    directory = model_directory(name)
    source = check or _data_of(Path(name))
    sample = _sample(source, directory) if source else _drawn(directory)
    agreements = export_model(directory, cast(Format, kind), output, sample, device=device)
    return f"{_describe(agreements)}\nchecked on {sample.source}\n{kind}: {output}"


def export_embeddings(name: str, data: Path, split_name: str | None, output: Path, device: str = "auto") -> str:
    """Write the embeddings of a split of DATA (by default test), and say what there is.

    The arrays are those that `crosspair evaluate --embeddings` reads. Raises UserError where one of them is not there.
    """
    from crosspair.data.dataset import open_data
    from crosspair.encode.embedding_files import kind_of_output, write_arrays
    from crosspair.encode.model import DualEncoder
    from crosspair.training.measure import embed

    find_device(device)
    kind_of_output(output)  # before anything is encoded
    split = open_data(data).split(split_name or "test")
    found = embed(DualEncoder.from_pretrained(model_directory(name), device=device), split)
    arrays = {
        "image_embeddings": found.images,
        "text_embeddings": found.texts,
        "image_labels": found.image_labels,
        "text_labels": found.text_labels,
        "text_images": found.text_images,
        "image_ids": found.image_ids,
        "caption_ids": found.caption_ids,
    }
    write_arrays(output, {array: values for array, values in arrays.items() if values is not None})
    return (
        f"{split_name or 'test'}: {len(found.images):,} pictures, {len(found.texts):,} captions, "
        f"{found.images.shape[1]:,} dimensions\nembeddings: {output}"
    )


def _describe(agreements: Agreements) -> str:
    lines = [
        f"{precision} {what}: {found}"
        for precision, of_precision in agreements.items()
        for what, found in of_precision.items()
    ]
    for precision in unfit_precisions(agreements):
        bound = LEAST_COSINE[precision]  # type: ignore[index]
        lines.append(f"{precision} is below {bound} on average and will not be used")
    return "\n".join(lines)


def _data_of(run: Path) -> Path | None:
    """The DATA directory that a RUN names, if it is there."""
    from crosspair.training.log import read_metrics

    history = read_metrics(run) if run.is_dir() else []
    data = Path(str(history[0].get("data"))) if history else None
    return data if data is not None and kind_of(data) == "DATA" else None


def _sample(source: Path, directory: str) -> Sample:
    """Images evenly spaced over a folder or over DATA's held-out split, with captions where there are any."""
    from crosspair.data.dataset import open_data
    from crosspair.gallery.sources import NoImageError, open_source

    splits = None
    if kind_of(source) == "DATA":
        names = open_data(source).split_names
        splits = [next((name for name in ("val", "test") if name in names), names[0])]
    entries = open_source(source, splits).entries
    rows = np.linspace(0, len(entries) - 1, min(2 * IMAGES, len(entries))).astype(int)
    images: list[bytes] = []
    captions: list[str] = []
    for row in [*rows[::2].tolist(), *rows[1::2].tolist()]:  # the second half where some of the first can't be read
        try:
            data = entries[row].read()
            decode_image(data)
        except (NoImageError, ImageError):
            continue
        images.append(data)
        captions += entries[row].captions or []
        if len(images) == IMAGES:
            break
    if not images:
        raise UserError(f"{source} holds no picture to check the export on; name a folder that does, or leave it out")
    where = f"{len(images)} pictures of {source}{f', split {splits[0]}' if splits else ''}"
    return Sample(images, captions[:CAPTIONS] or _sentences(directory), where)


def _drawn(directory: str) -> Sample:
    """Coloured boxes over gradients: what there is without an image at hand."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(IMAGES):
        ramps = np.linspace(0, 1, 240)[:, None, None] * random.random(3) + np.linspace(0, 1, 320)[
            :, None
        ] * random.random(3)
        image = 127 * ramps
        for _ in range(6):
            top, left, height, width = random.integers(0, 200, 4)
            image[top : top + height, left : left + width] = random.integers(0, 256, 3)
        images.append((image + random.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8))
    return Sample(images, _sentences(directory), f"{IMAGES} drawn pictures (--check names real ones)")


def _sentences(directory: str) -> list[str]:
    """Sentences of 1 to 40 words that the model knows."""
    random = np.random.default_rng(0)
    words = list(islice(getattr(read_model(directory, weights=False).vocabulary, "words", _WORDS), 2, 500)) or _WORDS
    return [" ".join(random.choice(words, 1 + row % 40)) for row in range(IMAGES)]
