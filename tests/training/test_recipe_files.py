import pytest
import yaml

from crosspair.errors import UserError
from crosspair.training.recipe_files import built_in_recipes, describe_recipes, load_recipe, save_recipe


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
