import errno
import json
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from crosspair.encode.model import DualEncoder
from crosspair.encode.storage import model_checksum
from crosspair.errors import UserError

FILES = {"config.json", "model.safetensors", "vocabulary.txt"}


@pytest.fixture
def saved(tiny_model, tmp_path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


class TestSaving:
    def test_a_model_reads_back_with_the_same_embeddings_to_the_bit(self, tiny_model, tmp_path):
        model = tiny_model(image={"resample": "tensorflow1"}, text={"special_tokens": "both", "pool_padding": True})
        with torch.no_grad():  # statistics away from their start
            model.train()(*(torch.tensor([[2, 3]] * 4), torch.tensor([2] * 4)), features=torch.randn(4, 96))
        model.save_pretrained(tmp_path / "model")
        again = DualEncoder.from_pretrained(tmp_path / "model")
        images = torch.randint(0, 256, (3, 3, 50, 40), dtype=torch.uint8)
        captions = ["a dog runs", "cat", "a very long caption of the red dog"]
        assert torch.equal(model.encode_image(images), again.encode_image(images))
        assert torch.equal(model.encode_text(captions), again.encode_text(captions))
        assert again.image_input == model.image_input
        assert again.config.text == model.config.text
        assert not again.training

    def test_a_loaded_model_saves_the_same_files(self, saved, tmp_path):
        DualEncoder.from_pretrained(str(saved)).save_pretrained(tmp_path / "again")
        for name in FILES:
            assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name

    def test_the_directory_holds_the_documented_files_and_the_card_when_given(self, saved, tiny_model, tmp_path):
        assert names(saved) == FILES
        tiny_model().save_pretrained(tmp_path / "other", card="# A card\n")
        assert names(tmp_path / "other") == FILES | {"README.md"}
        assert (tmp_path / "other" / "README.md").read_text() == "# A card\n"

    def test_a_loaded_model_keeps_its_card(self, tiny_model, tmp_path):
        tiny_model().save_pretrained(tmp_path / "model", card="# A card\n")
        DualEncoder.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "README.md").read_text() == "# A card\n"

    def test_a_model_takes_the_place_of_the_one_before(self, saved, tiny_model, tmp_path):
        model = tiny_model(text={"max_words": 3})
        model.save_pretrained(saved)
        assert DualEncoder.from_pretrained(saved).config.text.max_words == 3
        assert names(tmp_path) == {"model"}

    def test_an_empty_directory_is_filled(self, tiny_model, tmp_path, monkeypatch):
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        tiny_model().save_pretrained("../empty")
        assert names(tmp_path / "empty") == FILES

    def test_a_directory_with_other_files_is_refused_and_stays(self, saved, tiny_model):
        (saved / "thesis.txt").write_text("years of work")
        before = (saved / "model.safetensors").read_bytes()
        with pytest.raises(UserError, match=r"thesis\.txt"):
            tiny_model().save_pretrained(saved)
        assert (saved / "thesis.txt").read_text() == "years of work"
        assert (saved / "model.safetensors").read_bytes() == before

    def test_a_file_is_refused_and_stays(self, tiny_model, tmp_path):
        (tmp_path / "notes").write_text("mine")
        with pytest.raises(UserError, match="is a file"):
            tiny_model().save_pretrained(tmp_path / "notes")
        assert (tmp_path / "notes").read_text() == "mine"

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ],
    )
    def test_a_full_disk_is_one_sentence_and_leaves_the_model_before(
        self, saved, tiny_model, tmp_path, monkeypatch, error
    ):
        before = {name: (saved / name).read_bytes() for name in FILES}

        def full(tensors, path, metadata=None):
            Path(path).write_bytes(b"half")
            raise error

        monkeypatch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(UserError, match=r"the disk of .*model is full .*free some space") as caught:
            tiny_model(text={"max_words": 3}).save_pretrained(saved)
        assert "\n" not in str(caught.value)
        assert {name: (saved / name).read_bytes() for name in FILES} == before
        assert names(tmp_path) == {"model"}
        with pytest.raises(UserError, match="full"):
            tiny_model().save_pretrained(tmp_path / "new")
        assert names(tmp_path) == {"model"}


class TestLoading:
    def test_never_unpickles(self, saved, monkeypatch):
        def refuse(*arguments, **options):
            raise AssertionError("unpickled")

        for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
            monkeypatch.setattr(module, name, refuse)
        DualEncoder.from_pretrained(saved)

    def test_a_pickle_under_the_name_of_the_weights_is_refused(self, saved):
        with (saved / "model.safetensors").open("wb") as file:
            pickle.dump({"weight": 1}, file)
        with pytest.raises(UserError, match="can't read the model's weights"):
            DualEncoder.from_pretrained(saved)

    def test_asks_for_no_pretrained_weights(self, saved):
        config = json.loads((saved / "config.json").read_text())
        config["model"]["image"]["weights"] = "hub"
        (saved / "config.json").write_text(json.dumps(config))
        DualEncoder.from_pretrained(saved)  # test_resnet's would have to come over the network

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("text_encoder.initial_cell"), r"1 missing \(text_encoder.initial_cell\)"),
            (lambda s: s.update(stray=torch.zeros(1)), r"1 extra \(stray\)"),
            (lambda s: s.update({"image_projection.linear.weight": torch.zeros(8, 5)}), "1 of another shape"),
        ],
    )
    def test_refuses_other_tensors_than_the_configured_ones(self, saved, change, message):
        state = load_file(saved / "model.safetensors")
        change(state)
        save_file(state, saved / "model.safetensors")
        with pytest.raises(UserError, match=message):
            DualEncoder.from_pretrained(saved)

    def test_refuses_a_vocabulary_of_another_length(self, saved):
        with (saved / "vocabulary.txt").open("a") as file:
            file.write("zebra\n")
        with pytest.raises(UserError, match=r"text_encoder\.embedding\.weight"):
            DualEncoder.from_pretrained(saved)

    @pytest.mark.parametrize("name", sorted(FILES))
    def test_refuses_a_directory_without_one_of_its_files(self, saved, name):
        (saved / name).unlink()
        with pytest.raises(UserError, match=name):
            DualEncoder.from_pretrained(saved)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "3",
            "{}",
            '{"format": 1}',
            '{"format": "one", "model": {}}',
            '{"format": 1, "model": {"a": 1}}',
        ],
    )
    def test_refuses_a_configuration_that_is_none(self, saved, text):
        (saved / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json is not a crosspair model's configuration") as caught:
            DualEncoder.from_pretrained(saved)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("part", "field", "value"),
        [
            ("projection", "dim", "8"),
            ("projection", "dim", -8),
            ("projection", "dim", True),
            ("projection", "dropout", None),
            ("projection", "layers", 3),
            ("image", "size", "32"),
            ("image", "size", [32, 32.5]),
            ("image", "name", 5),
            ("text", "special_tokens", "all"),
            ("text", "pool_padding", 1),
            ("image_input", "mean", 0.5),
            ("image_input", "std", [0.5, 0.5]),
            ("image_input", "std", [0.5, 0.5, 0]),
            ("image_input", "height", 0),
            ("image_input", "width", 10**9),
            ("image", "size", [0, 32]),
            ("image", "colour", "blue"),
            ("projection", "dim", 0),
            ("projection", "dim", 10**9),
            ("projection", "norm_momentum", 1.5),
            ("text", "dropout", 1.0),
        ],
    )
    def test_a_setting_of_another_type_or_out_of_range_is_named(self, saved, part, field, value):
        config = json.loads((saved / "config.json").read_text())
        (config if part == "image_input" else config["model"])[part][field] = value
        (saved / "config.json").write_text(json.dumps(config))
        problem = rf"config\.json is not a crosspair model's configuration \(field '[\w.]*\b{field}\W.*; copy the model"
        with pytest.raises(UserError, match=problem) as caught:
            DualEncoder.from_pretrained(saved)
        assert "\n" not in str(caught.value)

    def test_refuses_a_format_of_the_future(self, saved):
        (saved / "config.json").write_text('{"format": 2}')
        with pytest.raises(UserError, match="has format 2, this crosspair reads formats up to 1; upgrade crosspair"):
            DualEncoder.from_pretrained(saved)

    @pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/where", "a/b/c"])
    def test_refuses_a_directory_that_is_not_there(self, name):
        with pytest.raises(UserError, match=f"there is no directory {name}"):
            DualEncoder.from_pretrained(name)

    def test_says_what_the_hub_said(self, monkeypatch):
        for message, reason in [("401 for that name\nlong advice", "401 for that name"), ("", "ConnectionError")]:

            def offline(name, message=message, **options):
                raise ConnectionError(message)

            monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
            with pytest.raises(UserError, match=rf"no directory user/model here, so the hub .* asked .*\({reason}\)"):
                DualEncoder.from_pretrained("user/model")

    def test_takes_a_model_from_the_hub(self, saved, monkeypatch):
        asked = []

        def download(name, **options):
            asked.append((name, sorted(options["allow_patterns"])))
            return str(saved)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert DualEncoder.from_pretrained("user/model").config.image.name == "test_resnet"
        settings = ["*.jinja", "*.json", "*.model", "*.txt", "README.md"]
        assert asked == [("user/model", settings), ("user/model", sorted([*settings, "model.safetensors"]))]


def test_pushing_uploads_the_saved_files(tiny_model, monkeypatch):
    uploaded = {}

    class Hub:
        def create_repo(self, name, exist_ok):
            return f"https://hub.example/{name}"

        def upload_folder(self, repo_id, folder_path):
            uploaded[repo_id] = names(Path(folder_path))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    model = tiny_model()
    model.card = "# Scores"
    assert model.push_to_hub("user/model") == "https://hub.example/user/model"
    assert uploaded == {"user/model": FILES | {"README.md"}}


class TestChecksum:
    def test_is_of_all_that_decides_the_embeddings_and_nothing_else(self, saved):
        before = model_checksum(saved)
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps({**config, "crosspair": "another version"}))
        (saved / "README.md").write_text("# A card\n")
        assert model_checksum(saved) == before
        changes = {
            "vocabulary.txt": (saved / "vocabulary.txt").read_text().replace("dog", "cow"),
            "config.json": json.dumps({**config, "image_input": {**config["image_input"], "height": 33}}),
        }
        for name, text in changes.items():
            kept = (saved / name).read_text()
            (saved / name).write_text(text)
            assert model_checksum(saved) != before
            (saved / name).write_text(kept)
        state = load_file(saved / "model.safetensors")
        next(iter(state.values())).add_(1)
        save_file(state, saved / "model.safetensors")
        assert model_checksum(str(saved)) != before

    def test_of_what_is_no_model_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="is not a model"):
            model_checksum(tmp_path)


@pytest.mark.parametrize(("device", "message"), [("cuda", "is not available"), ("gpu", "found device 'gpu'")])
def test_a_device_that_is_not_there_is_refused(saved, device, message):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(UserError, match=message):
        DualEncoder.from_pretrained(saved, device=device)
    assert DualEncoder.from_pretrained(saved, device="cpu").device.type == "cpu"
