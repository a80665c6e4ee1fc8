"""How images and sentences become the inputs of an exported model's graphs, for a program in any language."""

from typing import Any

from crosspair.data.tokens import PADDING, UNKNOWN, SubwordTokenizer, Vocabulary, word_rules
from crosspair.data.transforms import ImageInput
from crosspair.models.config import ModelConfig, TextEncoderConfig


def describe_preprocessing(
    config: ModelConfig, image_input: ImageInput, vocabulary: Vocabulary | SubwordTokenizer
) -> dict[str, Any]:
    """From an image's file and a sentence to the inputs of the two graphs, and what comes out."""
    return {
        "image_encoder": {
            "image": "RGB; upright, by its EXIF orientation; transparency over white",
            "resize": _resize(image_input),
            "inputs": {
                "pixels": {
                    "type": "float32" if image_input.resample == "tensorflow1" else "uint8",
                    "shape": ["images", 3, image_input.height, image_input.width],
                    "values": "0..255",
                }
            },
            "in_the_graph": {
                "normalize": "(value / 255 - mean) / std of each colour",
                "mean": image_input.mean,
                "std": image_input.std,
            },
        },
        "text_encoder": {
            "tokenizer": _tokenizer(config.text, vocabulary),
            "inputs": {
                "tokens": {
                    "type": "int64",
                    "shape": ["captions", "words"],
                    "values": f"numbers of the tokens; behind a caption's end {PADDING}",
                },
                "lengths": {"type": "int64", "shape": ["captions"], "values": "numbers of tokens, 1 at least"},
            },
        },
        "output": {
            "embeddings": {"type": "float32", "shape": ["pictures or captions", config.projection.dim]},
            "length": 1.0,
            "similarity": "dot product",
        },
    }


def _resize(image_input: ImageInput) -> dict[str, Any]:
    size = {"height": image_input.height, "width": image_input.width, "keep_aspect_ratio": False}
    if image_input.resample == "tensorflow1":
        rule = "value at (y * h / height, x * w / width) of the corners' grid, as TensorFlow 1's resize_bilinear"
        return {**size, "interpolation": "bilinear", "antialias": False, "grid": rule, "rounded": False}
    return {**size, "interpolation": "bilinear", "antialias": True, "grid": "half pixels", "rounded": True}


def _tokenizer(text: TextEncoderConfig, vocabulary: Vocabulary | SubwordTokenizer) -> dict[str, Any]:
    if not isinstance(vocabulary, Vocabulary):
        longest = min(text.max_words, vocabulary.longest)
        kind = {"kind": "Hugging Face tokenizers", "file": vocabulary.FILE, "max_tokens": longest}
        return {**kind, "filled_with": vocabulary.filler} if vocabulary.fixed_length else kind
    return {
        "kind": "words",
        "file": vocabulary.FILE,
        **word_rules(text.tokenizer, text.special_tokens, text.max_words),
        "first_line_has_number": len(vocabulary) - len(vocabulary.words),
        "unknown_word": UNKNOWN,
        "without_a_word": [UNKNOWN],
    }
