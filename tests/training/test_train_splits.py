"""Training on several splits, and without validation."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import crosspair
from crosspair.cli import main
from crosspair.data.dataset import open_data
from crosspair.data.prepare import prepare
from crosspair.data.splits import GivenData, from_dataset, run_splits
from crosspair.encode.model import DualEncoder
from crosspair.errors import UserError
from crosspair.training.loop import train
from crosspair.training.measure import measure_model
from crosspair.training.recipe import EMAConfig, StageConfig
from crosspair.training.recipe_files import load_recipe, save_recipe
from tests.fixtures.toy import COLOURS, toy_record

BOTH = {"train_splits": ["train", "val"], "validation": "none"}


@pytest.fixture
def three_splits(tmp_path):
    """Twelve pictures: eight in train, two in val, two in test, each with a label of its own."""
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    records = [toy_record(number, split) for number, split in enumerate(splits)]
    prepare(records, tmp_path / "data", source={}, size=0, processes=1, progress=False)
    return tmp_path / "data"


def test_the_joined_split_has_the_rows_of_both_in_their_order(three_splits):
    data = open_data(three_splits)
    both = run_splits(data, ["train", "val"], validate=False).train.by_index
    rows = [(data.split("train"), row) for row in range(8)] + [(data.split("val"), row) for row in range(2)]
    assert len(both) == 10
    assert both.labels.tolist() == [part.labels[row] for part, row in rows]
    assert both.captions == [part.captions[row] for part, row in rows]
    assert both.image_ids == [part.image_ids[row] for part, row in rows]
    assert [both.image(row) for row in range(10)] == [part.image(row) for part, row in rows]
    assert both.checksum not in {data.split("train").checksum, data.split("val").checksum}
    assert both.checksum != run_splits(data, ["val", "train"], validate=False).train.checksum
    assert both.directory == three_splits


def test_images_of_datasets_without_labels_match_none_of_another_split():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    plain = [from_dataset([(image, "a"), (image, "b")], progress=False) for _ in range(2)]
    labelled = from_dataset([(image, "a", 5)], progress=False)
    given = GivenData({"train": plain[0], "more": labelled, "rest": plain[1]})
    labels = run_splits(given, ["train", "more", "rest"], validate=False).train.labels
    assert labels.tolist() == [6, 7, 5, 8, 9]


def test_classes_are_those_of_the_union_and_words_too(three_splits, toy_recipe, tmp_path):
    train(toy_recipe(**BOTH), three_splits, tmp_path / "run", progress=False)
    checkpoint = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert load_file(checkpoint / "losses.safetensors")["cmpc_loss.weight"].shape[1] == 10
    words = (tmp_path / "run" / "model" / "vocabulary.txt").read_text().split()
    assert COLOURS[9] in words
    assert COLOURS[10] not in words


@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_without_validation_the_last_weights_are_kept_as_their_average_where_there_is_one(
    three_splits, toy_recipe, tmp_path, decay, metrics
):
    recipe = toy_recipe(**BOTH, ema=EMAConfig(decay=decay), stage2=StageConfig())
    kept = {}
    keep = crosspair.Callback(on_step=lambda progress, seen: kept.update(step=progress.step))
    result = train(recipe, three_splits, tmp_path / "run", callbacks=[keep], progress=False)
    weights = "ema" if decay else "raw"
    assert result.best == {"stage": 1, "epoch": 2, "step": kept["step"], "weights": weights}
    assert crosspair.RunResult.read(tmp_path / "run") == result
    rows = metrics(tmp_path / "run")
    assert {row["kind"] for row in rows} == {"start", "train", "end"}
    assert rows[0]["data"] == str(three_splits)
    assert set(rows[0]["checksums"]) == {"train"}
    model = load_file(tmp_path / "run" / "model" / "model.safetensors")
    raw = load_file(max((tmp_path / "run" / "checkpoints").glob("step-*")) / "model.safetensors")
    name = "text_projection.linear.weight"
    assert torch.equal(model[name], raw[name]) == (decay == 0)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"Trained on train, val and not validated: stage 1, epoch 2, {weights} weights" in card
    DualEncoder.from_pretrained(tmp_path / "run" / "model").encode_text(["a red square"])


def test_a_resumed_run_ends_as_the_undisturbed_one(three_splits, toy_recipe, tmp_path, metrics):
    def go(name, resume=False, callbacks=()):
        recipe = toy_recipe(**BOTH, checkpoint_minutes=0.0)
        return train(recipe, three_splits, tmp_path / name, resume=resume, callbacks=callbacks, progress=False)

    def stop(progress, seen):
        if progress.step == 8:
            raise RuntimeError("stop")

    go("whole")
    with pytest.raises(RuntimeError, match="stop"):
        go("run", callbacks=[crosspair.Callback(on_step=stop)])
    go("run", resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    recipe = toy_recipe(**{**BOTH, "train_splits": ["train"]}, checkpoint_minutes=0.0)
    with pytest.raises(UserError, match="differs from the recipe given in train_splits"):
        train(recipe, three_splits, tmp_path / "run", resume=True, progress=False)


def test_a_frozen_encoder_sees_each_picture_of_both_once(three_splits, toy_recipe, tmp_path, monkeypatch):
    seen = []
    features = DualEncoder.image_features

    def counting(self, images):
        seen.extend(images)
        return features(self, images)

    monkeypatch.setattr(DualEncoder, "image_features", counting)
    train(toy_recipe(**BOTH, stage2=StageConfig()), three_splits, tmp_path / "run", progress=False)
    assert len(seen) == 20  # ten pictures, each also flipped


def test_data_without_val_train_where_nothing_is_validated(toy_recipe, tmp_path):
    records = [toy_record(number, "train") for number in range(8)]
    prepare(records, tmp_path / "data", source={}, size=0, processes=1, progress=False)
    train(toy_recipe(validation="none", stage2=StageConfig()), tmp_path / "data", tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="has no split 'val'"):
        train(toy_recipe(stage2=StageConfig()), tmp_path / "data", tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


def test_the_command_line_takes_names_between_commas(three_splits, toy_recipe, tmp_path, capsys):
    (tmp_path / "toy.yaml").write_text(save_recipe(toy_recipe()))
    what = ["train", str(tmp_path / "toy.yaml"), "--data", str(three_splits), "--output", str(tmp_path / "run")]
    assert main([*what, "--train_splits", "train,val", "--validation", "none", "--stage2.epochs", "0"]) == 0
    out = capsys.readouterr().out
    assert "trained on train, val, not validated (stage 1, epoch 2, ema weights)\n" in out
    assert "report" not in out
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert "trained on train, val, not validated" in capsys.readouterr().out


def test_a_split_that_was_trained_on_is_warned_of_where_it_is_measured(three_splits, toy_recipe, tmp_path, caplog):
    train(toy_recipe(**BOTH, stage2=StageConfig()), three_splits, tmp_path / "run", progress=False)
    said = {}
    for split in ("test", "val", "train"):
        caplog.clear()
        measure_model(str(tmp_path / "run"), three_splits, split, device="cpu")
        said[split] = f"run was trained on {split} too" in caplog.text
    assert said == {"test": False, "val": True, "train": False}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--train_splits", "train,val"], "train_splits has val, on which validation chooses the model; leave val out"),
        (["--train_splits", "train,train"], "train_splits is .*; expected at least one split of the data, each once"),
        (["--train_splits", "[]"], "expected at least one split"),
        (["--validation", "test"], "validation"),
    ],
)
def test_splits_that_make_no_sense_are_one_sentence(overrides, message):
    with pytest.raises(UserError, match=message):
        load_recipe("flickr8k-lite0", overrides)


def test_an_unknown_split_is_named(three_splits, toy_recipe, tmp_path):
    with pytest.raises(UserError, match="has no split 'vall'; it has train, val, test"):
        train(toy_recipe(train_splits=["train", "vall"]), three_splits, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_stream_is_joined_with_nothing(three_splits, tmp_path):
    class Stream:
        by_index = None

        def batch_source(self, reading):
            raise NotImplementedError

    given = GivenData({"train": Stream(), "val": three_splits})
    with pytest.raises(UserError, match="split 'train' is a stream, which can't be joined with others; set train_spl"):
        run_splits(given, ["train", "val"], validate=False)


def test_the_same_recipe_in_yaml_is_a_list(tmp_path):
    (tmp_path / "own.yaml").write_text(
        json.dumps({"train_splits": ["train", "val"], "validation": "none", "stage1": {"epochs": 1}})
    )
    assert load_recipe(str(tmp_path / "own.yaml")).train_splits == ["train", "val"]
