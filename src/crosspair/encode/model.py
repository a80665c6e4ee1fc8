"""DualEncoder, the model as a user has it: it encodes images and sentences, and is loaded from and saved to files.

model = DualEncoder.from_pretrained("RUN/model")
scores = model.encode_text(["a dog runs"]) @ model.encode_image(["dog.jpg"]).T
"""

from collections.abc import Callable, Iterable, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from crosspair.data.images import load_image
from crosspair.data.tokens import SubwordTokenizer, Vocabulary, pad
from crosspair.data.transforms import ImageInput
from crosspair.devices import find_device
from crosspair.encode.backends import Backend, Precision, TorchBackend, load_backend, read_export
from crosspair.encode.locate import ModelFiles, locate
from crosspair.encode.pair_libraries import load_pair
from crosspair.encode.pairs import Tokens
from crosspair.encode.pretrained import check_state, create_image_encoder, create_text_encoder, reads_words
from crosspair.encode.pretrained_text import create_transformer
from crosspair.encode.reader import grouped, read_ahead
from crosspair.encode.storage import EXPORT, SavedModel, read_saved, save_model
from crosspair.errors import UserError
from crosspair.formats.word_vectors import read_word_vectors
from crosspair.models.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from crosspair.models.dual_encoder import TwoTowers
from crosspair.models.projection import merged_state
from crosspair.models.transformer_text import TransformerTextEncoder
from crosspair.progress import progress_bar
from crosspair.registry import BACKENDS

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


class DualEncoder(TwoTowers):
    """Images and sentences into one space of `config.projection.dim` dimensions.

    config: what the encoders are made of. vocabulary: turns captions into the numbers that the text encoder knows.
    image_input: what the image encoder expects to see; None takes it from the image encoder's own settings.
    text_encoder, image_encoder: made already; None makes those that the configuration names.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary | SubwordTokenizer | Tokens,
        image_input: ImageInput | None = None,
        text_encoder: nn.Module | None = None,
        image_encoder: nn.Module | None = None,
    ) -> None:
        if image_encoder is None:
            image_encoder, expected = _create_image_encoder(config.image)
            image_input = image_input or expected
        text_encoder = text_encoder or create_text_encoder(config.text, len(vocabulary))
        super().__init__(config, image_encoder, text_encoder, image_input or ImageInput())
        self.vocabulary = vocabulary
        self.backend: Backend | None = None  # what encodes in PyTorch's place, if another backend does
        self.card = ""  # of the directory that it was read from
        self.files: ModelFiles | None = None  # of a ready-made pair of another library

    @property
    def images_at_once(self) -> int:
        """The number of images that the model's backend encodes fastest together."""
        return self.backend.images_at_once if self.backend else super().images_at_once

    def tokenize(self, caption: str | Sequence[str]) -> list[int]:
        """Token numbers of a caption, or of its words, as the text encoder reads them."""
        text = self.config.text
        return self.vocabulary.encode(caption, text.max_words, text.special_tokens, text.tokenizer)

    def encode_text(
        self, captions: Iterable[str | Sequence[str]], batch_size: int = 256, *, progress: bool = False
    ) -> Tensor:
        """Sentences -> float32 [n, dim] of unit length, on the CPU.

        captions: of any number, read batch by batch. Raises TypeError for what is no list of str.
        """
        _check_items(captions, "captions", batch_size)
        backend = self.backend or TorchBackend(self)

        def encode(batch: list[str | Sequence[str]]) -> Tensor:
            for caption in batch:
                words = caption if isinstance(caption, list | tuple) else [caption]
                if not all(isinstance(word, str) for word in words):
                    raise TypeError(f"expected captions as str, found {type(caption).__name__}")
            return backend.encode_tokens(*pad([self.tokenize(caption) for caption in batch]))

        return self._encode(captions, captions, batch_size, encode, "captions", progress)

    def encode_image(
        self,
        images: "Iterable[str | Path | bytes | Image | np.ndarray | Tensor]",
        batch_size: int | None = None,
        *,
        progress: bool = False,
    ) -> Tensor:
        """Images -> float32 [n, dim] of unit length, on the CPU.

        images: paths, encoded bytes, PIL images, arrays uint8 [h, w, 3] or tensors uint8 [3, h, w]; of any number, a
            few of them read ahead of those that are encoded. batch_size: None takes what is fast (`images_at_once`).
        Raises UserError naming an image that can't be read.
        """
        size = self.images_at_once if batch_size is None else batch_size
        _check_items(images, "images", size)
        backend = self.backend or TorchBackend(self)
        pixels = read_ahead(lambda image: self.image_input.resize(load_image(image)), images)
        return self._encode(
            pixels, images, size, lambda batch: backend.encode_images(torch.stack(batch)), "images", progress
        )

    def _encode(
        self,
        items: Iterable[T],
        given: Iterable[Any],
        batch_size: int,
        encode: Callable[[list[T]], Tensor],
        unit: str,
        progress: bool,
    ) -> Tensor:
        total = len(given) if isinstance(given, Sized) else None
        was_training = self.training
        self.eval()
        try:
            # Not inference_mode: its tensors could not be trained on.
            with torch.no_grad(), progress_bar(total=total, unit=f" {unit}", disable=not progress, leave=False) as bar:
                rows = [torch.empty(0, self.config.projection.dim)]
                for batch in grouped(items, batch_size):
                    rows.append(encode(batch))
                    bar.update(len(batch))
                return torch.cat(rows)
        finally:
            self.train(was_training)

    def use_backend(self, backend: str, precision: Precision = "f32") -> None:
        """Encode by another backend from now on. Raises UserError where it isn't installed or can't run an encoder."""
        self.backend = load_backend(self, backend, precision)

    def saved(self, *, card: str = "") -> SavedModel:
        """The model as `save_pretrained` writes it, adapters added to the weights.

        Raises UserError for a ready-made pair of another library.
        """
        if self.files is not None or not isinstance(self.vocabulary, Vocabulary | SubwordTokenizer):
            name = self.files.name if self.files else self.config.image.name
            raise UserError(
                f"{name} is a ready-made pair, which crosspair reads but doesn't write; save it with its own library, "
                "or train one of crosspair's from a recipe that starts from such weights (`crosspair recipes`)"
            )
        architecture = getattr(self.text_encoder, "architecture", None)
        state = merged_state(self)
        return SavedModel(self.config, self.vocabulary, self.image_input, architecture, state, card or self.card)

    def save_pretrained(self, directory: str | Path, *, card: str = "") -> None:
        """Write config.json, model.safetensors, the vocabulary and README.md; all of it or nothing.

        card: the README's text; without one the model keeps the card that it was read with, if any.
        """
        save_model(self.saved(card=card), Path(directory))

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        backend: str = "torch",
        precision: Precision = "f32",
        device: str = "auto",
    ) -> "DualEncoder":
        """Read a directory written by `save_pretrained`, a ready-made pair of another library, or either from the hub.

        directory: a path; or owner/model on the Hugging Face hub; either of crosspair, of `transformers` (CLIP, SigLIP,
        Chinese-CLIP, ALIGN, MetaCLIP 2), of `sentence-transformers` (CLIP) or of `open_clip`. Also
        open_clip:ARCHITECTURE/TAG, open_clip:local-dir:DIRECTORY, open_clip:hf-hub:OWNER/MODEL, and IMAGES+TEXTS, two
        models of sentence-transformers that share a space. A pair encodes as its own library has it encode.
        backend: a registered one that `encode_image` and `encode_text` compute with. openvino is the fastest on a CPU;
        it and onnxruntime also take what `crosspair export` wrote, a model that encodes and can't be trained.
        precision: of openvino's arithmetic, f32 or bf16.
        device: auto, cpu, cuda, cuda:1 or mps, of PyTorch; the other backends use the CPU.
        Raises UserError when it is no model, when its weights are not exactly those its configuration asks for, and for
        a backend, a precision or a device that can't be had.
        """
        found = find_device("cpu" if device == "auto" and BACKENDS.get(backend).cpu_only else device)
        files = locate(str(directory))
        if files.is_pair:
            return cls._of_pair(files, backend, precision, found)
        export = backend != "torch" and (files.directory / EXPORT).is_file()
        graphs = read_export(files.directory, backend, precision) if export else None
        saved = read_saved(files.directory, weights=not export)
        with torch.device("meta" if export else "cpu"):  # an export's settings have no weights
            model = cls(saved.config, saved.vocabulary, saved.image_input, _text_encoder(saved))
        model.card = saved.card
        if graphs is not None:
            model.backend = graphs
            return model.eval()
        check_state(model, saved.state, str(directory))
        model.load_state_dict(saved.state)
        model.to(found).eval()
        if backend != "torch" or precision != "f32":
            model.use_backend(backend, precision)
        return model

    @classmethod
    def _of_pair(cls, files: ModelFiles, backend: str, precision: Precision, device: torch.device) -> "DualEncoder":
        pair = load_pair(files)
        model = cls(pair.config(files.name), pair.tokens, pair.image_input, pair.text_encoder, pair.image_encoder)
        model.files = files
        model.to(device).eval()
        if backend != "torch" or precision != "f32":
            model.use_backend(backend, precision)
        return model

    def push_to_hub(self, name: str) -> str:
        """Upload to the Hugging Face hub as `name` (user/model) and return the address."""
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        api = HfApi()
        address = api.create_repo(name, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "model")
            api.upload_folder(repo_id=name, folder_path=Path(folder) / "model")
        return str(address)


def create_model(
    config: ModelConfig, captions: Iterable[str], tell: Callable[[str], object] | None = None
) -> DualEncoder:
    """A model to train: its encoders with their starting weights, its vocabulary that of the training captions.

    A text encoder from `transformers` brings its own vocabulary. tell: is told the share of words with a vector of
    their own, where the word embedding starts from a file; with it reading shows a bar. Raises UserError for weights
    and vectors that can't be had.
    """
    if reads_words(config.text):
        vocabulary = Vocabulary.from_captions(
            captions, config.text.min_count, config.text.special_tokens, config.text.tokenizer
        )
        model = DualEncoder(config, vocabulary)
        if config.text.word_vectors is not None:
            _start_word_embedding(model.text_encoder, vocabulary, config.text, tell)
        return model
    if config.text.word_vectors is not None:
        raise UserError(
            f"model.text.word_vectors is {config.text.word_vectors}, and {config.text.name} has an embedding of its "
            "own; set model.text.word_vectors to null"
        )
    text_encoder, tokenizer = create_transformer(config.text)
    return DualEncoder(config, tokenizer, text_encoder=text_encoder)


def _create_image_encoder(config: ImageEncoderConfig) -> tuple[nn.Module, ImageInput]:
    size = (config.size[0], config.size[1]) if config.size else None
    encoder, expected = create_image_encoder(
        config.name, config.weights, size, keep_head=config.keep_head, pooled_stages=config.pooled_stages
    )
    expected.resample = config.resample
    return encoder, expected


@torch.no_grad()
def _start_word_embedding(
    encoder: nn.Module, vocabulary: Vocabulary, config: TextEncoderConfig, tell: Callable[[str], object] | None
) -> None:
    """Put the vectors that a file has of the vocabulary's words into the encoder's table of them."""
    table = getattr(encoder, "embedding", None)
    if not isinstance(table, nn.Embedding):
        raise UserError(
            f"model.text.word_vectors is {config.word_vectors}, and {config.name} has no word embedding (embedding, an "
            "nn.Embedding); set model.text.word_vectors to null"
        )
    path = Path(str(config.word_vectors))
    found = read_word_vectors(path, vocabulary.words, dim=table.embedding_dim, progress=tell is not None)
    if vocabulary.words and not found:
        raise UserError(f"{path} has none of the {len(vocabulary.words):,} words; expected vectors of lower-case words")
    for word, vector in found.items():
        table.weight[vocabulary.encode([word])[0]] = torch.from_numpy(vector).to(table.weight)
    if tell is not None:
        share = 100 * len(found) / max(1, len(vocabulary.words))
        tell(f"word vectors: {len(found):,} of {len(vocabulary.words):,} words ({share:.1f} %) are in {path}")


def _text_encoder(saved: SavedModel) -> nn.Module | None:
    """The text encoder of `transformers` without its weights; None for those that the configuration makes."""
    if saved.text_architecture is None:
        return None
    return TransformerTextEncoder(saved.text_architecture, saved.config.text.pooling)


def _check_items(items: Any, unit: str, batch_size: int) -> None:
    one_image = isinstance(items, np.ndarray | Tensor) and items.ndim in (2, 3)
    if isinstance(items, str | bytes | Path) or one_image or not isinstance(items, Iterable):
        raise TypeError(f"expected a list of {unit}, found one {type(items).__name__}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
