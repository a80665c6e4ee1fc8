"""A training run as nested dataclasses. `recipe_files` reads and writes them as YAML, `recipe_checks` checks them.

What comes from a registry has the form it has in YAML: a loss is its weight, or {weight: 10, margin: 0.2}; a sampler or
a schedule is its name, or {name: labels, images_per_label: 4}.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from crosspair.models.config import ModelConfig


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
    freeze: list[str] = field(default_factory=list)
    """Patterns of names of further weights to keep, as text_encoder.embedding.*; their dropout and statistics go on."""
    batch_size: int = 32
    """Images in a batch, of all processes together."""
    mini_batch_size: int = 0
    """Images encoded at a time, while the loss sees the whole batch; saves memory for one more forward; 0: all."""
    sampler: str | dict[str, Any] = "shuffled"
    """Which images share a batch. labels: batch_size / images_per_label labels, with that many images of each."""
    captions_per_image: int = 1
    """Captions drawn for each image of a batch; 0 takes all."""
    epoch_covers: Literal["images", "captions"] = "captions"
    """An epoch draws every image once, or (as the original's does) as often as it takes to read every caption."""
    learning_rate: float = 2e-4
    image_learning_rate: float | None = None
    """Of the image encoder; null takes learning_rate."""
    text_learning_rate: float | None = None
    """Of the text encoder; null takes learning_rate."""
    layer_decay: float = 1.0
    """The rate of an encoder's k-th layer from its top is multiplied by this to the power of k."""
    schedule: str | dict[str, Any] = "constant"
    """Of the learning rate over the stage, after the warm-up: constant, cosine (to 0), polynomial, exponential."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises."""
    warmup_start: float = 0.0
    """Share of the full learning rate that the warm-up rises from."""
    smallest_crop: float = 1.0
    """Training images are cropped to a random share of their area, from this to 1; 1 leaves them whole."""
    shift: int = 0
    """Training images are moved by up to so many pixels at random, black filling in (padded and cropped)."""
    erasing: float = 0.0
    """Share of training images in which a box of 0.02 to 0.4 of the area gets the mean colour (random erasing)."""

    @property
    def bn_stats_frozen(self) -> bool:
        """Whether the image encoder keeps its batch-norm statistics, and evaluation mode with them."""
        return self.freeze_image_encoder if self.freeze_bn_stats is None else self.freeze_bn_stats


@dataclass
class OptimizerConfig:
    """The optimizer by its name, and what goes with any. In YAML its settings stand among these fields."""

    name: str = "adam"
    """adam, adamw (decoupled weight decay), sgd, momentum, rmsprop, adagrad, adadelta; tensorflow-adam and
    tensorflow-rmsprop as TensorFlow 1 has them."""
    weight_decay: float = 4e-5
    decay: Literal["weights", "convolutions", "no-biases"] = "weights"
    """What decays: all weight matrices and kernels; only the original's choice (convolutions and projections); or all
    but biases, with norms, positions and the embedding of words (IRRA's)."""
    bias_rate: float = 1.0
    """The learning rate of the model's biases is multiplied by this."""
    grad_clip_norm: float | None = None
    """Largest norm of all gradients together; null does not clip."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the optimizer of that name, such as beta1 of adam."""


@dataclass
class EMAConfig:
    """The exponential moving average (EMA) of the weights, validated beside them."""

    decay: float = 0.9999
    """After a warm-up of (1 + step) / (10 + step); 0 keeps no EMA."""
    parts: Literal["model", "image"] = "model"
    """The whole model, or (the original) all but the text encoder."""
    before_update: bool = False
    """Average the weights that a step starts from, as the original does, rather than those it ends with."""


@dataclass
class RestoreConfig:
    """Weights that a run starts with from another model."""

    model: str | None = None
    """A RUN, a MODEL or a name on the hub; null takes none."""
    include: list[str] = field(default_factory=lambda: ["*"])
    """Patterns of the names that are taken, as image_encoder.*."""
    exclude: list[str] = field(default_factory=list)
    """Patterns of the names that are not."""


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
    """Images in memory to shuffle from, over all processes; shards come in random order besides."""
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
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    """Splits of DATA that are trained on, as train,val; their labels are numbered together."""
    validation: Literal["val", "none"] = "val"
    """val: RUN/model is the best model on the split val, of all epochs. none: nothing is validated, and RUN/model has
    the weights of the last epoch (their EMA, where there is one)."""
    hflip: bool = True
    """Flip each training image horizontally with probability 1/2."""
    hflip_sides: bool = False
    """Flip also images of which a caption in the batch says left or right, as the original does."""
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    """Of the encoders; embeddings, losses and weights stay in float32 (or float64). auto: bf16-mixed where the device
    multiplies in bfloat16, else 32-true."""
    feature_backend: str = "auto"
    """What computes a frozen encoder's features: torch, openvino-bf16, openvino-f32, onnxruntime-f32, or a
    backend of your own. auto: on a CPU the fastest at hand that is exact enough."""
    channels_last: bool = True
    """Channels-last memory layout of images and convolutions: faster on CPUs and GPUs."""
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
    """Processes that decode images; -1 takes one a core on a GPU and none on the CPU."""
    decoded_cache_gb: float = 0.0
    """Disk for decoded images, kept between epochs and runs in the user's cache; 0 decodes in every epoch."""
    log_every: int = 10
    """Steps between two rows of metrics."""
    tensorboard: Literal["auto", "on", "off"] = "auto"
    """Write RUN/tensorboard beside metrics.jsonl; auto: where the package is installed."""
    histograms: int = 0
    """Steps between two histograms of each weight and its gradient in RUN/tensorboard; 0: none."""
    checkpoint_minutes: float = 10.0
    """Time between two checkpoints inside an epoch; one is written after every epoch."""
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: dict[str, Any] = field(default_factory=lambda: {"cmpm": 1.0, "cmpc": 1.0})
    """What is minimised: the weight of each loss, or its weight and settings. Weight 0 leaves a loss out."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    restore: RestoreConfig = field(default_factory=RestoreConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    stage1: StageConfig = field(default_factory=lambda: StageConfig(freeze_image_encoder=True))
    stage2: StageConfig = field(default_factory=StageConfig)
    plugins: list[dict[str, Any]] = field(default_factory=list)
    """Written by a run: what it used of plugins, by their name, checksum and what they registered."""

    @property
    def stages(self) -> list[tuple[int, StageConfig]]:
        """Number and settings of the stages that have epochs."""
        return [(number, stage) for number, stage in ((1, self.stage1), (2, self.stage2)) if stage.epochs > 0]

    @property
    def loss_weights(self) -> dict[str, float]:
        """The losses that take part, each with its weight."""
        return {name: weight for name, (weight, _) in map_losses(self.loss).items() if weight != 0}


def map_losses(loss: Mapping[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Weight and settings by a loss's name, from either form; a weight that is missing is None."""
    found = {}
    for name, chosen in loss.items():
        settings = dict(chosen) if isinstance(chosen, Mapping) else {"weight": chosen}
        found[name] = (settings.pop("weight", None), settings)
    return found


def name_and_settings(chosen: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of a sampler or a schedule, from either form."""
    settings = {"name": chosen} if isinstance(chosen, str) else dict(chosen)
    return settings.pop("name"), settings
