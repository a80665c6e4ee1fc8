from dataclasses import replace

import pytest
import torch
import yaml

from crosspair.encode.model import create_model
from crosspair.encode.pretrained import create_image_encoder
from crosspair.errors import UserError
from crosspair.training.losses import MatchingLosses
from crosspair.training.optimizer import learning_rate_share
from crosspair.training.recipe_files import built_in_recipes, describe_recipes, differences, load_recipe, save_recipe


@pytest.mark.parametrize("name", sorted(built_in_recipes()))
def test_every_built_in_recipe_loads_and_says_what_it_aims_at(name: str):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.aims
    assert f"{name}: {recipe.summary}" in describe_recipes()


def test_a_resolved_recipe_reads_back_the_same(tmp_path):
    recipe = load_recipe("flickr8k-lite0", ["--stage1.epochs=3", "--model.image.size", "[384,128]"])
    path = tmp_path / "recipe.yaml"
    path.write_text(save_recipe(recipe))
    assert load_recipe(str(path)) == recipe


def test_a_dotted_override_changes_one_field():
    plain, changed = load_recipe("flickr8k-lite0"), load_recipe("flickr8k-lite0", ["--stage1.epochs", "3"])
    assert changed.stage1.epochs == 3
    changed.stage1.epochs = plain.stage1.epochs
    assert changed == plain


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("flickr8k-lit", [], "unknown recipe 'flickr8k-lit'.*near: flickr8k-lite0"),
        ("nothing-like-it", [], "crosspair recipes"),
        ("missing.yaml", [], "can't read the recipe missing.yaml"),
        ("flickr8k-lite0", ["--stage1.epoch", "3"], "unknown field 'stage1.epoch'; near: stage1.epochs"),
        ("flickr8k-lite0", ["--stage1.epochs", "three"], "stage1.epochs.*int.*three"),
        ("flickr8k-lite0", ["--stage1.epochs=0", "--stage2.epochs=0"], "no stage with epochs"),
        (
            "flickr8k-lite0",
            ["--loss.cmpm=0", "--loss.cmpc=0"],
            "no loss; set loss.cmpm or another of .*siglip.* above 0",
        ),
        ("flickr8k-lite0", ["--loss.cmpm.scale=0"], "loss.cmpm.scale is 0.0; expected null, or above 0"),
        (
            "flickr8k-lite0",
            ["--loss.infonce=1", "--loss.infonce.temperature=0"],
            "infonce.temperature is 0.0; expected at least 0.01",
        ),
        (
            "flickr8k-lite0",
            ["--loss.sdm", "1", "--loss.sdm.temperature", "0"],
            "loss.sdm.temperature is 0.0; expected above 0",
        ),
        (
            "flickr8k-lite0",
            ["--loss.triplet=1", "--loss.triplet.margin=-1"],
            "loss.triplet.margin is -1.0; expected at least 0",
        ),
        ("flickr8k-lite0", ["--stage1.batch_size=1"], "batch_size 1"),
        ("flickr8k-lite0", ["--stage1.mini_batch_size=3"], "stage1 has mini_batch_size 3; expected 0"),
        (
            "flickr8k-lite0",
            ["--stage1.sampler=labels", "--stage1.batch_size=10"],
            "batch_size 10 and sampler.images_per_label 4; expected a batch that holds at least two labels",
        ),
        ("flickr8k-lite0", ["--optimizer.name", "lion"], "there is no optimizer 'lion'"),
        (
            "flickr8k-lite0",
            ["--histograms", "9", "--tensorboard", "off"],
            "histograms is 9, tensorboard off; expected 0",
        ),
        ("flickr8k-lite0", ["--optimizer.name", "ftrl"], "no optimizer 'ftrl' .*first step throws pretrained weights"),
        ("flickr8k-lite0", ["--stage1.schedule", "polynomial", "--stage1.schedule.power", "0"], "expected above 0"),
        ("flickr8k-lite0", ["stray"], "'stray' is no field; expected --field value"),
        ("flickr8k-lite0", ["--stage1.epochs"], "--stage1.epochs has no value"),
        ("flickr8k-lite0", ["--stage1.epochs", "--loss.cmpm", "1"], "--stage1.epochs has no value"),
        ("flickr8k-lite0", ["--loss.triplett", "1"], r"there is no loss 'triplett' \(did you mean triplet\?\)"),
        ("flickr8k-lite0", ["--loss.triplet=1", "--loss.triplet.margn=1"], "did you mean 'loss.triplet.margin'"),
        (
            "flickr8k-lite0",
            ["--loss.triplet.margin", "0.1"],
            "loss.triplet has no weight; set it with --loss.triplet 1",
        ),
        ("flickr8k-lite0", ["--loss.triplet", "much"], "loss.triplet is 'much'; expected a number"),
        ("flickr8k-lite0", ["--loss.cmpm", "-1"], "loss.cmpm is -1.0; expected at least 0"),
        ("flickr8k-lite0", ["--loss.cmpm", ".nan"], "loss.cmpm is nan; expected at least 0"),
        ("flickr8k-lite0", ["--loss.cmpm.matmul_precision", "fp8"], "is 'fp8'; expected float32 or bf16"),
        ("flickr8k-lite0", ["--loss.cmpc.sampled_classes", "1.5"], "is '1.5'; expected a whole number"),
        (
            "flickr8k-lite0",
            ["--optimizer.beta3", "0.9"],
            "unknown field 'optimizer.beta3', did you mean 'optimizer.beta",
        ),
        ("flickr8k-lite0", ["--optimizer.beta2", "1"], "optimizer.beta2 is 1.0; expected at least 0 and below 1"),
        ("flickr8k-lite0", ["--stage1.schedule", "linear"], "there is no schedule 'linear'"),
        ("flickr8k-lite0", ["--stage1.schedule.power", "2"], "unknown field 'stage1.schedule.power'"),
        (
            "flickr8k-lite0",
            ["--model.projection.dim", "0"],
            "field 'model.projection.dim' is 0; expected a whole number",
        ),
        ("flickr8k-lite0", ["--model.text.dropout", "1"], "field 'model.text.dropout' is 1.0; expected a number of at"),
        ("flickr8k-lite0", ["--feature_backend", "openvin"], r"no backend 'openvin' \(did you mean openvino\?\)"),
        (
            "flickr8k-lite0",
            ["--feature_backend", "openvino-f8"],
            "backend openvino has no precision 'f8'; expected f32",
        ),
        ("flickr8k-lite0", ["--plugins", "[]"], "unknown field 'plugins'"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(name: str, overrides: list[str], message: str):
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(name, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage1": {"epoch": 3}}, "unknown field 'stage1.epoch', did you mean 'stage1.epochs'"),
        ({"stage1": 3}, "field 'stage1' holds 3"),
        ({"stage1": {"epochs": "many"}}, "stage1.epochs"),
        (["a", "list"], "holds a list"),
        ({"loss": 3}, "field 'loss' holds 3"),
        ({"loss": {"cmpm_scale": 20}}, "there is no loss 'cmpm_scale'"),
        ({"loss": {"triplet": {"margin": 0.1}}}, "loss.triplet has no weight"),
        (
            {"loss": {"triplet": {"weigth": 1}}},
            "unknown field 'loss.triplet.weigth', did you mean 'loss.triplet.weight'",
        ),
        ({"loss": {"cmpm": [1]}}, "loss.cmpm is .1.; expected a number"),
        ({"stage1": {"sampler": 3}}, "field 'stage1.sampler' holds 3"),
        ({"stage1": {"sampler": {"images_per_label": 2}}}, "field 'stage1.sampler' holds"),
    ],
)
def test_a_wrong_yaml_file_is_one_sentence(tmp_path, settings: object, message: str):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=message):
        load_recipe(str(path))


def test_what_is_not_yaml_is_one_sentence(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: [1\nb: }")
    with pytest.raises(UserError, match="is not YAML") as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


class TestExtending:
    def test_a_recipe_has_the_fields_of_the_one_that_it_extends_under_its_own(self, tmp_path):
        path = tmp_path / "own.yaml"
        path.write_text(
            "extends: flickr8k-lite0\nmodel: {text: {max_words: 9}}\nloss: {infonce: 1}\nstage1: {epochs: 3}\n"
        )
        base, own = load_recipe("flickr8k-lite0"), load_recipe(str(path))
        others = {field for field in differences(base, own) if not field.startswith("loss.")}
        assert others == {"name", "summary", "aims", "model.text.max_words", "stage1.epochs"}
        assert (own.name, own.model.text.max_words, list(own.loss)) == ("own", 9, ["infonce"])
        assert "extends" not in save_recipe(own)

    def test_a_file_is_looked_for_beside_the_one_that_extends_it(self, tmp_path):
        (tmp_path / "base.yaml").write_text("stage1: {epochs: 5, schedule: {name: polynomial, power: 2}}\n")
        (tmp_path / "own.yaml").write_text("extends: base.yaml\nstage1: {schedule: cosine}\n")
        own = load_recipe(str(tmp_path / "own.yaml"))
        assert (own.stage1.epochs, own.stage1.schedule) == (5, "cosine")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("extends: own.yaml", "extends .*own.yaml, which extends it"),
            ("extends: flickr8k-lit0", "unknown recipe 'flickr8k-lit0'.*near: flickr8k-lite0"),
            ("extends: [a, b]", r"extends \['a', 'b'\]; expected a built-in name or a YAML file"),
        ],
    )
    def test_what_can_not_be_extended_is_one_sentence(self, tmp_path, text, message):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            load_recipe(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("name", sorted(built_in_recipes()))
def test_the_model_and_losses_of_every_recipe_can_be_built(name):
    """Without weights and memory; of text encoders those that need no hub."""
    recipe = load_recipe(name)
    image, projection = replace(recipe.model.image, weights="none"), recipe.model.projection
    with torch.device("meta"):
        if recipe.model.text.name == "bilstm":
            width = create_model(replace(recipe.model, image=image), ["a dog"]).num_image_features
        else:
            size = tuple(image.size) if image.size else None
            settings = {"keep_head": image.keep_head, "pooled_stages": image.pooled_stages}
            width = create_image_encoder(image.name, "none", size, **settings)[0].num_features
        losses = MatchingLosses(recipe.loss, 10, projection.dim, projection.heads)
    assert width == projection.dim or projection.layers > 0
    assert set(losses.weights) == set(recipe.loss)
    for _, stage in recipe.stages:
        assert learning_rate_share(stage.warmup_steps, stage.warmup_steps + 100, stage) == pytest.approx(1)


def test_a_row_of_the_papers_table_differs_from_its_base_in_the_losses_alone():
    for data in ("cub", "flowers", "flickr30k", "cuhk-pedes"):
        both, alone = (load_recipe(f"{data}-mobilenet-{losses}") for losses in ("cmpm-cmpc", "cmpm"))
        kinds = {field.split(".")[0] for field in differences(both, alone)}
        assert kinds == {"name", "summary", "aims", "loss"}
        assert list(alone.loss) == ["cmpm"]
