"""OpenVINO: encoders converted and compiled for this machine's CPU, or read from an export.

encode = CompiledImageEncoder(convert_image_encoder(encoder, image_input), "bf16")
features = encode(images)  # uint8 [b, 3, height, width] -> float32 [b, num_features]
"""

import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from crosspair.data.transforms import ImageInput
from crosspair.encode.backends import Backend, Precision
from crosspair.encode.towers import ImageTower, PixelTower, TextTower, pixel_type
from crosspair.errors import UserError
from crosspair.models.dual_encoder import TwoTowers
from crosspair.registry import register_backend

if TYPE_CHECKING:
    from openvino import Core, InferRequest, Model

T = TypeVar("T")

# Images in one request: 1, 2 and 8 were no faster in bf16 on EfficientNet-Lite0, MobileNet-v1 and ResNet-152.
REQUEST = 4
CAPTIONS = 32  # captions in one request
IMAGE_ENCODER, TEXT_ENCODER = "image_encoder", "text_encoder"  # files of an export, with suffix .xml or .onnx

_core: "Core | None" = None
_core_lock = Lock()


def import_openvino() -> Any:
    """The module `openvino`. Raises UserError where it is not installed."""
    # Left to itself it reports every import over the network; without this module it uses its own stand-in.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise UserError("OpenVINO is not installed; run: pip install 'crosspair[openvino]'") from error
    return openvino


def openvino_core() -> "Core":
    """The only Core of this process, which stays until it ends. Raises UserError where OpenVINO is not installed.

    A Core gives the thread that first uses its CPU a stack for signal handlers, and frees that stack when it is freed:
    in use still, if another thread does so or if a later Core put its own stack there. The next Ctrl-C or SIGTERM that
    Python handles is then a segmentation fault. A Core that is never freed takes no stack away.
    """
    global _core
    openvino = import_openvino()
    with _core_lock:
        if _core is None:
            _core = openvino.Core()
        return _core


def openvino_precisions() -> list[Precision]:
    """Precisions that this CPU is fast in, the fastest first; none where OpenVINO is not installed."""
    try:
        openvino = import_openvino()
    except UserError:
        return []
    # The plugin's own choice is bf16 where the processor has instructions for it, not where they are imitated.
    native = openvino_core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    return ["bf16", "f32"] if native == openvino.Type.bf16 else ["f32"]


def convert_image_encoder(encoder: nn.Module, image_input: ImageInput, name: str = "") -> "Model":
    """The encoder in evaluation mode as an OpenVINO graph: resized images [b, 3, height, width] -> [b, num_features].

    Values are 0..255 (uint8, or float32 where the resize gives that); normalizing them is part of the graph. b is free.
    encoder: on the CPU, its weights in float32; left as it was. name: for errors, by default that of its class.
    Raises UserError where OpenVINO is not installed, or where it lacks an operation of the encoder.
    """
    example = torch.zeros(1, 3, image_input.height, image_input.width, dtype=pixel_type(image_input))
    name = name or type(encoder).__name__
    model = _convert(PixelTower(encoder, image_input), [example], name)
    try:
        model.reshape([-1, 3, image_input.height, image_input.width])
    except RuntimeError as error:  # of an operation that OpenVINO has, but not for these sizes
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"OpenVINO can't run the encoder {name} ({reason}); use PyTorch") from error
    return model


def convert_text_encoder(encoder: nn.Module, name: str = "") -> "Model":
    """A text encoder in evaluation mode as an OpenVINO graph: tokens int64 [m, t], lengths int64 [m] -> [m, d].

    m and t are free. encoder: as for `convert_image_encoder`, and computing on padded captions (`TextTower`).
    """
    examples = [torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 2])]
    model = _convert(encoder, examples, name or type(encoder).__name__)
    tokens, lengths = model.inputs
    model.reshape({tokens: [-1, -1], lengths: [-1]})
    return model


def _convert(whole: nn.Module, examples: list[Tensor], name: str) -> "Model":
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    was_training = [module for module in whole.modules() if module.training]
    whole.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # tracing's: shapes and the normalization's constants are to be fixed
            traced = torch.jit.trace(whole, tuple(examples), check_trace=False)  # type: ignore[no-untyped-call]
            # openvino.convert_model does the same and, where it fails, leaves other log settings behind.
            frontend = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(traced, example_input=tuple(examples), shared_memory=False)
            model: Model = frontend.convert(frontend.load(decoder))
    except Exception as error:  # its own classes have no base but this, and tracing raises any
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].lstrip("- ")
        raise UserError(f"OpenVINO can't run the encoder {name} ({reason}); use PyTorch") from error
    finally:
        for module in was_training:
            module.training = True
    return model


class _Requests:
    """A compiled graph that many threads may ask at once; each request is computed by one core."""

    def __init__(self, model: "Model", precision: Precision, threads: int | None) -> None:
        threads = threads or torch.get_num_threads()
        compiled = openvino_core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": threads,
                "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
            },
        )
        self.width = compiled.output(0).get_partial_shape()[1].get_length()
        self._idle: SimpleQueue[InferRequest] = SimpleQueue()
        for _ in range(threads):
            self._idle.put(compiled.create_infer_request())
        self._threads = ThreadPoolExecutor(threads)

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """The output, float32 [rows, width], of one request."""
        request = self._idle.get()
        try:
            request.infer([np.ascontiguousarray(values) for values in inputs], share_inputs=True)
            return np.array(request.get_output_tensor(0).data, np.float32)
        finally:
            self._idle.put(request)

    def map(self, function: Callable[[T], np.ndarray], parts: list[T]) -> list[np.ndarray]:
        """function(part) of all parts, in threads where there are several."""
        return [function(part) for part in parts] if len(parts) == 1 else list(self._threads.map(function, parts))


class CompiledImageEncoder:
    """Images [b, 3, height, width] of the graph's type, values 0..255 -> float32 [b, num_features].

    Many threads may call it at once. What an image is encoded with makes no difference to its features: requests are
    of one size, the last is filled up, and each is computed by one core.
    precision: of the arithmetic. threads: cores to use; None takes as many as PyTorch does.
    """

    def __init__(self, model: "Model", precision: Precision, threads: int | None = None) -> None:
        shape = model.input(0).get_partial_shape()
        shape[0] = REQUEST
        model = model.clone()
        model.reshape(shape)
        self._requests = _Requests(model, precision, threads)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        parts = [images[start : start + REQUEST] for start in range(0, len(images), REQUEST)]
        return np.concatenate(
            [np.empty((0, self._requests.width), np.float32), *self._requests.map(self._encode, parts)]
        )

    def _encode(self, images: np.ndarray) -> np.ndarray:
        """Features of at most REQUEST images."""
        missing = REQUEST - len(images)
        filled = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else images
        return self._requests(filled)[: len(images)]


class CompiledTextEncoder:
    """tokens int64 [m, t] padded at the end, lengths int64 [m], at least 1 -> float32 [m, d]. Threads as above."""

    def __init__(self, model: "Model", precision: Precision, threads: int | None = None) -> None:
        self._requests = _Requests(model, precision, threads)

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        order = np.argsort(lengths, kind="stable")  # captions of about one length together: little padding

        def encode(rows: np.ndarray) -> np.ndarray:
            # One word of padding stays behind all but the longest captions, for encoders that look at it.
            width = min(int(lengths[rows].max()) + 1, tokens.shape[1])
            return self._requests(tokens[rows, :width], lengths[rows])

        features = np.empty((len(tokens), self._requests.width), np.float32)
        parts = [order[start : start + CAPTIONS] for start in range(0, len(order), CAPTIONS)]
        for rows, part in zip(parts, self._requests.map(encode, parts), strict=True):
            features[rows] = part
        return features


@register_backend("openvino")
class OpenVINOBackend(Backend):
    """A model's encoders compiled by OpenVINO for the cores of this machine, in bfloat16 or float32.

    Each is compiled when it is first needed.

    network: on the CPU, its weights in float32. threads: None takes as many as PyTorch does. graphs: of both encoders
    with their projections, as an export has them, in place of the network's own.
    """

    precisions = ("f32", "bf16")
    cpu_only = True
    in_threads = True

    def __init__(
        self,
        network: TwoTowers | None,
        precision: Precision = "f32",
        *,
        threads: int | None = None,
        graphs: "tuple[Model, Model] | None" = None,
    ) -> None:
        self.name = f"openvino-{precision}"
        self._network = network
        self._precision: Precision = precision
        self._threads = threads
        self._features: CompiledImageEncoder | None = None
        self._images: CompiledImageEncoder | None = None
        self._tokens: CompiledTextEncoder | None = None
        if graphs is not None:
            self._images = CompiledImageEncoder(graphs[0], precision, threads)
            self._tokens = CompiledTextEncoder(graphs[1], precision, threads)

    @classmethod
    def fast_precisions(cls) -> list[Precision]:
        return openvino_precisions()

    @classmethod
    def of_export(cls, directory: Path, precision: Precision) -> Backend:
        return cls(None, precision, graphs=read_graphs(directory))

    def prepare(self, *, texts: bool = False) -> None:
        if self._network is not None and self._features is None:
            name = self._network.config.image.name
            graph = convert_image_encoder(self._network.image_encoder, self._network.image_input, name)
            self._features = CompiledImageEncoder(graph, self._precision, self._threads)
        if texts and self._network is not None and self._tokens is None:
            text_graph = convert_text_encoder(TextTower(self._network), self._network.config.text.name)
            self._tokens = CompiledTextEncoder(text_graph, self._precision, self._threads)

    def group(self, views: int = 1) -> int:
        return REQUEST // views

    def image_features(self, images: Tensor, views: int = 1) -> np.ndarray:
        assert self._features is not None
        seen = torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1) if views == 2 else images
        features: np.ndarray = self._features(seen.numpy()).reshape(len(images), views, -1)
        return features

    def encode_images(self, images: Tensor) -> Tensor:
        if self._images is not None:
            return torch.from_numpy(self._images(images.numpy()))
        assert self._network is not None
        return self._network.encode_image_features(torch.from_numpy(self.image_features(images)[:, 0]))

    def encode_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        assert self._tokens is not None
        return torch.from_numpy(self._tokens(tokens.numpy(), lengths.numpy()))


def convert_encoders(network: TwoTowers) -> tuple["Model", "Model"]:
    """The image encoder and the text encoder, with their projections, as OpenVINO graphs.

    Raises UserError where OpenVINO is not installed, or where it lacks an operation of an encoder.
    """
    image_encoder = convert_image_encoder(ImageTower(network), network.image_input, network.config.image.name)
    text_encoder = convert_text_encoder(TextTower(network), network.config.text.name)
    for graph, names in ((image_encoder, ["pixels"]), (text_encoder, ["tokens", "lengths"])):
        for port, name in zip([*graph.inputs, *graph.outputs], [*names, "embeddings"], strict=True):
            port.get_tensor().set_names({name})
    return image_encoder, text_encoder


def write_openvino(network: TwoTowers, directory: Path) -> None:
    """Write both encoders as image_encoder.xml and text_encoder.xml, each with its .bin."""
    openvino = import_openvino()
    for name, graph in zip((IMAGE_ENCODER, TEXT_ENCODER), convert_encoders(network), strict=True):
        openvino.save_model(graph, directory / f"{name}.xml", compress_to_fp16=False)


def read_graphs(directory: Path) -> tuple["Model", "Model"]:
    """The graphs of an export to either format. Raises UserError where they are missing or damaged."""
    core = openvino_core()

    def read(name: str) -> Any:
        found = [path for path in (directory / f"{name}.xml", directory / f"{name}.onnx") if path.is_file()]
        try:
            return core.read_model(found[0])
        except (IndexError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1] if found else "it is missing"
            raise UserError(f"can't read {name} of {directory} ({reason}); export the model again") from error

    return read(IMAGE_ENCODER), read(TEXT_ENCODER)
