"""The optimizer of a stage: its groups of parameters, what weight decay acts on, and the learning rate of each step."""

from typing import Any

import torch
from torch import Tensor, nn

from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.models.projection import Projection
from crosspair.registry import OPTIMIZERS, SCHEDULES
from crosspair.settings import apply_settings
from crosspair.training.layers import layers_from_top
from crosspair.training.recipe import OptimizerConfig, StageConfig, name_and_settings


class StageOptimizer:
    """The optimizer of one stage, and its schedule.

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
        groups = _groups(model, losses, {id(value) for value in self.decayed}, config, stage)
        self.inner: torch.optim.Optimizer = apply_settings(OPTIMIZERS.get(config.name), config.settings)(groups)
        self.trained = [value for group in self.inner.param_groups for value in group["params"]]

    def prepare(self, step: int) -> None:
        """Set the learning rates of a step, counted from 0 within the stage."""
        share = learning_rate_share(step, self.steps, self.stage)
        for group in self.inner.param_groups:
            group["lr"] = group["full_rate"] * share

    @torch.no_grad()
    def regularization(self) -> Tensor:
        """weight_decay * sum of squares / 2 of all that decays, frozen or not: the original's regularization loss."""
        total = sum((value.square().sum() for value in self.decayed), torch.zeros(()))
        return torch.as_tensor(self.config.weight_decay * total / 2)

    def named(self) -> dict[str, Tensor]:
        """The weights that are trained, by their names in checkpoints."""
        return dict(zip(self._names(), self.trained, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by the weight's name: `text_encoder.embedding.weight/exp_avg` and so on.

        Raises UserError for an optimizer that keeps more than tensors and numbers there.
        """
        names = self._names()
        found = {}
        for index, entry in self.inner.state_dict()["state"].items():
            for key, value in entry.items():
                if isinstance(value, bool | int | float):
                    found[f"{names[index]}/{key}{_NUMBER}"] = torch.tensor(value)
                elif isinstance(value, Tensor):
                    found[f"{names[index]}/{key}"] = value
                elif value is not None:
                    raise UserError(
                        f"the optimizer '{self.config.name}' keeps a {type(value).__name__} ({key}) for a weight, "
                        "which no checkpoint can hold; expected tensors and numbers"
                    )
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore a state as `tensors` gave it."""
        index = {name: number for number, name in enumerate(self._names())}
        state: dict[int, dict[str, Any]] = {}
        for path, value in tensors.items():
            name, key = path.rsplit("/", 1)
            number = key.endswith(_NUMBER)
            state.setdefault(index[name], {})[key.removesuffix(_NUMBER)] = value.item() if number else value
        self.inner.load_state_dict({"state": state, "param_groups": self.inner.state_dict()["param_groups"]})

    def _names(self) -> list[str]:
        """Names of the trained weights in the order in which the optimizer numbers them."""
        return [self._name[id(value)] for value in self.trained]


_NUMBER = " (number)"  # what a checkpoint calls a state that is no tensor


def learning_rate_share(step: int, steps: int, stage: StageConfig) -> float:
    """Share of the full learning rate at a step of the stage: of the warm-up, times that of the schedule."""
    name, settings = name_and_settings(stage.schedule)
    warmup = stage.warmup_start + (1 - stage.warmup_start) * min(1.0, (step + 1) / (stage.warmup_steps + 1))
    after = max(0, step - stage.warmup_steps), max(1, steps - stage.warmup_steps)
    return warmup * float(apply_settings(SCHEDULES.get(name), settings)(*after))


def decayed_parameters(model: DualEncoder, losses: nn.Module, which: str) -> list[Tensor]:
    """Parameters that weight decay acts on, frozen ones included.

    `weights`: all matrices and kernels; not the word embedding, initial states, tokens or positions. `convolutions`:
    the image encoder's convolutions (depthwise ones aside) and both projections, the original's choice. `no-biases`:
    all that are not called bias.
    """
    named = [*model.named_parameters(), *losses.named_parameters()]
    if which == "no-biases":
        return [value for name, value in named if not _is_bias(name)]
    if which == "weights":
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        return [value for name, value in named if value.ndim > 1 and _is_kernel(name) and id(value) not in tables]
    convolutions = [module for module in model.image_encoder.modules() if isinstance(module, nn.Conv2d)]
    kernels: list[Tensor] = [module.weight for module in convolutions if module.groups == 1]
    layers = [*model.image_projection.modules(), *model.text_projection.modules()]
    return [*kernels, *(layer.linear.weight for layer in layers if isinstance(layer, Projection))]


def _is_kernel(name: str) -> bool:
    """Not initial states, class tokens and positions; "weight_ih_l0" is the LSTM's."""
    return "weight" in name.rsplit(".", 1)[-1]


def _is_bias(name: str) -> bool:
    """Also of an LSTM ("bias_ih_l0") and of attention ("in_proj_bias")."""
    return "bias" in name.rsplit(".", 1)[-1]


def _groups(
    model: DualEncoder, losses: nn.Module, decayed: set[int], config: OptimizerConfig, stage: StageConfig
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
    biases = {id(value) for name, value in model.named_parameters() if _is_bias(name)}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for value in (*model.parameters(), *losses.parameters()):
        if value.requires_grad:
            full_rate = rates.get(id(value), stage.learning_rate) * (config.bias_rate if id(value) in biases else 1)
            decay = config.weight_decay if id(value) in decayed else 0.0
            groups.setdefault((full_rate, decay), []).append(value)
    return [
        {"params": values, "lr": full_rate, "full_rate": full_rate, "weight_decay": decay}
        for (full_rate, decay), values in groups.items()
    ]
