"""Configuration of a dual encoder: dataclasses that stand in recipes and in a saved model's config.json."""

from dataclasses import dataclass, field
from typing import Literal

from crosspair.settings import Range

# What recipes and config.json may say.
_PIXELS = {"range": Range(at_least=1, at_most=16_384)}
_SIZE = {"range": Range(at_least=1, at_most=65_536)}
_SHARE = {"range": Range(at_least=0, below=1)}


@dataclass
class ImageEncoderConfig:
    """The image encoder, its starting weights and the size of its input."""

    name: str = "tf_efficientnet_lite0"
    """A timm model, or slim_mobilenet_v1, slim_resnet_v1_50, slim_resnet_v1_101, slim_resnet_v1_152; several with +
    between them give their features side by side."""
    weights: str = "hub"
    """hub (timm's pretrained weights), package (tf_efficientnet_lite0, _lite1 and _lite2), none, or the path of a
    .safetensors file; slim encoders also take TF-slim's ImageNet checkpoint (resnet_v1_152.ckpt,
    mobilenet_v1_1.0_224.ckpt), a V1 file or a V2 prefix."""
    size: list[int] | None = field(default=None, metadata=_PIXELS)
    """Height and width of the input in pixels; null takes the model's own."""
    resample: Literal["antialias", "tensorflow1"] = "antialias"
    """How images are resized; tensorflow1 is the original's bilinear grid."""
    keep_head: bool = False
    """Keep the pretrained model's last layer: CLIP's and SigLIP's projection into their joint space."""
    pooled_stages: int = 0
    """So many of a timm model's last stages add the means of their maps to its features; 0 takes the features alone."""
    feature_dropout: float = field(default=0.0, metadata=_SHARE)
    """Share of pooled features dropped in training; the original's MobileNet drops 0.001."""


@dataclass
class TextEncoderConfig:
    """The text encoder: the published BiLSTM, or a transformer by name."""

    name: str = "bilstm"
    """bilstm (word embedding, bidirectional LSTM, maximum over time), or a model of the transformers library, by its
    hub name or directory."""
    weights: str = "hub"
    """Of a transformer: hub, package (sentence-transformers/all-MiniLM-L6-v2), none, or a directory with its files."""
    pooling: Literal["mean", "cls", "eos", "model"] = "mean"
    """Of a transformer's states; model: as the model itself does (CLIP and SigLIP, into their joint space)."""
    word_dim: int = field(default=512, metadata=_SIZE)
    """Of the BiLSTM's word embedding."""
    word_vectors: str | None = None
    """A file that the BiLSTM's word embedding starts from: GloVe's text, or word2vec's with its header line, with
    word_dim numbers a word. Words that it lacks start at random, as all do without it."""
    hidden_dim: int = field(default=512, metadata=_SIZE)
    """Units of the LSTM in each direction."""
    dropout: float = field(default=0.3, metadata=_SHARE)
    """On word embeddings and on the LSTM's outputs, in training; a transformer keeps its own."""
    max_words: int = field(default=100, metadata={"range": Range(at_least=1)})
    """Captions are cut after this many words (a transformer's: tokens)."""
    min_count: int = 3
    """Words seen less often in the training captions count as unknown to the BiLSTM."""
    pool_padding: bool = False
    """Let padding take part in the BiLSTM's maximum, as the original does."""
    tokenizer: Literal["words", "original", "stored"] = "words"
    """What the BiLSTM's words are. words: "man's t-shirt" is man 's t shirt; original: mans tshirt, as the original's
    converter for CUHK-PEDES has it; stored: the words that came with the annotations (DATA's tokens), as its converters
    for Flickr30k and COCO have it, and those of `words` for new sentences."""
    initializer: Literal["xavier", "original"] = "xavier"
    """Of the BiLSTM's word embedding and initial states; original: Xavier's bounds for the original's tables, an
    embedding of 12,000 rows and each direction's state by itself."""
    special_tokens: Literal["none", "start", "both"] = "none"
    """Put <start> before a caption (what the original reads), or <start> before and <end> behind it; BiLSTM only."""


@dataclass
class ProjectionConfig:
    """The projection of an encoder's features into the joint space."""

    dim: int = field(default=512, metadata=_SIZE)
    layers: Literal[0, 1, 2] = 1
    """1: linear and batch norm, as published; 2: a hidden layer before them; 0: features are embeddings (CLIP's)."""
    heads: int = field(default=1, metadata=_SIZE)
    """Projections side by side with dim / heads dimensions each, which losses see one by one: an ensemble."""
    hidden_dim: int = field(default=1024, metadata=_SIZE)
    """Width of the hidden layer."""
    dropout: float = field(default=0.0, metadata=_SHARE)
    """On the hidden layer, in training."""
    initializer: Literal["xavier", "slim_mobilenet_v1", "slim_resnet_v1"] = "xavier"
    """Of the last linear layer; slim_...: the truncated normal distribution of TF-slim's layers, as the original's."""
    norm_eps: float = field(default=1e-5, metadata={"range": Range(at_least=0)})
    norm_momentum: float = field(default=0.1, metadata={"range": Range(at_least=0, at_most=1)})
    """Weight of the newest batch in the running statistics; TensorFlow's decay is 1 - momentum."""


@dataclass
class ModelConfig:
    """Image encoder, text encoder and the projections that bring both into one space."""

    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
