"""ECCV Caption on COCO's DATA: the ids that it needs are carried from the annotation to the protocol."""

import json

import numpy as np
import pytest
import torch

from crosspair import UserError
from crosspair.data.dataset import open_data
from crosspair.data.prepare import prepare_format
from crosspair.evaluation.eccv import coco_image_ids
from crosspair.models.config import ModelConfig
from crosspair.training.measure import embed, measure_model


@pytest.fixture
def coco(tmp_path):
    """DATA of two of COCO's pictures with their numbers, its own model left out."""
    from PIL import Image

    (tmp_path / "val2014").mkdir()
    entries = []
    for number, (cocoid, first) in enumerate([(391895, 770337), (60623, 152106)]):
        name = f"COCO_val2014_{cocoid:012}.jpg"
        Image.new("RGB", (30, 20), (90 * number, 9, 9)).save(tmp_path / "val2014" / name)
        sentences = [
            {"raw": f"a dog {word}", "tokens": ["a", "dog", str(word)], "sentid": first + word} for word in (0, 7)
        ]
        entry = {"imgid": number, "cocoid": cocoid, "filepath": "val2014", "filename": name, "split": "test"}
        entries.append(entry | {"sentences": sentences})
    (tmp_path / "coco.json").write_text(json.dumps({"images": entries}))
    prepare_format("coco", tmp_path / "coco.json", tmp_path, tmp_path / "data", processes=1)
    return tmp_path / "data"


class Model:
    """Encodes anything as the same vector."""

    config = ModelConfig()

    def encode_image(self, images, **_):
        return torch.ones(len(images), 2)

    def encode_text(self, texts, **_):
        return torch.ones(len(texts), 2)


def test_the_ids_of_pictures_and_captions_reach_the_embeddings(coco):
    embeddings = embed(Model(), open_data(coco).split("test"))
    assert embeddings.image_ids.tolist() == [391895, 60623]
    assert embeddings.caption_ids.tolist() == [770337, 770344, 152106, 152113]


def test_data_without_ids_is_refused_before_anything_is_encoded(coco, tmp_path):
    plain = json.loads((tmp_path / "coco.json").read_text())
    for entry in plain["images"]:
        del entry["cocoid"]
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    prepare_format("flickr30k", tmp_path / "plain.json", tmp_path, tmp_path / "plain", processes=1)
    assert embed(Model(), open_data(tmp_path / "plain").split("test")).caption_ids is None
    with pytest.raises(UserError, match="prepare coco's DATA again with this crosspair"):
        measure_model("no model is looked for", tmp_path / "plain", "test", protocol_name="eccv-caption")


def test_a_name_without_a_number_is_no_picture_of_coco():
    assert coco_image_ids(["val2014/COCO_val2014_000000000042.jpg", "a.jpg"]).tolist() == [42, -1]
    assert coco_image_ids([]).dtype == np.int64
