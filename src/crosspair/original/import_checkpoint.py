"""Import of a model that the original trained: its TensorFlow checkpoint and its vocabulary file.

The image tower, both projections and all batch-norm statistics come from their moving averages, the text tower, of
which the original kept none, from the plain variables: what the original's own test script restores.
"""

from pathlib import Path

import numpy as np

from crosspair.data.tokens import Vocabulary
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.formats.tensorflow_checkpoint import read_checkpoint
from crosspair.models.config import ImageEncoderConfig, ModelConfig, ProjectionConfig, TextEncoderConfig
from crosspair.models.slim import mobilenet as slim_mobilenet
from crosspair.models.slim import resnet as slim_resnet
from crosspair.models.slim.layers import norm_momentum
from crosspair.models.slim.variables import Variables, image_scope, load_tf_variables, model_variables

_EMBEDDING = "BiLSTM/token_embedding_weights"
_MOBILENET_WIDTHS = {32: "", 24: "_075", 16: "_050", 8: "_025"}  # channels of the first layer


def import_checkpoint(checkpoint: Path, word_counts: Path, *, ema: bool = True) -> DualEncoder:
    """The original's trained model, in evaluation mode; captions are read as its test script does, one at a time.

    checkpoint: prefix of a TensorFlow checkpoint, such as `model.ckpt-39`. word_counts: the `word_counts.txt` beside
    the TFRecords it was trained on. ema: take what has a moving average from there; False takes all as trained.
    Raises UserError for damaged files, for a checkpoint of another program, and for a vocabulary of another size.
    """
    variables = model_variables(read_checkpoint(checkpoint), ema=ema)
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


def read_word_counts(path: Path) -> Vocabulary:
    """The vocabulary of a `word_counts.txt`: two lines of header, then `word count` by falling count."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        words = [line.rsplit(maxsplit=1)[0] for line in lines[2:] if line.strip()]
        if not lines[:1] or not lines[0].startswith("Total words") or not words:
            raise ValueError("it does not begin with 'Total words'")
        # The special tokens are words to the original; here they are in lower case, as all words.
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
        text=TextEncoderConfig(word_dim=word_dim, hidden_dim=hidden_dim, tokenizer="original", special_tokens="start"),
        projection=ProjectionConfig(dim=dim, norm_eps=constants[0], norm_momentum=norm_momentum(constants[1])),
    )
