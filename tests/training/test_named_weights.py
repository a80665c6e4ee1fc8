"""Weights that are frozen or restored by patterns of their names."""

import pytest
import torch

from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.training.loop import train
from crosspair.training.losses import MatchingLosses
from crosspair.training.named_weights import freeze_matching, matching, restore_weights
from crosspair.training.recipe import Recipe, RestoreConfig, StageConfig
from crosspair.training.recipe_files import load_recipe
from tests.fixtures.models import WORDS, create_tiny_model


@pytest.fixture
def model() -> DualEncoder:
    return create_tiny_model()


@pytest.fixture
def losses() -> MatchingLosses:
    return MatchingLosses(Recipe().loss, num_classes=5, embedding_dim=8)


def test_a_pattern_stands_for_whole_names_and_keeps_their_order():
    names = ["image_encoder.conv1.weight", "image_encoder.bn.bias", "text_encoder.embedding.weight"]
    assert matching(names, ["text*", "*.bias"], "f") == names[1:]
    assert matching(names, ["image_encoder.[ab]*"], "f") == names[1:2]
    assert matching(names, [], "f") == []


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("image.*", r"stage1.freeze has 'image\.\*', which matches no name; near: .*image_\w+"),
        ("text_encoder.embeding.*", r"near: text_encoder\.embedding\.\*"),
        ("text_encoder", r"near: text_encoder"),
        ("zzz", r"names begin with image_encoder, text_encoder, image_projection, text_projection, losses"),
    ],
)
def test_a_pattern_that_matches_nothing_is_named_with_near_ones(model, losses, pattern, message):
    with pytest.raises(UserError, match=message):
        freeze_matching(model, losses, [pattern], "stage1.freeze")


def test_what_matches_is_frozen_losses_included_and_told_where_it_trained(model, losses):
    model.freeze_image_encoder()
    frozen = freeze_matching(model, losses, ["image_*", "losses.cmpc_loss.weight"], "stage1.freeze")
    expected = [*model.image_projection.parameters(), *losses.parameters()]
    assert [id(value) for value in frozen] == [id(value) for value in expected]
    assert not any(value.requires_grad for value in expected)
    assert model.text_projection.linear.weight.requires_grad
    with pytest.raises(UserError, match=r"stage1.freeze leaves no weight to train"):
        freeze_matching(model, losses, ["*"], "stage1.freeze")


@pytest.mark.usefixtures("own_cache")
def test_a_stage_keeps_what_matches_and_the_next_one_trains_it_again(toy_recipe, toy_data, tmp_path):
    def run(name: str, **stages) -> dict[str, torch.Tensor]:
        train(toy_recipe(**stages), toy_data, tmp_path / name, progress=False)
        return load(tmp_path / name)

    def load(path):
        from safetensors.torch import load_file

        return load_file(max((path / "checkpoints").glob("step-*")) / "model.safetensors")

    stage = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2}
    frozen = StageConfig(**stage, freeze=["text_encoder.embedding.*", "image_projection.*"])
    once = run("once", stage1=frozen, stage2=StageConfig())
    torch.manual_seed(0)
    before = run("before", stage1=StageConfig(**{**stage, "learning_rate": 0.0}), stage2=StageConfig())
    for name in ("text_encoder.embedding.weight", "image_projection.linear.weight"):
        assert torch.equal(once[name], before[name]), name
    assert not torch.equal(once["text_projection.linear.weight"], before["text_projection.linear.weight"])
    twice = run("twice", stage1=frozen, stage2=StageConfig(**stage))
    for name in ("text_encoder.embedding.weight", "image_projection.linear.weight"):
        assert not torch.equal(twice[name], before[name]), name


@pytest.mark.parametrize(
    ("pattern", "message"), [("text.*", "stage2.freeze has"), ("*", "stage2.freeze leaves no weight to train")]
)
def test_a_pattern_of_a_later_stage_is_refused_before_anything_is_written(
    toy_recipe, toy_data, tmp_path, pattern, message
):
    stage = StageConfig(1, batch_size=4, freeze=[pattern])
    with pytest.raises(UserError, match=message):
        train(toy_recipe(stage2=stage), toy_data, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


class TestRestoring:
    @pytest.fixture
    def saved(self, tmp_path):
        other = create_tiny_model()
        with torch.no_grad():
            for value in other.state_dict().values():
                value.fill_(3)
        other.save_pretrained(tmp_path / "other")
        return str(tmp_path / "other")

    def test_takes_what_is_included_and_not_excluded_statistics_too(self, model, saved):
        told = []
        config = RestoreConfig(saved, ["image_encoder.*", "text_encoder.*"], ["*.lstm.*"])
        restore_weights(model, config, told.append)
        state = model.state_dict()
        taken = {name for name, value in state.items() if bool((value == 3).all())}
        expected = {
            name for name in state if name.startswith(("image_encoder.", "text_encoder.")) and ".lstm." not in name
        }
        assert taken == expected
        assert any("running_mean" in name for name in taken)
        assert told[0] == f"restored {len(expected)} of {len(state)} tensors from {saved}"

    def test_words_keep_their_vectors_where_others_stand_around_them(self, tmp_path):
        other = create_tiny_model()
        other.save_pretrained(tmp_path / "other")
        words, told = create_tiny_model(["green", *reversed(WORDS[:-1]), "grass"]), []
        before = words.text_encoder.embedding.weight.detach().clone()
        restore_weights(words, RestoreConfig(str(tmp_path / "other")), told.append)
        after = words.text_encoder.embedding.weight
        for word in WORDS[:-1]:
            row = other.text_encoder.embedding.weight[other.tokenize(word)[0]]
            assert torch.equal(after[words.tokenize(word)[0]], row), word
        for word in ("green", "grass"):
            assert torch.equal(after[words.tokenize(word)[0]], before[words.tokenize(word)[0]])
        assert torch.equal(after[:2], other.text_encoder.embedding.weight[:2])
        assert told[1] == f"word embedding: 7 of 9 words are {tmp_path / 'other'}'s"

    def test_without_a_model_nothing_is_touched(self, model):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        restore_weights(model, RestoreConfig())
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_another_shape_is_named(self, saved):
        wider = create_tiny_model(projection={"dim": 16})
        with pytest.raises(
            UserError, match=r"image_projection.linear.weight of .* has the shape \[8, .*restore.exclude"
        ):
            restore_weights(wider, RestoreConfig(saved))
        restore_weights(wider, RestoreConfig(saved, exclude=["*_projection.*"]))
        deeper = create_tiny_model(projection={"layers": 2})
        with pytest.raises(UserError, match=r"has no image_projection.*; name it in restore.exclude"):
            restore_weights(deeper, RestoreConfig(saved, ["image_projection.*"]))

    @pytest.mark.usefixtures("own_cache")
    def test_a_run_starts_from_another_and_resumes_without_it(self, toy_recipe, toy_data, tmp_path):
        still = StageConfig(1, batch_size=4, learning_rate=0.0, freeze_bn_stats=True)
        train(toy_recipe(stage2=StageConfig()), toy_data, tmp_path / "first", progress=False)
        recipe = toy_recipe(
            seed=7,
            stage1=still,
            stage2=StageConfig(),
            restore=RestoreConfig(str(tmp_path / "first"), ["image_encoder.*"]),
        )
        train(recipe, toy_data, tmp_path / "second", progress=False)
        first, second = (DualEncoder.from_pretrained(tmp_path / name / "model") for name in ("first", "second"))
        name = "conv1.0.weight"
        assert torch.equal(first.image_encoder.get_parameter(name), second.image_encoder.get_parameter(name))
        embeddings = (each.text_encoder.embedding.weight for each in (first, second))
        assert not torch.equal(*embeddings)


def test_the_command_line_takes_patterns_between_commas():
    recipe = load_recipe("flickr8k-lite0", ["--stage1.freeze", "a.*,b.*", "--restore.exclude=text_encoder.*"])
    assert recipe.stage1.freeze == ["a.*", "b.*"]
    assert recipe.restore.exclude == ["text_encoder.*"]
