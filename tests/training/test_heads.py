"""A run with several heads on an encoder whose lower stages are pooled: both stages, kept features, the saved model."""

import pytest
import torch

from crosspair.encode.model import DualEncoder
from crosspair.models.projection import ProjectionHeads
from crosspair.training.log import read_metrics
from crosspair.training.loop import train
from tests.fixtures.models import tiny_config


def test_a_run_with_heads_and_lower_stages_saves_the_model_that_it_validated(toy_data, toy_recipe, tmp_path):
    model = tiny_config(image={"pooled_stages": 2}, text={"min_count": 1}, projection={"heads": 2})
    recipe = toy_recipe(model=model)
    best = train(recipe, toy_data, tmp_path / "run", progress=False).best
    stages = {row["stage"] for row in read_metrics(tmp_path / "run") if row["kind"] == "val"}
    assert stages == {number for number, _ in recipe.stages}
    model = DualEncoder.from_pretrained(tmp_path / "run" / "model")
    assert isinstance(model.image_projection, ProjectionHeads)
    split = toy_data.split("val")
    images = model.encode_image([split.image(row) for row in range(len(split))])
    texts = model.encode_text([caption for row in split.captions for caption in row])
    found = (texts @ images.T).argmax(1)
    rows = torch.repeat_interleave(torch.arange(len(split)), torch.tensor([len(row) for row in split.captions]))
    assert 100 * (found == rows).double().mean().item() == pytest.approx(best["text_to_image"]["R@1"])
    with torch.no_grad():
        features = torch.randn(3, model.num_image_features)
        first, second = model.image_projection(features).chunk(2, dim=1)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(3))
