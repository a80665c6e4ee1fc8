"""The matcher: an image encoder and a text encoder, each followed by a projection into one space.

model = DualEncoder.from_pretrained("RUN/model")
scores = model.encode_text(["a dog runs"]) @ model.encode_image(["dog.jpg"]).T
"""

from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosspair.data.tokens import SubwordTokenizer, Vocabulary, pad
from crosspair.errors import UserError
from crosspair.models.adapters import adapter_or_all
from crosspair.models.config import ModelConfig
from crosspair.models.image import create_image_encoder
from crosspair.models.projection import create_projection
from crosspair.models.text import BiLSTMEncoder
from crosspair.progress import progress_bar

if TYPE_CHECKING:
    from PIL.Image import Image

    from crosspair.data.transforms import ImageInput
    from crosspair.encode.openvino_conversion import Encoders, Precision
    from crosspair.models.transformer_text import TransformerTextEncoder

T = TypeVar("T")

PIXELS_A_THREAD = 125_000  # of the pictures that a CPU encodes together: 4 of 224 x 224 with two threads


class DualEncoder(nn.Module):
    """Pictures and sentences into one space of `config.projection.dim` dimensions.

    config: what the encoders are made of. vocabulary: turns captions into the numbers that the text encoder knows.
    image_input: what the image encoder expects to see; None takes it from the image encoder's own settings.
    text_encoder: made already; None makes the BiLSTM of the configuration.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary | SubwordTokenizer,
        image_input: "ImageInput | None" = None,
        text_encoder: "TransformerTextEncoder | None" = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        size = (config.image.size[0], config.image.size[1]) if config.image.size else None
        self.image_encoder, expected = create_image_encoder(
            config.image.name,
            config.image.weights,
            size,
            keep_head=config.image.keep_head,
            pooled_stages=config.image.pooled_stages,
        )
        # Colours beside each other rather than in planes: faster on a CPU (benchmarks/machine.py).
        self.use_channels_last(True)
        expected.resample = config.image.resample
        self.image_input = image_input or expected
        self.feature_dropout = nn.Dropout(config.image.feature_dropout)
        text = config.text
        self.text_encoder: BiLSTMEncoder | TransformerTextEncoder = text_encoder or BiLSTMEncoder(
            len(vocabulary), text.word_dim, text.hidden_dim, dropout=text.dropout, pool_padding=text.pool_padding
        )
        self.num_image_features: int = self.image_encoder.num_features  # type: ignore[assignment]
        self.image_projection = create_projection(self.num_image_features, config.projection, "image")
        self.text_projection = create_projection(self.text_encoder.num_features, config.projection, "text")
        self.compiled: Encoders | None = None  # what encodes in PyTorch's place, if another runtime does
        self.card = ""  # of the directory that it was read from
        self._image_encoder_mode: bool | None = None
        self._text_encoder_frozen = False

    def use_channels_last(self, on: bool) -> None:
        """Lay the image encoder's weights and pictures out so, or with each colour in a plane of its own."""
        self._memory_format = torch.channels_last if on else torch.contiguous_format
        self.image_encoder.to(memory_format=self._memory_format)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def images_at_once(self) -> int:
        """How many pictures are encoded fastest together: 64, on a CPU in PyTorch so few that their maps stay small.

        Maps fall out of its caches otherwise, and from 32 MB on the C library gives them back to the system, which
        clears their pages each time (benchmarks/memory.py).
        """
        if self.compiled or self.device.type != "cpu":
            return 64
        pixels = torch.get_num_threads() * PIXELS_A_THREAD
        return max(1, min(64, pixels // (self.image_input.height * self.image_input.width)))

    def freeze_image_encoder(self, *, freeze_bn_stats: bool = True) -> None:
        """Keep the image encoder's weights, its evaluation mode and its batch-norm statistics.

        freeze_bn_stats: False leaves it in training mode, where batch norm uses and follows each batch (the original).
        """
        self.image_encoder.requires_grad_(False)
        self._image_encoder_mode = False if freeze_bn_stats else None
        self.train(self.training)

    def unfreeze_image_encoder(self, *, freeze_bn_stats: bool = False) -> None:
        """Train the image encoder (its adapters, where it has any).

        freeze_bn_stats: it keeps evaluation mode and its batch-norm statistics.
        """
        for value in adapter_or_all(self.image_encoder):
            value.requires_grad_(True)
        self._image_encoder_mode = False if freeze_bn_stats else None
        self.train(self.training)

    def freeze_text_encoder(self, frozen: bool = True) -> None:
        """Keep the text encoder's weights and its evaluation mode, or (frozen=False) train it (its adapters) again."""
        for value in adapter_or_all(self.text_encoder):
            value.requires_grad_(not frozen)
        if isinstance(self.text_encoder, BiLSTMEncoder):
            self.text_encoder.fix_second_biases()
        self._text_encoder_frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> "DualEncoder":
        super().train(mode)
        if self._text_encoder_frozen:
            self.text_encoder.eval()
        if self._image_encoder_mode is not None:
            self.image_encoder.train(self._image_encoder_mode)
        return self

    def image_features(self, images: Tensor) -> Tensor:
        """Resized pictures [b, 3, height, width], values 0..255 -> the image encoder's features [b, num_features]."""
        pixels = self.image_input.normalize(images, next(self.parameters()).dtype)
        features: Tensor = self.image_encoder(pixels.contiguous(memory_format=self._memory_format))
        return features

    def embed_image_features(self, features: Tensor) -> Tensor:
        """Features [b, num_features] -> embeddings [b, dim], not normalised."""
        return self.image_projection(self.feature_dropout(features))  # type: ignore[no-any-return]

    def embed_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens int64 [m, t], lengths int64 [m] -> embeddings [m, dim], not normalised."""
        return self.embed_text_features(self.text_encoder(tokens, lengths))

    def embed_text_features(self, features: Tensor) -> Tensor:
        """The text encoder's features [m, num_features] -> embeddings [m, dim], not normalised."""
        return self.text_projection(features)  # type: ignore[no-any-return]

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor,
        *,
        images: Tensor | None = None,
        features: Tensor | None = None,
        text_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image embeddings [b, dim] and text embeddings [m, dim], not normalised.

        Give either resized `images` [b, 3, height, width] or, for a frozen image encoder, their `features`; for a
        frozen text encoder `text_features` [m, num_features] stand in for the tokens.
        """
        if (images is None) == (features is None):
            raise ValueError("give either pictures or their features")
        if features is None:
            assert images is not None
            features = self.image_features(images)
        if text_features is None:
            return self.embed_image_features(features), self.embed_tokens(tokens, lengths)
        return self.embed_image_features(features), self.embed_text_features(text_features)

    def tokenize(self, caption: str) -> list[int]:
        """Word numbers as the text encoder reads them."""
        return self.vocabulary.encode(caption, self.config.text.max_words, self.config.text.special_tokens)

    def encode_text(self, captions: Iterable[str], batch_size: int = 256, *, progress: bool = False) -> Tensor:
        """Sentences -> float32 [n, dim] of unit length, on the CPU."""

        def embed(batch: list[str]) -> Tensor:
            for caption in batch:
                if not isinstance(caption, str):
                    raise TypeError(f"expected captions as str, found {type(caption).__name__}")
            tokens, lengths = pad([self.tokenize(caption) for caption in batch])
            if self.compiled:
                return self.compiled.embed_tokens(tokens, lengths)
            return self.embed_tokens(tokens.to(self.device), lengths)

        return self._encode(captions, batch_size, embed, "captions", progress)

    def encode_image(
        self,
        images: "Iterable[str | Path | bytes | Image | np.ndarray | Tensor]",
        batch_size: int | None = None,
        *,
        progress: bool = False,
    ) -> Tensor:
        """Pictures -> float32 [n, dim] of unit length, on the CPU.

        images: paths, encoded bytes, PIL pictures, arrays uint8 [h, w, 3] or tensors uint8 [3, h, w]; of any number,
            read batch by batch. batch_size: None takes what is fast (`images_at_once`).
        Raises UserError naming a picture that can't be read.
        """
        from crosspair.data.images import load_image

        with ThreadPoolExecutor() as threads:

            def embed(batch: list[Any]) -> Tensor:
                resized = threads.map(lambda image: self.image_input.resize(load_image(image)), batch)
                pixels = torch.stack(list(resized))
                if self.compiled:
                    return self.compiled.embed_images(pixels)
                return self.embed_image_features(self.image_features(pixels.to(self.device)))

            size = self.images_at_once if batch_size is None else batch_size
            return self._encode(images, size, embed, "images", progress)

    def _encode(self, items: Iterable[T], batch_size: int, embed: Any, unit: str, progress: bool) -> Tensor:
        one_image = isinstance(items, np.ndarray | Tensor) and items.ndim in (2, 3)
        if isinstance(items, str | bytes | Path) or one_image or not isinstance(items, Iterable):
            raise TypeError(f"expected a list of {unit}, found one {type(items).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        total = len(items) if isinstance(items, Sized) else None
        was_training = self.training
        self.eval()
        try:
            # Not inference_mode: its tensors could not be trained on.
            with torch.no_grad(), progress_bar(total=total, unit=f" {unit}", disable=not progress, leave=False) as bar:
                rows = [torch.empty(0, self.config.projection.dim)]
                for batch in _batches(items, batch_size):
                    rows.append(F.normalize(embed(batch).float(), dim=1).cpu())
                    bar.update(len(batch))
                return torch.cat(rows)
        finally:
            self.train(was_training)

    def save_pretrained(self, directory: str | Path, *, card: str = "") -> None:
        """Write config.json, model.safetensors, the vocabulary and README.md; all of it or nothing.

        card: the README's text; without one the model keeps the card that it was read with, if any.
        """
        from crosspair.encode.storage import save_model

        save_model(self, Path(directory), card)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        backend: Literal["torch", "openvino"] = "torch",
        precision: "Precision" = "f32",
    ) -> "DualEncoder":
        """Read a directory written by `save_pretrained`, or a model of that name on the Hugging Face hub.

        backend: what `encode_image` and `encode_text` compute with; openvino is the fastest on a CPU, and also takes
        what `crosspair export` wrote, a model that encodes and can't be trained. precision: of openvino's arithmetic.
        Raises UserError when it is neither, or when its weights are not exactly those its configuration asks for.
        """
        from crosspair.encode.storage import read_card, read_model

        if backend == "openvino":
            from crosspair.encode.openvino_encoders import load_compiled

            return load_compiled(str(directory), precision)
        if backend != "torch" or precision != "f32":
            raise UserError(
                f"found runtime '{backend}' and precision '{precision}'; expected torch with f32, or openvino with f32 "
                "or bf16"
            )
        saved = read_model(str(directory))
        model = cls(saved.config, saved.vocabulary, saved.image_input, saved.text_encoder())
        saved.fill(model)
        model.card = read_card(saved.path)
        return model.eval()

    def push_to_hub(self, name: str) -> str:
        """Upload to the Hugging Face hub as `name` (user/model) and return the address."""
        from crosspair.encode.storage import push_model

        return push_model(self, name)


def create_model(config: ModelConfig, captions: Iterable[str]) -> DualEncoder:
    """A model to train: its encoders with their starting weights, its vocabulary that of the training captions.

    A text encoder from `transformers` brings its own vocabulary. Raises UserError for weights that can't be had.
    """
    if config.text.name == "bilstm":
        return DualEncoder(
            config, Vocabulary.from_captions(captions, config.text.min_count, config.text.special_tokens)
        )
    from crosspair.models.transformer_text import create_transformer

    text_encoder, tokenizer = create_transformer(config.text)
    return DualEncoder(config, tokenizer, text_encoder=text_encoder)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
