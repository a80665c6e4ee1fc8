"""A training run as nested dataclasses. `recipe_files` reads them from YAML and writes them back."""

from dataclasses import dataclass, field
from typing import Literal

from crosspair.models.config import ModelConfig


@dataclass
class LossConfig:
    """Which losses, and how they are weighted."""

    cmpm: float = 1.0
    """Weight of cross-modal projection matching; 0 leaves it out."""
    cmpc: float = 1.0
    """Weight of cross-modal projection classification; 0 leaves it out."""
    infonce: float = 0.0
    """Weight of InfoNCE (CLIP)."""
    sdm: float = 0.0
    """Weight of similarity distribution matching (IRRA)."""
    triplet: float = 0.0
    """Weight of the triplet loss with hardest negatives (VSE++)."""
    siglip: float = 0.0
    """Weight of the sigmoid loss (SigLIP)."""
    cmpm_scale: float | None = None
    """null projects as the paper does; a number gives both embeddings this length first, and learns it (up to 100)."""
    cmpm_ratio_epsilon: float = 0.0
    """Added to p / q inside the matching's logarithm; the original adds 1e-8."""
    cmpm_matmul_precision: Literal["float32", "bf16"] = "float32"
    """Of batches of over a million pairs (on a CPU): bf16 nearly halves the time, with gradients off by about 0.4 %."""
    cmpc_classes: int = 0
    """Classes that the classification draws a step beside the batch's own, for fast approximate steps; 0 takes all."""
    label_smoothing: float = 0.0
    """Of the classification's targets."""
    infonce_temperature: float = 0.07
    """At the start, if it is learned; at least 0.01."""
    infonce_learned: bool = True
    """Learn InfoNCE's temperature."""
    sdm_temperature: float = 0.02
    triplet_margin: float = 0.2
    """By how much a match's cosine should exceed that of the hardest negative."""
    siglip_temperature: float = 0.1
    """At the start; learned."""
    siglip_bias: float = -10.0
    """At the start; learned."""

    @property
    def weights(self) -> dict[str, float]:
        """The losses that take part, each with its weight."""
        every = {
            "cmpm": self.cmpm,
            "cmpc": self.cmpc,
            "infonce": self.infonce,
            "sdm": self.sdm,
            "triplet": self.triplet,
            "siglip": self.siglip,
        }
        return {name: weight for name, weight in every.items() if weight > 0}


@dataclass
class StageConfig:
    """One stage of training."""

    epochs: int = 0
    """Passes over the training images; 0 leaves the stage out."""
    freeze_image_encoder: bool = False
    """Keep the image encoder's weights, and its dropout off; its features are then computed once."""
    freeze_bn_stats: bool | None = None
    """Keep the image encoder in evaluation mode, with its batch-norm statistics; null: exactly when it is frozen.
    true: while its weights train. false: a frozen encoder's follow each batch, as the original's (no features kept)."""
    image_layers: int = 0
    """Layers of the image encoder that train, counted from its top; those below keep their weights. 0 trains all."""
    freeze_text_encoder: bool = False
    """Keep the text encoder's weights, and its dropout off."""
    batch_size: int = 32
    """Pictures in a batch, of all processes together."""
    mini_batch_size: int = 0
    """Pictures encoded at a time, while the loss sees the whole batch; saves memory for one more forward; 0: all."""
    sampler: Literal["shuffled", "identities"] = "shuffled"
    """identities: a batch holds batch_size / images_per_label labels, with that many pictures of each."""
    images_per_label: int = 4
    """For sampler identities; a label that has fewer pictures gives all of them."""
    captions_per_image: int = 1
    """Captions drawn for each picture of a batch; 0 takes all."""
    epoch_covers: Literal["images", "captions"] = "captions"
    """An epoch draws every picture once, or (as the original's does) as often as it takes to read every caption."""
    learning_rate: float = 2e-4
    image_learning_rate: float | None = None
    """Of the image encoder; null takes learning_rate."""
    text_learning_rate: float | None = None
    """Of the text encoder; null takes learning_rate."""
    layer_decay: float = 1.0
    """The rate of an encoder's k-th layer from its top is multiplied by this to the power of k."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate over the stage; cosine falls to 0."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0."""
    smallest_crop: float = 1.0
    """Training pictures are cropped to a random share of their area, from this to 1; 1 leaves them whole."""

    @property
    def bn_stats_frozen(self) -> bool:
        """Whether the image encoder keeps its batch-norm statistics, and evaluation mode with them."""
        return self.freeze_image_encoder if self.freeze_bn_stats is None else self.freeze_bn_stats


@dataclass
class OptimizerConfig:
    """Adam and what goes with it."""

    name: Literal["adam", "adamw", "tensorflow-adam"] = "adam"
    """adam: weight decay through the gradient; adamw: decoupled; tensorflow-adam: adam with TensorFlow's epsilon."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 4e-5
    decay: Literal["weights", "convolutions"] = "weights"
    """What decays: all weight matrices and kernels, or only the original's choice (convolutions and projections)."""
    grad_clip_norm: float | None = None
    """Largest norm of all gradients together; null does not clip."""


@dataclass
class EMAConfig:
    """Exponential moving averages of the weights, evaluated beside them."""

    decay: float = 0.9999
    """After a warm-up of (1 + step) / (10 + step); 0 keeps no averages."""
    parts: Literal["model", "image"] = "model"
    """The whole model, or (the original) all but the text encoder."""
    before_update: bool = False
    """Average the weights that a step starts from, as the original does, rather than those it ends with."""


@dataclass
class LoraConfig:
    """Adapters: small matrices that train beside an encoder's frozen weights, and are added to them in RUN/model."""

    rank: int = 0
    """Rows of the adapters; 0 trains the encoders' own weights."""
    alpha: float = 16.0
    """What an adapter adds is multiplied by alpha / rank."""
    dropout: float = 0.0
    """On what an adapter reads, in training."""
    encoders: Literal["both", "image", "text"] = "both"
    """Which have adapters; the other one trains as its stage says."""
    layers: Literal["attention", "all-linear"] = "attention"
    """Which linear layers have one."""


@dataclass
class StreamConfig:
    """Training data that is streamed."""

    shuffle_buffer: int = 5000
    """Pictures in memory to shuffle from, over all processes; shards come in random order besides."""
    on_error: Literal["stop", "skip"] = "stop"
    """At a sample that can't be used: stop before training, or leave it out."""


@dataclass
class Recipe:
    """Everything that decides a training run."""

    name: str = "custom"
    summary: str = ""
    """One line for `crosspair recipes`."""
    aims: str = ""
    """The published or measured number that the run aims at."""
    seed: int = 0
    hflip: bool = True
    """Mirror each training picture from left to right with probability 1/2."""
    hflip_sides: bool = False
    """Mirror also pictures of which a caption in the batch says left or right, as the original does."""
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    """Of the encoders; embeddings, losses and weights stay in float32 (or float64). auto: bf16-mixed where the device
    multiplies in bfloat16, else 32-true."""
    feature_backend: Literal["auto", "torch", "openvino-f32", "openvino-bf16"] = "auto"
    """What computes a frozen encoder's features. auto: on a CPU the fastest at hand that is exact enough."""
    channels_last: bool = True
    """Pictures with their colours beside each other rather than in planes: faster convolutions on CPUs and GPUs."""
    compile: bool = False
    """Have torch.compile make the image encoder's kernels, which takes minutes; on a CPU its steps were slower."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """Processes on each node, one a device, that share every batch; under torchrun its own number."""
    nodes: int = 1
    """Machines that take part; under torchrun its own number."""
    sync_batch_norm: bool = False
    """With several processes: batch norm sees the whole batch rather than each process's part."""
    workers: int = -1
    """Processes that decode pictures; -1 takes one a core on a GPU and none on the CPU."""
    decoded_cache_gb: float = 0.0
    """Disk for decoded pictures, kept between epochs and runs in the user's cache; 0 decodes in every epoch."""
    log_every: int = 10
    """Steps between two rows of metrics."""
    tensorboard: Literal["auto", "on", "off"] = "auto"
    """Write RUN/tensorboard beside metrics.jsonl; auto: where the package is installed."""
    checkpoint_minutes: float = 10.0
    """Time between two checkpoints inside an epoch; one is written after every epoch."""
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    stage1: StageConfig = field(default_factory=lambda: StageConfig(freeze_image_encoder=True))
    stage2: StageConfig = field(default_factory=StageConfig)

    @property
    def stages(self) -> list[tuple[int, StageConfig]]:
        """Number and settings of the stages that have epochs."""
        return [(number, stage) for number, stage in ((1, self.stage1), (2, self.stage2)) if stage.epochs > 0]
