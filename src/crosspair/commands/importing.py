"""crosspair import: convert the original's TensorFlow checkpoint into a MODEL directory."""

from argparse import Namespace

from crosspair.original.import_checkpoint import import_checkpoint
from crosspair.storage.files import refuse_occupied


def run(options: Namespace) -> None:
    """Import the checkpoint and print what it is and where."""
    refuse_occupied(options.output, "the model")
    model = import_checkpoint(options.checkpoint, options.word_counts)
    model.save_pretrained(options.output)
    config = model.config
    words = len(model.vocabulary) - 2  # padding and the unknown word have numbers too
    print(
        f"{config.image.name}, BiLSTM of {config.text.hidden_dim} units a direction, {words:,} "
        f"words, {config.projection.dim} dimensions\nmodel: {options.output}"
    )
