"""Import of a model that the original trained: its TensorFlow checkpoint and its vocabulary file.

The image tower, both projections and all batch-norm statistics come from their moving averages, the text tower, of
which the original kept none, from the plain variables: what the original's own test script restores.
"""

import re
import string
from pathlib import Path

import numpy as np

from crosspair.data.tokens import Tokenizer, Vocabulary
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.formats.tensorflow_checkpoint import read_checkpoint
from crosspair.models.config import ImageEncoderConfig, ModelConfig, ProjectionConfig, TextEncoderConfig
from crosspair.models.slim import mobilenet as slim_mobilenet
from crosspair.models.slim import resnet as slim_resnet
from crosspair.models.slim.layers import norm_momentum
from crosspair.models.slim.variables import Variables, image_scope, load_tf_variables, model_variables

_EMBEDDING = "BiLSTM/token_embedding_weights"
_EMBEDDING_MOMENT = f"{_EMBEDDING}/Adam_1"  # Adam's mean of squared gradients: 0 in the rows that no caption used
_HEADER = re.compile("Total words: [0-9]+ *\nWords in vocabulary: ([0-9]{1,9}) *")
_WORD_COUNT = re.compile("(.*) ([0-9]+) *", re.DOTALL)
_MOBILENET_WIDTHS = {32: "", 24: "_075", 16: "_050", 8: "_025"}  # channels of the first layer


def import_checkpoint(checkpoint: Path, word_counts: Path, *, ema: bool = True) -> DualEncoder:
    """The original's trained model, in evaluation mode; captions are read as its test script does, one at a time.

    checkpoint: prefix of a TensorFlow checkpoint, such as `model.ckpt-39`. word_counts: the `word_counts.txt` beside
    the TFRecords it was trained on. ema: take what has a moving average from there; False takes all as trained.
    Raises UserError for damaged files, for a checkpoint of another program, and for a vocabulary that can't be its own.
    """
    stored = read_checkpoint(checkpoint)
    variables = model_variables(stored, ema=ema)
    scope = image_scope(variables, checkpoint)
    if _EMBEDDING not in variables:
        raise UserError(f"{checkpoint} has no {_EMBEDDING}; expected a checkpoint of the original's training")
    vocabulary = read_word_counts(word_counts)
    _refuse_other_vocabulary(variables[_EMBEDDING], stored.get(_EMBEDDING_MOMENT), vocabulary, word_counts)
    variables[_EMBEDDING] = _embedding_rows(variables[_EMBEDDING], vocabulary)
    model = DualEncoder(_config(variables, scope, _tokenizer(vocabulary)), vocabulary)
    load_tf_variables(model.image_encoder, variables, scope)
    load_tf_variables(model.text_encoder, variables, "BiLSTM")
    load_tf_variables(model.image_projection, variables, "joint_embedding/image_joint_embedding")
    load_tf_variables(model.text_projection, variables, "joint_embedding/text_joint_embedding")
    return model.eval()


def read_word_counts(path: Path) -> Vocabulary:
    """The vocabulary of a `word_counts.txt`: two lines of header, then `word count` by falling count.

    Raises UserError for another file, and for one that has not as many words as its header says.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a word may hold other ends of lines
        header = _HEADER.fullmatch("\n".join(lines[:2]))
        if not header:
            raise ValueError("it does not begin with 'Total words' and 'Words in vocabulary'")
        entries = [_WORD_COUNT.fullmatch(line) for line in lines[2:] if line]
        words = [entry[1] for entry in entries if entry]
        if len(words) < len(entries) or len(words) != int(header[1]):
            raise ValueError(f"it has {len(words):,} lines of a word and its count, and its header says {header[1]}")
        # The special tokens are words to the original; here they are in lower case, as all words.
        return Vocabulary([word.lower() if word in ("<START>", "<END>") else word for word in words])
    except (OSError, ValueError) as error:
        raise UserError(
            f"can't read the vocabulary {path} ({error}); expected the word_counts.txt of the original's converter"
        ) from error


def _refuse_other_vocabulary(
    embedding: np.ndarray, moment: np.ndarray | None, vocabulary: Vocabulary, word_counts: Path
) -> None:
    """Raises UserError for a vocabulary that the embedding has no rows for, or that lacks words it was trained on.

    moment: Adam's second moment of the embedding, where the checkpoint has it.
    """
    words, shape = len(vocabulary.words), list(embedding.shape)
    if embedding.ndim != 2 or len(embedding) <= words:
        raise UserError(
            f"{word_counts} has {words:,} words and the checkpoint's word embedding the shape {shape}; expected at "
            f"least {words + 1:,} rows, give the word_counts.txt that the checkpoint was trained with"
        )
    if moment is not None and moment.shape == embedding.shape and np.any(moment[words + 1 :]):
        last = int(np.flatnonzero(moment.any(axis=1))[-1])
        raise UserError(
            f"{word_counts} has {words:,} words, and the checkpoint was trained with word number {last:,}; give the "
            "word_counts.txt that the checkpoint was trained with"
        )


def _embedding_rows(embedding: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The embedding table in our order: padding, unknown word, words.

    The original's has the words first and then the unknown word. The rows behind them, up to its flag --vocab_size
    (12,000 in its scripts), were never used and are left out.
    """
    words = len(vocabulary.words)
    padding = np.zeros_like(embedding[:1])
    return np.concatenate([padding, embedding[words : words + 1], embedding[:words]])


def _tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """How the converter split captions: that for CUHK-PEDES deleted punctuation, the others took Karpathy's words.

    His have punctuation in some, such as 's and n't of Flickr30k.
    """
    words = (word for word in vocabulary.words if word not in ("<start>", "<end>"))
    return "stored" if any(set(word) & set(string.punctuation) for word in words) else "original"


def _config(variables: Variables, scope: str, tokenizer: Tokenizer) -> ModelConfig:
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
        text=TextEncoderConfig(word_dim=word_dim, hidden_dim=hidden_dim, tokenizer=tokenizer, special_tokens="start"),
        projection=ProjectionConfig(dim=dim, norm_eps=constants[0], norm_momentum=norm_momentum(constants[1])),
    )
