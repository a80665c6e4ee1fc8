"""Ready-made pairs: image and text encoders that other libraries trained together, as modules of a `DualEncoder`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from crosspair.data.transforms import ImageInput
from crosspair.errors import UserError
from crosspair.models.config import ImageEncoderConfig, ModelConfig, ProjectionConfig, TextEncoderConfig


class Tokens(Protocol):
    """What turns a text into the numbers that a text encoder knows. longest: most of them."""

    longest: int

    def __len__(self) -> int: ...

    def encode(self, caption: str | Sequence[str], *others: Any) -> list[int]:
        """Numbers of a text's tokens. others: settings of a vocabulary of words, which a pair has not."""
        ...


@dataclass(frozen=True)
class ReadyPair:
    """Both sides of a pair, each with its projection into the joint space and its `num_features`, and their inputs."""

    image_encoder: nn.Module
    text_encoder: nn.Module
    image_input: ImageInput
    tokens: Tokens

    def checked(self, name: str) -> "ReadyPair":
        """The same. Raises UserError where the two sides have other dimensions."""
        images, texts = self.image_encoder.num_features, self.text_encoder.num_features
        if images != texts:
            raise UserError(f"{name} gives pictures {images} and texts {texts} dimensions; expected one space for both")
        return self

    def config(self, name: str) -> ModelConfig:
        """The configuration of a `DualEncoder` that adds nothing to the pair."""
        size = [self.image_input.height, self.image_input.width]
        dimension: int = self.image_encoder.num_features  # type: ignore[assignment]
        return ModelConfig(
            ImageEncoderConfig(name, weights="none", size=size, keep_head=True),
            TextEncoderConfig(name, weights="none", pooling="model", max_words=self.tokens.longest),
            ProjectionConfig(dimension, layers=0),
        )


@contextmanager
def errors_named(what: str) -> Iterator[None]:
    """Turn what the library raises for files it can't use into one sentence."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the library and those below it raise many kinds for files that are damaged
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{what} ({reason}); copy the model again, or name another") from error
