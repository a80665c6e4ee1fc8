"""An image encoder outside of PyTorch: converted to OpenVINO and compiled for this machine's CPU.

encode = CompiledImageEncoder(convert_image_encoder(encoder, picture_input), "bf16")
features = encode(pictures)  # uint8 [b, 3, height, width] -> float32 [b, num_features]
"""

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cmpl.data.transforms import PictureInput
from cmpl.errors import UserError

if TYPE_CHECKING:
    from openvino import InferRequest, Model

Precision = Literal["bf16", "f32"]

# Pictures in one request: 1, 2 and 8 were no faster in bf16 on EfficientNet-Lite0, MobileNet-v1 and ResNet-152.
REQUEST = 4


def import_openvino() -> Any:
    """The module `openvino`. Raises UserError where it is not installed."""
    # Left to itself it reports every import over the network; without this module it uses its own stand-in.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise UserError("OpenVINO is not installed; run: pip install 'cmpl[openvino]'") from error
    return openvino


def openvino_precisions() -> list[Precision]:
    """What this CPU is fast at, the fastest first; nothing where OpenVINO is not installed."""
    try:
        openvino = import_openvino()
    except UserError:
        return []
    # The plugin's own choice is bf16 where the processor has instructions for it, not where they are imitated.
    native = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    return ["bf16", "f32"] if native == openvino.Type.bf16 else ["f32"]


class _FromPictures(nn.Module):
    def __init__(self, encoder: nn.Module, picture_input: PictureInput) -> None:
        super().__init__()
        self.encoder = encoder
        self.picture_input = picture_input

    def forward(self, pictures: Tensor) -> Tensor:
        # Not as a call, which would find what torch.compile made of the encoder.
        return self.encoder.forward(self.picture_input.normalize(pictures))  # type: ignore[no-any-return]


def convert_image_encoder(encoder: nn.Module, picture_input: PictureInput) -> "Model":
    """The encoder in evaluation mode as an OpenVINO graph: resized pictures [b, 3, height, width] -> [b, num_features].

    Values are 0..255 (uint8, or float32 where the resize gives that); normalizing them is part of the graph. b is free.
    encoder: on the CPU, its weights in float32; left as it was.
    Raises UserError where OpenVINO is not installed, or where it lacks an operation of the encoder.
    """
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    kind = torch.float32 if picture_input.resample == "tensorflow1" else torch.uint8
    example = torch.zeros(1, 3, picture_input.height, picture_input.width, dtype=kind)
    was_training = [module for module in encoder.modules() if module.training]
    encoder.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # tracing's: shapes and the normalization's constants are to be fixed
            whole = _FromPictures(encoder, picture_input).eval()
            traced = torch.jit.trace(whole, example, check_trace=False)  # type: ignore[no-untyped-call]
            # openvino.convert_model does the same and, where it fails, leaves other log settings behind.
            frontend = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(traced, example_input=example, shared_memory=False)
            model: Model = frontend.convert(frontend.load(decoder))
    except Exception as error:  # its own classes have no base but this, and tracing raises any
        reason = str(error).strip().splitlines()[-1].lstrip("- ")
        raise UserError(f"OpenVINO can't run the encoder {type(encoder).__name__} ({reason}); use PyTorch") from error
    finally:
        for module in was_training:
            module.training = True
    model.reshape([-1, 3, picture_input.height, picture_input.width])
    return model


class CompiledImageEncoder:
    """Pictures [b, 3, height, width] of the graph's type, values 0..255 -> float32 [b, num_features].

    Many threads may call it at once. What a picture is encoded with makes no difference to its features: requests are
    of one size, the last is filled up, and each is computed by one core.
    precision: of the arithmetic. threads: cores to use; None takes as many as PyTorch does.
    """

    def __init__(self, model: "Model", precision: Precision, threads: int | None = None) -> None:
        openvino = import_openvino()
        threads = threads or torch.get_num_threads()
        shape = model.input(0).get_partial_shape()
        shape[0] = REQUEST
        model = model.clone()
        model.reshape(shape)
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": threads,
                "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
            },
        )
        self._num_features = int(compiled.output(0).shape[1])
        self._idle: SimpleQueue[InferRequest] = SimpleQueue()
        for _ in range(threads):
            self._idle.put(compiled.create_infer_request())
        self._threads = ThreadPoolExecutor(threads)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        parts = [pictures[start : start + REQUEST] for start in range(0, len(pictures), REQUEST)]
        if len(parts) == 1:
            return self._request(parts[0])
        return np.concatenate([np.empty((0, self._num_features), np.float32), *self._threads.map(self._request, parts)])

    def _request(self, pictures: np.ndarray) -> np.ndarray:
        """Features of at most REQUEST pictures."""
        missing = REQUEST - len(pictures)
        filled = np.pad(pictures, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else np.ascontiguousarray(pictures)
        request = self._idle.get()
        try:
            request.infer([filled], share_inputs=True)
            features: np.ndarray = np.array(request.get_output_tensor(0).data[: len(pictures)], np.float32)
        finally:
            self._idle.put(request)
        return features


def cosines(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Between the rows of two arrays [n, d]: float64 [n] in -1..1."""
    first, second = features.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    values: np.ndarray = (first * second).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return values
