"""A model from what the original trained: its TensorFlow checkpoint and its vocabulary file.

The image tower, both projections and all batch-norm statistics come from their moving averages, the text tower, of
which the original kept none, from the plain variables: what the original's own test script restores.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from cmpl.data.text import Vocabulary
from cmpl.errors import UserError
from cmpl.legacy import slim_mobilenet, slim_resnet
from cmpl.legacy.checkpoint import read_checkpoint
from cmpl.legacy.slim_layers import norm_momentum
from cmpl.legacy.variables import load_tf_variables
from cmpl.models.config import ImageEncoderConfig, ModelConfig, ProjectionConfig, TextEncoderConfig
from cmpl.models.dual_encoder import DualEncoder

Variables = Mapping[str, np.ndarray]

_AVERAGE = "ExponentialMovingAverage"
# Last part of a variable's name that an optimizer or the averages own.
_SLOTS = {"Adam", "Adam_1", "Momentum", "RMSProp", "RMSProp_1", _AVERAGE}
_IMAGE_SCOPES = ("MobilenetV1", "resnet_v1_50", "resnet_v1_101", "resnet_v1_152")
_CLASSIFIER_PARTS = {"Logits", "logits", "mean_rgb"}
_EMBEDDING = "BiLSTM/token_embedding_weights"
_MOBILENET_WIDTHS = {32: "", 24: "_075", 16: "_050", 8: "_025"}  # channels of the first layer


def import_checkpoint(checkpoint: Path, word_counts: Path, *, averages: bool = True) -> DualEncoder:
    """The original's trained model, in evaluation mode; captions are read as its test script does, one at a time.

    checkpoint: prefix of a TensorFlow checkpoint, such as `model.ckpt-39`. word_counts: the `word_counts.txt` beside
    the TFRecords it was trained on. averages: take what has a moving average from there; False takes all as trained.
    Raises UserError for damaged files, for a checkpoint of another program, and for a vocabulary of another size.
    """
    variables = model_variables(read_checkpoint(checkpoint), averages=averages)
    scope = image_scope(variables, checkpoint)
    if _EMBEDDING not in variables:
        raise UserError(f"{checkpoint} has no {_EMBEDDING}; expected a checkpoint of the original's training")
    vocabulary = read_word_counts(word_counts)
    variables[_EMBEDDING] = _embedding_rows(variables[_EMBEDDING], vocabulary, word_counts)
    model = DualEncoder(_config(variables, scope), vocabulary)
    load_tf_variables(model.image_encoder, variables, scope)
    load_tf_variables(model.text_encoder, variables, "BiLSTM")
    load_tf_variables(model.image_projection, variables, "joint_embedding/image_joint_embedding")
    load_tf_variables(model.text_projection, variables, "joint_embedding/text_joint_embedding")
    return model.eval()


def load_slim_checkpoint(encoder: nn.Module, checkpoint: Path) -> None:
    """Fill one of the original's image towers from TF-slim's ImageNet checkpoint, whose classifier is left out.

    checkpoint: the V1 file (`resnet_v1_152.ckpt`) or the prefix of the V2 files (`mobilenet_v1_1.0_224.ckpt`).
    Raises UserError for damaged files and for a checkpoint of another tower.
    """
    variables = model_variables(read_checkpoint(checkpoint), averages=False)
    load_tf_variables(encoder, variables, image_scope(variables, checkpoint))


def model_variables(checkpoint: Variables, *, averages: bool) -> dict[str, np.ndarray]:
    """The variables a model consists of, without the optimizer's and an ImageNet classifier's.

    averages: give a variable that has a moving average its value, under the plain name.
    """
    variables = {}
    for name in checkpoint:
        parts = name.split("/")
        if parts[-1] in _SLOTS or _CLASSIFIER_PARTS & set(parts):
            continue
        average = f"{name}/{_AVERAGE}"
        variables[name] = checkpoint[average if averages and average in checkpoint else name]
    return variables


def image_scope(variables: Variables, checkpoint: Path) -> str:
    """Scope of the image tower, which is also its name in TF-slim."""
    found = sorted({name.split("/")[0] for name in variables} & set(_IMAGE_SCOPES))
    if len(found) != 1:
        raise UserError(
            f"{checkpoint} has variables of {' and '.join(found) or 'no known image tower'}; "
            f"expected one of {', '.join(_IMAGE_SCOPES)}"
        )
    return found[0]


def read_word_counts(path: Path) -> Vocabulary:
    """The vocabulary of a `word_counts.txt`: two lines of header, then `word count` by falling count."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        words = [line.rsplit(maxsplit=1)[0] for line in lines[2:] if line.strip()]
        if not lines[:1] or not lines[0].startswith("Total words") or not words:
            raise ValueError("it does not begin with 'Total words'")
        # The markers are words to the original; here they are in lower case, as all words.
        return Vocabulary([word.lower() if word in ("<START>", "<END>") else word for word in words])
    except (OSError, ValueError) as error:
        raise UserError(
            f"can't read the vocabulary {path} ({error}); expected the word_counts.txt of the original's converter"
        ) from error


def _embedding_rows(embedding: np.ndarray, vocabulary: Vocabulary, word_counts: Path) -> np.ndarray:
    """The embedding table in our order: padding, unknown word (the original's last row), words."""
    words = len(vocabulary.words)
    if embedding.ndim != 2 or len(embedding) != words + 1:
        raise UserError(
            f"{word_counts} has {words} words and the checkpoint's word embedding {list(embedding.shape)}; expected "
            f"{words + 1} rows, give the word_counts.txt that the checkpoint was trained with"
        )
    padding = np.zeros_like(embedding[:1])
    return np.concatenate([padding, embedding[words:], embedding[:words]])


def _config(variables: Variables, scope: str) -> ModelConfig:
    try:
        if scope == "MobilenetV1":
            width = variables[f"{scope}/Conv2d_0/weights"].shape[3]
            name = f"slim_mobilenet_v1{_MOBILENET_WIDTHS[width]}"
            constants = slim_mobilenet.NORM_EPSILON, slim_mobilenet.NORM_DECAY
        else:
            name = f"slim_{scope}"
            constants = slim_resnet.NORM_EPSILON, slim_resnet.NORM_DECAY
        word_dim = variables[_EMBEDDING].shape[1]
        hidden_dim = variables["BiLSTM/bidirectional_lstm/forward/init_state_0"].shape[0]
        dim = variables["joint_embedding/image_joint_embedding/weights"].shape[3]
    except (KeyError, IndexError) as error:
        raise UserError(
            f"the checkpoint's sizes can't be told ({error!r}); expected the original's variables"
        ) from error
    return ModelConfig(
        image=ImageEncoderConfig(name=name, weights="none", resample="tensorflow1"),
        text=TextEncoderConfig(word_dim=word_dim, hidden_dim=hidden_dim, markers="start"),
        projection=ProjectionConfig(dim=dim, norm_eps=constants[0], norm_momentum=norm_momentum(constants[1])),
    )
