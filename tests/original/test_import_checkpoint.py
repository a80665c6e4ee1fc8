from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from crosspair.encode.model import DualEncoder
from crosspair.encode.pretrained import create_image_encoder, load_weights
from crosspair.errors import UserError
from crosspair.models.slim.mobilenet import slim_mobilenet_v1
from crosspair.models.slim.resnet import SlimResNet, Unit, slim_resnet_v1_50
from crosspair.models.slim.variables import tf_sources
from crosspair.original.import_checkpoint import import_checkpoint, read_word_counts
from tests.fixtures.original import AVERAGE, EMBEDDING
from tests.fixtures.paths import ORACLE, TFRECORDS

Arrays = dict[str, np.ndarray]
Writer = Callable[[Path, Arrays], None]

WORD_COUNTS = TFRECORDS / "flickr" / "word_counts.txt"


@pytest.fixture
def model(trained: Arrays, tmp_path: Path, write_v2: Writer) -> DualEncoder:
    write_v2(tmp_path / "model.ckpt-39", trained)
    return import_checkpoint(tmp_path / "model.ckpt-39", WORD_COUNTS)


def images(expected: Arrays) -> list[np.ndarray]:
    return [expected[f"image{row}_uint8"] for row in range(4)]


def unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def captions(expected: Arrays) -> list[str]:
    """The words of the records, whose numbers are lines of the vocabulary file."""
    words = [line.split()[0] for line in WORD_COUNTS.read_text().splitlines()[2:]]
    return [" ".join(words[number] for number in expected[f"caption{row}_ids"][1:-1]) for row in range(4)]


def test_pictures_have_the_original_embeddings(model: DualEncoder, oracle: Callable[[str], Arrays]) -> None:
    expected = oracle("checkpoint/embeddings")
    original = expected["ema_one_at_a_time_image_embeddings"]
    np.testing.assert_allclose(model.encode_image(images(expected)), unit(original), rtol=0, atol=1e-4)


def test_captions_have_the_original_embeddings(model: DualEncoder, oracle: Callable[[str], Arrays]) -> None:
    expected = oracle("checkpoint/embeddings")
    sentences = captions(expected)
    assert [len(model.tokenize(sentence)) for sentence in sentences] == expected["input_mask"].sum(1).tolist()
    single, padded = (expected[f"ema_{way}_text_embeddings"] for way in ("one_at_a_time", "padded_batch"))
    np.testing.assert_allclose(model.encode_text(sentences), unit(single), rtol=0, atol=1e-4)
    model.text_encoder.pool_padding = True
    np.testing.assert_allclose(model.encode_text(sentences), unit(padded), rtol=0, atol=1e-4)


def test_a_saved_and_loaded_model_gives_the_same_embeddings(
    model: DualEncoder, tmp_path: Path, oracle: Callable[[str], Arrays]
) -> None:
    expected = oracle("checkpoint/embeddings")
    model.save_pretrained(tmp_path / "MODEL")
    again = DualEncoder.from_pretrained(tmp_path / "MODEL")
    assert torch.equal(again.encode_image(images(expected)), model.encode_image(images(expected)))
    assert torch.equal(again.encode_text(captions(expected)), model.encode_text(captions(expected)))


def test_without_averages_the_plain_variables_are_taken(oracle: Callable[[str], Arrays]) -> None:
    expected = oracle("checkpoint/embeddings")
    plain = import_checkpoint(ORACLE / "legacy" / "checkpoint" / "model.ckpt-39", WORD_COUNTS, ema=False)
    original = expected["raw_one_at_a_time_image_embeddings"]
    np.testing.assert_allclose(plain.encode_image(images(expected)), unit(original), rtol=0, atol=1e-4)


def test_the_rows_behind_the_words_are_left_out(model: DualEncoder, trained: Arrays) -> None:
    assert trained[EMBEDDING].shape == (12_000, 16)
    assert model.text_encoder.embedding.weight.shape == (2 + 27, 16)  # padding, the unknown word, the words


def test_the_unknown_word_keeps_its_own_vector(model: DualEncoder, trained: Arrays) -> None:
    original = trained[EMBEDDING]
    embedding = model.text_encoder.embedding.weight.detach().numpy()
    start, unknown, word = model.tokenize("zebra dog")
    np.testing.assert_array_equal(embedding[unknown], original[27])
    np.testing.assert_array_equal(embedding[start], original[1])
    np.testing.assert_array_equal(embedding[word], original[4])


def test_words_are_split_as_by_the_originals_converters(model: DualEncoder) -> None:
    assert model.tokenize("A dog's t-shirt,  DOG.") == model.tokenize("a dogs tshirt dog")


def write_word_counts(path: Path, words: list[str]) -> Path:
    counts = "\n".join(f"{word} 3" for word in words)
    path.write_text(f"Total words: {len(words)} \nWords in vocabulary: {len(words)} \n{counts}")
    return path


def test_a_vocabulary_with_karpathys_words_reads_them_where_they_are_stored(
    trained: Arrays, tmp_path: Path, write_v2: Writer
) -> None:
    write_v2(tmp_path / "model.ckpt-39", trained)
    words = ["a", "<START>", "<END>", "dog", "'s", "lead", "tail", *(f"word{number}" for number in range(20))]
    model = import_checkpoint(tmp_path / "model.ckpt-39", write_word_counts(tmp_path / "word_counts.txt", words))
    assert model.config.text.tokenizer == "stored"
    assert model.tokenize("A dog's lead.") == model.tokenize(["a", "dog", "'s", "lead"])
    assert 1 not in model.tokenize("A dog's lead.")  # no unknown word


def test_a_vocabulary_that_the_embedding_has_too_few_rows_for_is_refused(
    trained: Arrays, tmp_path: Path, write_v2: Writer
) -> None:
    trained[EMBEDDING] = trained[EMBEDDING][:28]
    write_v2(tmp_path / "model.ckpt-39", trained)
    import_checkpoint(tmp_path / "model.ckpt-39", WORD_COUNTS)  # 27 words and the unknown one
    other = write_word_counts(tmp_path / "word_counts.txt", [f"word{number}" for number in range(28)])
    with pytest.raises(UserError, match=r"has 28 words and .* the shape \[28, 16\]; expected at least 29 rows, give"):
        import_checkpoint(tmp_path / "model.ckpt-39", other)


def test_a_vocabulary_without_words_that_were_trained_is_refused(
    trained: Arrays, tmp_path: Path, write_v2: Writer
) -> None:
    write_v2(tmp_path / "model.ckpt-39", trained)
    words = [line.split()[0] for line in WORD_COUNTS.read_text().splitlines()[2:]]
    import_checkpoint(tmp_path / "model.ckpt-39", write_word_counts(tmp_path / "words.txt", words[:26]))
    with pytest.raises(UserError, match="has 25 words, and the checkpoint was trained with word number 26; give the"):
        import_checkpoint(tmp_path / "model.ckpt-39", write_word_counts(tmp_path / "words.txt", words[:25]))


def test_a_checkpoint_without_adams_means_is_read(
    trained: Arrays, tmp_path: Path, write_v2: Writer, model: DualEncoder
) -> None:
    plain = {name: value for name, value in trained.items() if "/Adam" not in name}
    write_v2(tmp_path / "model.ckpt-39", plain)
    again = import_checkpoint(tmp_path / "model.ckpt-39", WORD_COUNTS)
    assert torch.equal(again.encode_text(["a dog"]), model.encode_text(["a dog"]))


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    header = "Total words: 9 \nWords in vocabulary: 2 \n"
    contents = ["a\nb\nc\n", header, f"{header}a 4", f"{header}a 4\nb 3\nc 3", f"{header}[(u'a', 4), (u'b', 3)]"]
    for content in contents:
        path.write_text(content)
        with pytest.raises(UserError, match=r"expected the word_counts\.txt"):
            read_word_counts(path)
    path.write_text(f"{header}a 4\nb 3\n")
    assert read_word_counts(path).words == ["a", "b"]
    with pytest.raises(UserError, match=r"expected the word_counts\.txt"):
        read_word_counts(tmp_path / "missing.txt")


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path, write_v2: Writer) -> None:
    write_v2(tmp_path / "bert", {"bert/pooler/dense/bias": np.zeros(4, dtype=np.float32)})
    with pytest.raises(UserError, match="no known image tower; expected one of MobilenetV1"):
        import_checkpoint(tmp_path / "bert", WORD_COUNTS)


def small_resnet() -> nn.Module:
    return SlimResNet([[Unit(32, 8, 1), Unit(32, 8, 2)], [Unit(48, 12, 1)]])


def small_mobilenet() -> nn.Module:
    return slim_mobilenet_v1(0.25)


def imagenet_variables(scope: str, tower: nn.Module) -> Arrays:
    """Variables as TF-slim's ImageNet checkpoint of a tower has them, with its classifier, values by a seed."""
    random = np.random.default_rng(0)
    kernels = {"weights": (2, 3, 1, 0), "depthwise_weights": (2, 3, 0, 1)}
    state, variables = tower.state_dict(), {}
    for tensor, source in tf_sources(tower).items():
        shape = tuple(state[tensor].shape)
        axes = kernels.get(source.variables[0].split("/")[-1], (0,))
        variables[f"{scope}/{source.variables[0]}"] = random.standard_normal([shape[axis] for axis in axes])
    extra = {f"{scope}/logits/weights": np.zeros((1, 1, 8, 1000)), f"{scope}/mean_rgb": np.zeros(3)}
    every = {name: value.astype(np.float32) for name, value in {**variables, **extra}.items()}
    return {**every, "global_step": np.array(7)}


@pytest.mark.slow
def test_a_resnet_checkpoint_is_imported_with_any_number_of_spare_rows(
    trained: Arrays, model: DualEncoder, tmp_path: Path, write_v2: Writer
) -> None:
    tower = imagenet_variables("resnet_v1_50", slim_resnet_v1_50())
    others = {name: value for name, value in trained.items() if not name.startswith("MobilenetV1")}
    kernel = "joint_embedding/image_joint_embedding/weights"
    for name in (kernel, kernel + AVERAGE):
        others[name] = np.zeros((1, 1, 2048, 32), np.float32)
    others[f"{EMBEDDING}/Adam_1"] = np.concatenate([others[f"{EMBEDDING}/Adam_1"], np.zeros((500, 16), np.float32)])
    others[EMBEDDING] = np.concatenate([others[EMBEDDING], np.ones((500, 16), np.float32)])
    write_v2(tmp_path / "resnet.ckpt", {**tower, **others})
    imported = import_checkpoint(tmp_path / "resnet.ckpt", WORD_COUNTS)
    assert imported.config.image.name == "slim_resnet_v1_50"
    expected = model.text_encoder.state_dict()
    for name, value in imported.text_encoder.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("scope", "build", "original", "ours"),
    [
        ("resnet_v1_152", small_resnet, "block1/unit_2/bottleneck_v1/conv2", "blocks.block1.unit_2.conv2"),
        ("MobilenetV1", small_mobilenet, "Conv2d_3_pointwise", "layers.conv2d_3_pointwise"),
    ],
)
def test_imagenet_checkpoints_of_tf_slim_load_in_both_formats(
    scope: str,
    build: Callable[[], nn.Module],
    original: str,
    ours: str,
    tmp_path: Path,
    write_v1: Writer,
    write_v2: Writer,
) -> None:
    variables = imagenet_variables(scope, build())
    kernel = variables[f"{scope}/{original}/weights"].transpose(3, 2, 0, 1)
    for write, path in ((write_v1, tmp_path / "v1.ckpt"), (write_v2, tmp_path / "v2.ckpt")):
        write(path, variables)
        tower = build()
        load_weights(tower, str(path), f"slim_{scope}")
        np.testing.assert_array_equal(tower.state_dict()[f"{ours}.conv.weight"], kernel)


def test_an_imagenet_checkpoint_of_another_width_is_refused(tmp_path: Path, write_v2: Writer) -> None:
    write_v2(tmp_path / "mobilenet.ckpt", imagenet_variables("MobilenetV1", small_mobilenet()))
    with pytest.raises(UserError, match=r"mis-shaped below 'MobilenetV1': Conv2d_0/weights \[3, 3, 3, 8\]"):
        load_weights(slim_mobilenet_v1(), str(tmp_path / "mobilenet.ckpt"), "slim_mobilenet_v1")


def test_an_encoders_weights_may_be_a_checkpoint_of_tf_slim(tmp_path: Path, write_v1: Writer, write_v2: Writer) -> None:
    variables = imagenet_variables("MobilenetV1", small_mobilenet())
    kernel = variables["MobilenetV1/Conv2d_0/weights"].transpose(3, 2, 0, 1)
    for write, name in ((write_v1, "v1.ckpt"), (write_v2, "mobilenet_v1_0.25_224.ckpt")):
        write(tmp_path / name, variables)
        encoder, _ = create_image_encoder("slim_mobilenet_v1_025", str(tmp_path / name))
        np.testing.assert_array_equal(encoder.state_dict()["layers.conv2d_0.conv.weight"], kernel)


def test_weights_that_are_not_the_encoders_are_refused(tmp_path: Path, write_v2: Writer) -> None:
    path = tmp_path / "mobilenet.ckpt"
    with pytest.raises(UserError, match=r"there is no checkpoint .*mobilenet\.ckpt with weights of slim_mobilenet_v1;"):
        create_image_encoder("slim_mobilenet_v1", str(path))
    with pytest.raises(UserError, match=r"set model\.image\.weights to TF-slim's checkpoint"):
        create_image_encoder("slim_mobilenet_v1", "hub")
    write_v2(path, imagenet_variables("MobilenetV1", small_mobilenet()))
    with pytest.raises(UserError, match="mis-shaped below 'MobilenetV1'"):
        create_image_encoder("slim_mobilenet_v1", str(path))
    with pytest.raises(UserError, match=r"weights '.*' are not usable; expected hub, package, none"):
        create_image_encoder("tf_efficientnet_lite0", str(path))
