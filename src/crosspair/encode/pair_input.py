"""What a ready-made pair's image encoder expects: its library's own resizing and cropping, its mean and deviation."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from crosspair.data.transforms import ImageInput
from crosspair.errors import UserError

_LONGEST = 32  # times as long as wide: of what is longer the middle is seen, before resizing makes millions of columns
_TOLERANCE = 1e-3  # of normalised values, which are within about 3: a step of a colour in 0..255 is more


class PairInput(ImageInput):
    """The input of a ready-made pair.

    cut: uint8 [3, h, w] -> uint8 [3, height, width], the library's own resizing and cropping. mean, std: of red, green
    and blue in 0..1.
    """

    def __init__(
        self, cut: Callable[[Tensor], Tensor], size: tuple[int, int], mean: list[float], std: list[float]
    ) -> None:
        super().__init__(*size, mean, std)
        self._cut = cut

    def resize(self, image: Tensor) -> Tensor:
        """uint8 [3, h, w] as the pair saw images in its training, uint8 [3, height, width].

        Of an image that is more than 32 times as long as it is wide, the middle is taken.
        """
        height, width = image.shape[-2:]
        most = _LONGEST * min(height, width)
        top, left = (max(0, length - most) // 2 for length in (height, width))
        return self._cut(image[:, top : top + most, left : left + most])


def checked_input(
    cut: Callable[[Tensor], Tensor], mean: list[float], std: list[float], own: Callable[[Tensor], Tensor], name: str
) -> PairInput:
    """The input of the pair `name`, which gives what the library's own preprocessing gives.

    own: uint8 [3, h, w] -> float [3, height, width] by the library. Raises UserError where the two differ on pictures
    that are wide, high or smaller than the input, with even and odd margins, as for steps that are not known here.
    """
    random = np.random.default_rng(0)
    found: PairInput | None = None
    for height, width in ((90, 131), (137, 80), (9, 12), (91, 200), (203, 90)):
        image = torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8))
        expected, seen = own(image), cut(image)
        size = (int(seen.shape[-2]), int(seen.shape[-1]))
        found = found or PairInput(cut, size, mean, std)
        same = seen.dtype == torch.uint8 and expected.shape == seen.shape and size == (found.height, found.width)
        if not same or not (found.normalize(seen[None])[0] - expected).abs().max() < _TOLERANCE:
            raise UserError(
                f"{name} prepares pictures by steps that crosspair doesn't know; expected resizing, cropping and "
                "normalising to one size, encode with its own library and evaluate the embeddings with --embeddings"
            )
    assert found is not None
    return found
