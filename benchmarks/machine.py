"""An image encoder's training step by layout, precision and torch.compile, in one run, alternating.

    python benchmarks/machine.py [--encoders tf_efficientnet_lite0 mobilenetv1_100] [--rounds 5] [--compile]

8 images of 224 x 224, forward and backward, on one core (or --device cuda). Prints the least time of each way (on a
CPU its own time) and how many times as fast as float32 channels first it is; --compile adds the compiled encoder and
what compiling it took (minutes).
"""

import argparse
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

IMAGES = 8


def encoder(name: str, channels_last: bool, compiled: bool, device: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0).train().to(device)
    model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if compiled:
        model.compile()
    return model


def seconds(model: nn.Module, images: Tensor, bf16: bool) -> float:
    clock = time.perf_counter if images.is_cuda else time.process_time  # other work on the machine takes no part
    start = clock()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        features = model(images)
    features.float().square().mean().backward()
    model.zero_grad()
    if images.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["tf_efficientnet_lite0", "mobilenetv1_100"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randn(IMAGES, 3, 224, 224, device=options.device)
    for name in options.encoders:
        ways: dict[str, Callable[[], float]] = {}
        for layout, channels_last in (("channels first", False), ("channels last", True)):
            for kind in ("", ", compiled") if options.compile and channels_last else ("",):
                model = encoder(name, channels_last, bool(kind), options.device)
                form = torch.channels_last if channels_last else torch.contiguous_format
                laid_out = images.contiguous(memory_format=form)
                for precision, bf16 in (("float32", False), ("bf16", True)):
                    ways[f"{layout}, {precision}{kind}"] = lambda m=model, p=laid_out, b=bf16: seconds(m, p, b)
        for way, run in ways.items():
            first = run()
            if "compiled" in way:
                print(f"{name}: {way}: first step {first:.1f} s")
        times = dict.fromkeys(ways, float("inf"))
        for _ in range(options.rounds):
            times = {way: min(times[way], run()) for way, run in ways.items()}
        slowest = times["channels first, float32"]
        for way, least in times.items():
            ratio = f"{slowest / least:.2f} times float32 channels first"
            print(f"{name}: {way}: {IMAGES / least:.1f} images/s, {ratio}")


if __name__ == "__main__":
    main()
