"""Stopping before a loss or weights that are no number are kept."""

import math

from torch import Tensor, nn

from crosspair.errors import UserError


def check_finite(loss: Tensor, model: nn.Module | None, where: str) -> None:
    """Raise UserError for a loss that is NaN or infinite, and for such weights (finite losses can lead there).

    model: None looks at the loss only. where: the step, for the user. Reading the loss waits for its device.
    """
    found = f"the loss is {float(loss)}"
    if math.isfinite(loss):
        if model is None or all(bool(value.isfinite().all()) for value in model.parameters()):
            return
        found = "weights are NaN or infinite"
    raise UserError(
        f"{found} at {where}; the last good checkpoint is kept: lower the learning rate or set "
        "optimizer.grad_clip_norm, and train again"
    )
