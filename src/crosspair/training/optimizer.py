"""Optimizers and schedules by their names, what weight decay acts on, and the learning rate of each step.

An optimizer takes groups of parameters, each with its learning rate `lr` and its `weight_decay`, and its own settings.
A schedule takes a step, counted from 0 after the warm-up, and the number of these steps, and returns the share of the
full learning rate.
"""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.models.projection import Projection
from crosspair.registry import OPTIMIZERS, SCHEDULES, register_optimizer, register_schedule
from crosspair.settings import Range, apply_settings
from crosspair.training.layers import layers_from_top
from crosspair.training.recipe import OptimizerConfig, StageConfig, name_and_settings

Groups = Iterable[dict[str, Any]]
Beta = Annotated[float, Range(at_least=0, below=1), "How much of the mean gradient is kept in a step."]
SecondBeta = Annotated[float, Range(at_least=0, below=1), "How much of the mean squared gradient is kept in a step."]
Epsilon = Annotated[float, Range(at_least=0), "Added to the root of the mean squared gradient."]


@register_optimizer("adam")
def adam(groups: Groups, *, beta1: Beta = 0.9, beta2: SecondBeta = 0.999, epsilon: Epsilon = 1e-8) -> torch.optim.Adam:
    """Adam (Kingma and Ba, ICLR 2015); weight decay adds to the gradient."""
    return torch.optim.Adam(groups, betas=(beta1, beta2), eps=epsilon)


@register_optimizer("adamw")
def adamw(
    groups: Groups, *, beta1: Beta = 0.9, beta2: SecondBeta = 0.999, epsilon: Epsilon = 1e-8
) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""
    return torch.optim.AdamW(groups, betas=(beta1, beta2), eps=epsilon)


@register_optimizer("tensorflow-adam")
def tensorflow_adam(
    groups: Groups, *, beta1: Beta = 0.9, beta2: SecondBeta = 0.999, epsilon: Epsilon = 1e-8
) -> "TensorFlowAdam":
    """Adam as TensorFlow 1 computes it, to follow the original step by step."""
    return TensorFlowAdam(groups, betas=(beta1, beta2), eps=epsilon)


@register_schedule("constant")
def constant(step: int, total_steps: int) -> float:
    """The full learning rate in every step."""
    return 1.0


@register_schedule("cosine")
def cosine(step: int, total_steps: int) -> float:
    """Falls to 0 along half a cosine (Loshchilov and Hutter, SGDR, ICLR 2017, without restarts)."""
    return (1 + math.cos(math.pi * min(1.0, step / total_steps))) / 2


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
        groups = _groups(model, losses, {id(value) for value in self.decayed}, config.weight_decay, stage)
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
    warmup = min(1.0, (step + 1) / (stage.warmup_steps + 1))
    after = max(0, step - stage.warmup_steps), max(1, steps - stage.warmup_steps)
    return warmup * float(apply_settings(SCHEDULES.get(name), settings)(*after))


def decayed_parameters(model: DualEncoder, losses: nn.Module, which: str) -> list[Tensor]:
    """Parameters that weight decay acts on, frozen ones included.

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
        {"params": values, "lr": full_rate, "full_rate": full_rate, "weight_decay": decay}
        for (full_rate, decay), values in groups.items()
    ]


class TensorFlowAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, 2015) in the form before section 2.1: epsilon is not divided by sqrt(1 - beta2^t).

    w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon). After one step that is up to 1e-4 away from
    torch.optim.Adam where gradients are small. As in TensorFlow the settings are float32 numbers and beta^t is a
    float32 product, whatever the precision of the weights. weight_decay adds to the gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._powers = (0, np.float32(1), np.float32(1))  # t, beta1^t, beta2^t

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                zero = torch.zeros_like(weight, memory_format=torch.preserve_format)
                self.state[weight] = {"step": torch.tensor(0.0), "exp_avg": zero, "exp_avg_sq": zero.clone()}
            self.state[weight]["step"] += 1
        first = [self.state[weight]["exp_avg"] for weight in weights]
        second = [self.state[weight]["exp_avg_sq"] for weight in weights]
        gradients: list[Tensor] = [weight.grad for weight in weights if weight.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        beta1, beta2 = (np.float32(beta) for beta in group["betas"])
        power1, power2 = self._power(int(self.state[weights[0]]["step"]), beta1, beta2)
        torch._foreach_lerp_(first, gradients, 1 - float(beta1))
        torch._foreach_mul_(second, float(beta2))
        torch._foreach_addcmul_(second, gradients, gradients, 1 - float(beta2))
        divisors = torch._foreach_sqrt(second)
        torch._foreach_add_(divisors, float(np.float32(group["eps"])))
        rate = float(np.float32(group["lr"])) * math.sqrt(1 - float(power2)) / (1 - float(power1))
        torch._foreach_addcdiv_(weights, first, divisors, -rate)

    def _power(self, t: int, beta1: np.float32, beta2: np.float32) -> tuple[np.float32, np.float32]:
        """beta^t as float32 products, one multiplication a step."""
        reached, power1, power2 = self._powers if self._powers[0] <= t else (0, np.float32(1), np.float32(1))
        for _ in range(t - reached):
            power1, power2 = power1 * beta1, power2 * beta2
        self._powers = (t, power1, power2)
        return power1, power2
