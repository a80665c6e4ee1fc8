import io

import numpy as np
import torch
from PIL import Image

from crosspair.encode.split import embed_split

CAPTIONS = [["a dog", "the dog runs"], ["a cat"], ["red", "blue", "a red dog"]]
LABELS = np.array([2**40, 7, 2**40 + 1])


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 50), (80 * number, 30, 200)).save(file, "PNG")
    return file.getvalue()


def test_captions_come_in_the_order_of_their_pictures_with_their_labels(tiny_model, memory_split):
    split = memory_split(CAPTIONS, LABELS, [encoded(number) for number in range(3)])
    model = tiny_model()
    seen = embed_split(model, split)
    assert seen.captions == ["a dog", "the dog runs", "a cat", "red", "blue", "a red dog"]
    assert seen.image_labels.tolist() == LABELS.tolist()
    assert seen.text_labels.tolist() == [2**40] * 2 + [7] + [2**40 + 1] * 3
    assert torch.equal(seen.images, model.encode_image(split.images))
    assert torch.equal(seen.texts, model.encode_text(seen.captions))


def test_features_stand_in_for_pictures_and_the_mirrored_ones_are_not_looked_at(tiny_model, memory_split):
    images = [encoded(number) for number in range(3)]
    model = tiny_model().train()
    direct = embed_split(model, memory_split(CAPTIONS, LABELS, images))
    resized = torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(p)))).permute(2, 0, 1) for p in images])
    with torch.no_grad():
        model.eval()
        features = model.image_features(torch.stack([model.image_input.resize(image) for image in resized]))
        model.train()
    features = np.stack([features.numpy(), np.full((3, 96), np.nan, np.float32)], axis=1)
    seen = embed_split(model, memory_split(CAPTIONS, LABELS), features=features)
    torch.testing.assert_close(seen.images, direct.images, atol=1e-6, rtol=1e-5)
    assert torch.equal(seen.texts, direct.texts)
    assert model.training
    seen.images.requires_grad_()  # an ordinary tensor
