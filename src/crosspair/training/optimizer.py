"""Adam, what it decays, and the learning rate of each step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosspair.encode.model import DualEncoder
from crosspair.models.projection import Projection
from crosspair.training.layers import layers_from_top
from crosspair.training.recipe import OptimizerConfig, StageConfig
from crosspair.training.tensorflow_adam import TensorFlowAdam

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "tensorflow-adam": TensorFlowAdam,
}


class ScheduledAdam:
    """The optimizer of one stage.

    model, losses: their parameters that require gradients are trained. steps: of the whole stage.
    """

    def __init__(
        self, model: DualEncoder, losses: nn.Module, config: OptimizerConfig, stage: StageConfig, steps: int
    ) -> None:
        self.config = config
        self.stage = stage
        self.steps = steps
        named = [*model.named_parameters(), *losses.named_parameters(prefix="losses")]
        self._name = {id(value): name for name, value in named}
        self.decayed = decayed_parameters(model, losses, config.decay)
        groups = _groups(model, losses, {id(value) for value in self.decayed}, config.weight_decay, stage)
        self.adam = OPTIMIZERS[config.name](
            groups, lr=stage.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon
        )

    def prepare(self, step: int) -> None:
        """Set the learning rates of a step, counted from 0 within the stage."""
        share = learning_rate_share(step, self.steps, self.stage)
        for group in self.adam.param_groups:
            group["lr"] = group["full_rate"] * share

    @torch.no_grad()
    def regularization(self) -> Tensor:
        """weight_decay * sum of squares / 2 of all that decays, frozen or not: the original's regularization loss."""
        total = sum((value.square().sum() for value in self.decayed), torch.zeros(()))
        return torch.as_tensor(self.config.weight_decay * total / 2)

    def tensors(self) -> dict[str, Tensor]:
        """Adam's moments by the weight's name: `text_encoder.embedding.weight/exp_avg` and so on."""
        names = self._names()
        state = self.adam.state_dict()["state"]
        return {f"{names[index]}/{key}": value for index, entry in state.items() for key, value in entry.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take moments as `tensors` gave them."""
        index = {name: number for number, name in enumerate(self._names())}
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            name, key = path.rsplit("/", 1)
            state.setdefault(index[name], {})[key] = value
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})

    def _names(self) -> list[str]:
        """Names of the trained weights in the order in which the optimizer numbers them."""
        return [self._name[id(value)] for group in self.adam.param_groups for value in group["params"]]


def learning_rate_share(step: int, steps: int, stage: StageConfig) -> float:
    """Share 0..1 of the full learning rate at a step of the stage."""
    warmup = min(1.0, (step + 1) / (stage.warmup_steps + 1))
    if stage.schedule == "constant":
        return warmup
    progress = max(0, step - stage.warmup_steps) / max(1, steps - stage.warmup_steps)
    return warmup * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def decayed_parameters(model: DualEncoder, losses: nn.Module, which: str) -> list[Tensor]:
    """What weight decay acts on, frozen weights included.

    `weights`: all matrices and kernels; not the word embedding, initial states, tokens or positions. `convolutions`:
    the image encoder's convolutions (depthwise ones aside) and both projections, the original's choice.
    """
    if which == "weights":
        named = [*model.named_parameters(), *losses.named_parameters()]
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        return [value for name, value in named if value.ndim > 1 and _is_kernel(name) and id(value) not in tables]
    convolutions = [module for module in model.image_encoder.modules() if isinstance(module, nn.Conv2d)]
    kernels: list[Tensor] = [module.weight for module in convolutions if module.groups == 1]
    layers = [*model.image_projection.modules(), *model.text_projection.modules()]
    return [*kernels, *(layer.linear.weight for layer in layers if isinstance(layer, Projection))]


def _is_kernel(name: str) -> bool:
    """Not initial states, class tokens and positions; "weight_ih_l0" is the LSTM's."""
    return "weight" in name.rsplit(".", 1)[-1]


def _groups(
    model: DualEncoder, losses: nn.Module, decayed: set[int], weight_decay: float, stage: StageConfig
) -> list[dict[str, object]]:
    rates: dict[int, float] = {}
    for encoder, rate in (
        (model.image_encoder, stage.image_learning_rate),
        (model.text_encoder, stage.text_learning_rate),
    ):
        full_rate = stage.learning_rate if rate is None else rate
        rates |= {id(value): full_rate for value in encoder.parameters()}
        if stage.layer_decay != 1 and any(value.requires_grad for value in encoder.parameters()):
            above = layers_from_top(encoder)
            rates |= {weight: full_rate * stage.layer_decay**layers for weight, layers in above.items()}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for value in (*model.parameters(), *losses.parameters()):
        if value.requires_grad:
            full_rate = rates.get(id(value), stage.learning_rate)
            decay = weight_decay if id(value) in decayed else 0.0
            groups.setdefault((full_rate, decay), []).append(value)
    return [
        {"params": values, "full_rate": full_rate, "weight_decay": decay}
        for (full_rate, decay), values in groups.items()
    ]
