"""Optimizers by their names.

An optimizer takes groups of parameters, each with its learning rate `lr` and its `weight_decay`, and its own settings.
Weight decay adds to the gradient in all of them but adamw.
"""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from crosspair.registry import register_optimizer
from crosspair.settings import Range

Groups = Iterable[dict[str, Any]]
Beta = Annotated[float, Range(at_least=0, below=1), "How much of the mean gradient is kept in a step."]
SecondBeta = Annotated[float, Range(at_least=0, below=1), "How much of the mean squared gradient is kept in a step."]
Epsilon = Annotated[float, Range(at_least=0), "Added to the root of the mean squared gradient."]
InnerEpsilon = Annotated[float, Range(above=0), "Added to the mean squares, inside their roots."]
Momentum = Annotated[float, Range(at_least=0, below=1), "How much of the last update is kept in a step."]
Nesterov = Annotated[bool, "Look a step ahead (needs a momentum)."]


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


@register_optimizer("sgd")
def sgd(groups: Groups) -> torch.optim.SGD:
    """Stochastic gradient descent without momentum; TensorFlow's is the same."""
    return torch.optim.SGD(groups)


@register_optimizer("momentum")
def momentum(groups: Groups, *, momentum: Momentum = 0.9, nesterov: Nesterov = False) -> torch.optim.SGD:
    """Stochastic gradient descent with momentum, by default the heavy ball; TensorFlow's is the same."""
    return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov and momentum > 0)


@register_optimizer("rmsprop")
def rmsprop(
    groups: Groups, *, momentum: Momentum = 0.0, decay_rate: SecondBeta = 0.99, epsilon: Epsilon = 1e-8
) -> torch.optim.RMSprop:
    """RMSProp (Tieleman and Hinton, 2012) as PyTorch computes it: epsilon outside of the root, averages from 0."""
    return torch.optim.RMSprop(groups, alpha=decay_rate, eps=epsilon, momentum=momentum)


@register_optimizer("tensorflow-rmsprop")
def tensorflow_rmsprop(
    groups: Groups, *, momentum: Momentum = 0.9, decay_rate: SecondBeta = 0.9, epsilon: InnerEpsilon = 1e-10
) -> torch.optim.Optimizer:
    """RMSProp as TensorFlow 1 computes it: epsilon inside of the root, averages from 1, the rate in the momentum."""
    from timm.optim import RMSpropTF

    return RMSpropTF(groups, alpha=decay_rate, eps=epsilon, momentum=momentum)


@register_optimizer("adagrad")
def adagrad(
    groups: Groups,
    *,
    initial_accumulator: Annotated[float, Range(at_least=0), "What the sums of squared gradients start from."] = 0.0,
    epsilon: Annotated[float, Range(at_least=0), "Added to the root of the sum of squared gradients."] = 1e-10,
) -> torch.optim.Adagrad:
    """Adagrad (Duchi et al., JMLR 2011); TensorFlow's with initial_accumulator 0.1 and epsilon 0."""
    return torch.optim.Adagrad(groups, initial_accumulator_value=initial_accumulator, eps=epsilon)


@register_optimizer("adadelta")
def adadelta(groups: Groups, *, decay_rate: SecondBeta = 0.95, epsilon: InnerEpsilon = 1e-6) -> torch.optim.Adadelta:
    """Adadelta (Zeiler, 2012); TensorFlow's with epsilon 1e-8. Wants a learning rate near 1."""
    return torch.optim.Adadelta(groups, rho=decay_rate, eps=epsilon)


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
