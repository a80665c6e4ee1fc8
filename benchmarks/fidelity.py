"""What each of the original's peculiarities costs or brings on Flickr8k val: the table of docs/fidelity.md, "Effects".

    python benchmarks/fidelity.py --data flickr8k --output runs/fidelity [--only NAME ...] [--seeds 0 1 2]

Every variant is the recipe flickr8k-lite0 with the settings of BASE, one field changed, on the same data and seeds.
Finished runs in OUTPUT are read, not trained again, so the script can be stopped and started at any time.
"""

import argparse
import statistics
from pathlib import Path

from crosspair.data.dataset import open_data
from crosspair.training.log import read_metrics
from crosspair.training.loop import train
from crosspair.training.recipe_files import load_recipe
from crosspair.training.run import finished

BASE = [
    *("--model.text.word_dim", "256", "--model.text.hidden_dim", "256"),
    *("--hflip", "false", "--stage1.epochs", "4", "--stage2.epochs", "0"),
]
VARIANTS: dict[str, list[str]] = {
    "corrected": [],
    "padding in the maximum": ["--model.text.pool_padding", "true"],
    "moving frozen batch norm": ["--stage1.freeze_bn_stats", "false"],
    "EMA of the image side": ["--ema.parts", "image"],
    "EMA before the update": ["--ema.before_update", "true"],
    "decay of convolutions alone": ["--optimizer.decay", "convolutions"],
    "TensorFlow's Adam": ["--optimizer.name", "tensorflow-adam"],
    "dropout of image features": ["--model.image.feature_dropout", "0.001"],
    "start token": ["--model.text.special_tokens", "start"],
    "epsilon in the logarithm": ["--loss.cmpm.ratio_epsilon", "1e-8"],
    "TF-slim's initial projection": ["--model.projection.initializer", "slim_mobilenet_v1"],
    "initial word embedding and states": ["--model.text.initializer", "original"],
    "stored words": ["--model.text.tokenizer", "stored"],
    "words without punctuation": ["--model.text.tokenizer", "original"],
    "TensorFlow's resize": ["--model.image.resample", "tensorflow1"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    for name in options.only:
        for seed in options.seeds:
            measure(name, seed, options.data, options.output)
    print_table(options.output)


def measure(name: str, seed: int, data: Path, output: Path) -> None:
    """Train one variant, or go on with it, unless it is finished."""
    run = run_directory(output, name, seed)
    if not finished(run):
        recipe = load_recipe("flickr8k-lite0", [*BASE, *VARIANTS[name], "--seed", str(seed)])
        train(recipe, open_data(data), run, resume=(run / "recipe.yaml").is_file())


def run_directory(output: Path, name: str, seed: int) -> Path:
    return output / f"{name.replace(' ', '-')}-{seed}"


def last_values(run: Path) -> dict[str, tuple[float, float, float]]:
    """R@1 image to text, R@1 text to image and rsum on val after the last epoch, of raw weights and of their EMA."""
    rows = [row for row in read_metrics(run) if row["kind"] == "val"][-2:]
    return {row["weights"]: (row["image_to_text"]["R@1"], row["text_to_image"]["R@1"], row["rsum"]) for row in rows}


def print_table(output: Path) -> None:
    """Mean over the seeds at hand after the last epoch; the difference is to the corrected form on the same seeds."""
    print("| variant | seeds | R@1 image to text | R@1 text to image | rsum, raw | rsum, EMA | difference |")
    print("|---|---|---|---|---|---|---|")
    for name in VARIANTS:
        seeds = [seed for seed in range(100) if finished(run_directory(output, name, seed))]
        if not seeds:
            continue
        values = [last_values(run_directory(output, name, seed)) for seed in seeds]
        means = {
            weights: [statistics.mean(value[weights][column] for value in values) for column in range(3)]
            for weights in ("raw", "ema")
        }
        reference = [
            last_values(run_directory(output, "corrected", seed))["ema"][2]
            for seed in seeds
            if finished(run_directory(output, "corrected", seed))
        ]
        differences = [value["ema"][2] - base for value, base in zip(values, reference, strict=False)]
        difference = f"{statistics.mean(differences):+.1f}" if differences and name != "corrected" else ""
        if len(differences) > 1 and difference:
            difference += f" ± {statistics.stdev(differences):.1f}"
        columns = [*means["ema"][:2], means["raw"][2], means["ema"][2]]
        cells = [name, str(len(seeds)), *(f"{value:.1f}" for value in columns), difference]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
