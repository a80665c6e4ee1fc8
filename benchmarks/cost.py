"""What a recipe costs: operations, memory and measured throughput of its steps, and from that the hours on one GPU.

    python benchmarks/cost.py flickr30k-best --images 29000 [--words 13] [--measured 8] [--steps 3]

A step of the recipe's last stage is run here with a few images (weights are random: no hub is needed) and timed, its
floating-point operations are counted, forward and backward, and so are the bytes that it keeps for the backward pass.
A GPU's hours are the operations of all steps over its peak times the share of the peak that training reaches; not in
them are validation, and waiting where the images are not decoded fast enough.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from crosspair.encode.model import DualEncoder
from crosspair.encode.pretrained_text import create_transformer
from crosspair.models.config import TextEncoderConfig
from crosspair.models.transformer_text import TransformerTextEncoder
from crosspair.training.layers import freeze_for_stage
from crosspair.training.recipe import Recipe, StageConfig
from crosspair.training.recipe_files import load_recipe

H100 = 989e12  # dense bf16 operations a second, NVIDIA's data sheet of the SXM module
SHARE = 0.08  # of the peak. Cautious: convolutions are bound by memory; transformers reach three to four times that
BYTES_A_WEIGHT = 20  # float32: weight, gradient, Adam's two moments, average


def text_encoder(config: TextEncoderConfig) -> TransformerTextEncoder:
    """The recipe's text encoder without weights: from a package, or of CLIP's published shape."""
    if config.name.startswith("openai/clip-vit-base"):
        from transformers import CLIPTextConfig

        shape = CLIPTextConfig()
        architecture = {**shape.to_dict(), "model_type": "clip_text_model"}
        return TransformerTextEncoder(architecture, config.pooling)
    return create_transformer(replace(config, weights="package"))[0]


class Step:
    """Forward and backward of a stage's step with b images."""

    def __init__(self, recipe: Recipe, stage: StageConfig, images: int, words: int) -> None:
        image = replace(recipe.model.image, weights="none")
        vocabulary = range(1000)
        encoder = text_encoder(recipe.model.text)
        self.model = DualEncoder(replace(recipe.model, image=image), vocabulary, text_encoder=encoder)  # type: ignore[arg-type]
        freeze_for_stage(self.model, stage)
        size = (self.model.image_input.height, self.model.image_input.width)
        self.images = torch.randint(0, 256, (images, 3, *size), dtype=torch.uint8)
        captions = images * stage.captions_per_image
        self.tokens = torch.randint(4, 1000, (captions, words))
        self.lengths = torch.full((captions,), words)

    def run(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            images, texts = self.model(self.tokens, self.lengths, images=self.images)
        (texts @ images.T).square().mean().backward()

    def kept_bytes(self) -> int:
        """What the forward pass keeps for the backward pass, weights aside."""
        weights = {value.untyped_storage().data_ptr() for value in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            self.run()
        return sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a built-in name or a file, with a transformer as its text encoder")
    parser.add_argument("--images", type=int, required=True, help="of the training set")
    parser.add_argument("--words", type=int, default=13, help="tokens of a caption, on average (default 13)")
    parser.add_argument("--measured", type=int, default=8, help="pictures of the steps that are run here (default 8)")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed here (default 3)")
    options = parser.parse_args()
    name = options.recipe
    recipe = load_recipe(name)
    stage = recipe.stage2
    if stage.epoch_covers != "images" or stage.captions_per_image == 0:
        parser.error(f"the epochs of {name} don't draw each picture once with so many captions; name another recipe")
    step = Step(recipe, stage, options.measured, options.words)
    kept = step.kept_bytes()
    counter = FlopCounterMode(display=False)
    with counter:
        step.run()
    operations = counter.get_total_flops() * stage.batch_size / options.measured
    times = []
    for _ in range(options.steps):
        start = time.perf_counter()
        step.run()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    steps = stage.epochs * (options.images // stage.batch_size)
    trained = sum(value.numel() for value in step.model.parameters() if value.requires_grad)
    captions = stage.captions_per_image
    memory = BYTES_A_WEIGHT * trained + kept * stage.batch_size / options.measured
    print(f"{Path(name).stem}, stage 2: {stage.batch_size} pictures and {stage.batch_size * captions} captions a step")
    print(
        f"  here ({torch.get_num_threads()} threads): {options.measured / seconds:.2f} pictures and "
        f"{options.measured * captions / seconds:.2f} captions a second, "
        f"{counter.get_total_flops() / seconds / 1e9:.0f} G operations a second"
    )
    print(f"  {operations / 1e12:.2f} T operations a step, {steps:,} steps: {operations * steps / 1e15:,.0f} P")
    each = f"{kept / options.measured / 1e6:.0f} MB a picture with its captions"
    weights = f"{trained / 1e6:.0f} M trained weights x {BYTES_A_WEIGHT} bytes"
    print(f"  memory: {weights} + {each} x {stage.batch_size} = {memory / 1e9:.1f} GB")
    rate = H100 * SHARE
    hours, decoded = operations * steps / rate / 3600, stage.batch_size * rate / operations
    print(
        f"  one H100: {operations * steps / 1e15:,.0f} P / ({H100 / 1e12:.0f} T/s x {SHARE}) = {hours:.2f} h; "
        f"{decoded:,.0f} pictures a second to decode"
    )


if __name__ == "__main__":
    main()
