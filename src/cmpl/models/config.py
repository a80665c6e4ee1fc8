"""What a dual encoder is made of. The same dataclasses stand in recipes and in a saved model's config.json."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ImageEncoderConfig:
    """The image encoder, its starting weights and the size of its input."""

    name: str = "tf_efficientnet_lite0"
    """A timm model, or slim_mobilenet_v1, slim_resnet_v1_50, slim_resnet_v1_101, slim_resnet_v1_152."""
    weights: str = "hub"
    """hub (timm's pretrained weights), package, none, or the path of a .safetensors file; slim encoders also take
    TF-slim's ImageNet checkpoint (resnet_v1_152.ckpt, mobilenet_v1_1.0_224.ckpt), a V1 file or a V2 prefix."""
    size: list[int] | None = None
    """Height and width of the input in pixels; null takes the model's own."""
    resample: Literal["antialias", "tensorflow1"] = "antialias"
    """How pictures are resized; tensorflow1 is the original's bilinear grid."""
    feature_dropout: float = 0.0
    """Share of pooled features dropped in training; the original's MobileNet drops 0.001."""


@dataclass
class TextEncoderConfig:
    """The published text encoder: word embedding, bidirectional LSTM, maximum over time."""

    word_dim: int = 512
    hidden_dim: int = 512
    """Units of the LSTM in each direction."""
    dropout: float = 0.3
    """On word embeddings and on the LSTM's outputs, in training."""
    max_words: int = 100
    """Captions are cut after this many words."""
    min_count: int = 3
    """Words seen less often in the training captions count as unknown."""
    pool_padding: bool = False
    """Let padding take part in the maximum, as the original does."""
    markers: Literal["none", "start", "both"] = "none"
    """Put <start> before a caption (what the original reads), or <start> before and <end> behind it."""


@dataclass
class ProjectionConfig:
    """Linear and batch norm from an encoder's features to the joint space."""

    dim: int = 512
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    """Weight of the newest batch in the running statistics; TensorFlow's decay is 1 - momentum."""


@dataclass
class ModelConfig:
    """Image encoder, text encoder and the projections that bring both into one space."""

    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
