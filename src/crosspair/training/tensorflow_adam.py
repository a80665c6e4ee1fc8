"""Adam as TensorFlow 1 computes it, to follow the original step by step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
