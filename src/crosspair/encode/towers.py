"""Encoders, alone or with their projections, as modules of plain tensors that other backends can convert.

The BiLSTM computes on padded captions here, as no backend but PyTorch knows packed ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crosspair.data.transforms import ImageInput
from crosspair.models.dual_encoder import TwoTowers
from crosspair.models.text import BiLSTMEncoder


class ImageTower(nn.Module):
    """Normalized pixels [b, 3, height, width] -> embeddings [b, dim] of unit length."""

    def __init__(self, model: TwoTowers) -> None:
        super().__init__()
        self.encoder = model.image_encoder
        self.projection = model.image_projection
        self.num_features = model.config.projection.dim

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.projection(self.encoder(pixels)), dim=1)


class PixelTower(nn.Module):
    """Resized images [b, 3, height, width], values 0..255 -> what `encoder` makes of them normalized, [b, d]."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, image_input: ImageInput) -> None:
        super().__init__()
        self.encoder = encoder
        mean, std = (torch.tensor(values)[:, None, None] for values in (image_input.mean, image_input.std))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Tensor) -> Tensor:
        # Not as a call, which would find what torch.compile made of the encoder.
        return self.encoder.forward((pixels.float() / 255 - self.mean) / self.std)  # type: ignore[no-any-return]


class TextTower(nn.Module):
    """tokens int64 [m, t] padded at the end, lengths int64 [m], at least 1 -> embeddings [m, dim] of unit length."""

    def __init__(self, model: TwoTowers) -> None:
        super().__init__()
        encoder = model.text_encoder
        self.encoder = PaddedBiLSTM(encoder) if isinstance(encoder, BiLSTMEncoder) else encoder
        self.projection = model.text_projection

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return F.normalize(self.projection(self.encoder(tokens, lengths)), dim=1)


class PaddedBiLSTM(nn.Module):
    """A BiLSTMEncoder in evaluation mode, its captions padded and its directions two LSTMs that both run forwards."""

    def __init__(self, encoder: BiLSTMEncoder) -> None:
        super().__init__()
        self.embedding = encoder.embedding
        self.directions = nn.ModuleList()
        for suffix in ("l0", "l0_reverse"):
            lstm = nn.LSTM(encoder.lstm.input_size, encoder.lstm.hidden_size, batch_first=True)
            names = [name for name, _ in lstm.named_parameters()]
            lstm.load_state_dict({name: getattr(encoder.lstm, name.replace("l0", suffix)) for name in names})
            self.directions.append(lstm)
        self.initial_hidden = encoder.initial_hidden
        self.initial_cell = encoder.initial_cell
        # A state is above -1, so padding never is the maximum; the original's padding of zeros can be.
        self.behind_the_end = 0.0 if encoder.pool_padding else -1.0

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """As BiLSTMEncoder.forward."""
        position = torch.arange(tokens.shape[1], device=tokens.device)
        present = position < lengths[:, None]
        # Each caption's words from its own last to its first, and padding where it was.
        hflipped = torch.where(present, lengths[:, None] - 1 - position, position)
        forwards = self._run(0, tokens)
        backwards = self._run(1, tokens.gather(1, hflipped))
        # Which word a state belongs to makes no difference to the maximum: backwards stays mirrored.
        states = torch.cat([forwards, backwards], dim=2)
        return torch.where(present[:, :, None], states, self.behind_the_end).amax(dim=1)

    def _run(self, direction: int, tokens: Tensor) -> Tensor:
        shape = (1, tokens.shape[0], -1)
        hidden, cell = (
            state[direction].expand(shape).contiguous() for state in (self.initial_hidden, self.initial_cell)
        )
        states: Tensor = self.directions[direction](self.embedding(tokens), (hidden, cell))[0]
        return states


def pixel_type(image_input: ImageInput) -> torch.dtype:
    """The type of resized images' values."""
    return torch.float32 if image_input.resample == "tensorflow1" else torch.uint8
