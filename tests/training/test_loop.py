import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crosspair.data.dataset import open_data
from crosspair.encode.model import DualEncoder
from crosspair.encode.split import embed_split
from crosspair.errors import UserError
from crosspair.training import loop
from crosspair.training.interruption import Interrupted
from crosspair.training.loop import train
from crosspair.training.losses import MatchingLosses
from crosspair.training.recipe import EMAConfig, StageConfig
from crosspair.training.run import finished
from crosspair.training.step import TrainingStep

TRAIN_KEYS = {
    *("kind", "stage", "epoch", "step", "loss", "cmpm", "cmpm_image_to_text", "cmpm_text_to_image"),
    *(
        "cmpc_image_precision",
        "cmpc_text_precision",
        "cmpc",
        "cmpc_image_to_text",
        "cmpc_text_to_image",
        "positive_distance",
        "negative_distance",
    ),
    *("learning_rate", "pairs_per_second", "memory_mb"),
}
FROZEN = {"freeze_image_encoder": True, "batch_size": 4, "learning_rate": 1e-2}


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def weights(run: Path) -> dict[str, bytes]:
    """All tensors of the newest checkpoint and of the best model."""
    files = [*newest(run).glob("*.safetensors"), run / "model" / "model.safetensors"]
    return {f"{file.name} {name}": value.numpy().tobytes() for file in files for name, value in load_file(file).items()}


@pytest.fixture
def at_step(monkeypatch):
    """Calls a function in the middle of the n-th training step from now."""

    def install(number: int, act) -> None:
        taken = []
        step = TrainingStep.__call__

        def counting(self, *arguments, **options):
            taken.append(None)
            if len(taken) == number + 1:
                act()
            return step(self, *arguments, **options)

        monkeypatch.setattr(TrainingStep, "__call__", counting)

    return install


@pytest.fixture
def go(toy_data, toy_recipe, tmp_path):
    """Trains the toy recipe into a run of that name."""

    def run(name: str = "run", *, data=toy_data, resume: bool = False, **changes):
        return train(toy_recipe(**changes), data, tmp_path / name, resume=resume, progress=False).best

    return run


class TestARun:
    def test_lowers_the_loss_and_finds_the_pictures(self, go, toy_data, tmp_path, metrics):
        stage = StageConfig(20, epoch_covers="images", captions_per_image=0, **{**FROZEN, "learning_rate": 0.03})
        best = go(stage1=stage, stage2=StageConfig())
        losses = [row["loss"] for row in metrics(tmp_path / "run") if row["kind"] == "train"]
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
        assert best["text_to_image"]["R@1"] > 50  # 8 by chance
        seen = embed_split(DualEncoder.from_pretrained(tmp_path / "run" / "model"), toy_data.split("val"))
        found = seen.image_labels[(seen.texts @ seen.images.T).argmax(1)]
        assert 100 * (found == seen.text_labels).double().mean().item() == pytest.approx(best["text_to_image"]["R@1"])

    def test_writes_the_documented_rows(self, go, toy_directory, tmp_path):
        go()
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert rows[0]["kind"] == "start"
        assert rows[0]["data"] == str(toy_directory)
        assert rows[-1]["kind"] == "end"
        steps = [row for row in rows if row["kind"] == "train"]
        assert [row["step"] for row in steps] == list(range(12))
        assert [(row["stage"], row["epoch"]) for row in steps[::3]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
        for row in steps:
            assert set(row) >= TRAIN_KEYS
            assert row["cmpm"] == pytest.approx(row["cmpm_image_to_text"] + row["cmpm_text_to_image"], rel=1e-5)
            assert row["loss"] == pytest.approx(row["cmpm"] + row["cmpc"], rel=1e-5)
            assert row["pairs_per_second"] > 0
            assert row["memory_mb"] > 0
        validations = [row for row in rows if row["kind"] == "val"]
        assert [row["weights"] for row in validations] == ["raw", "ema"] * 4
        assert [row["step"] for row in validations[::2]] == [3, 6, 9, 12]
        for row in validations:
            assert set(row) == {"kind", "stage", "epoch", "step", "weights", "image_to_text", "text_to_image", "rsum"}
            assert set(row["image_to_text"]) >= {"R@1", "R@5", "R@10", "mAP", "median_rank", "mean_rank"}

    def test_leaves_the_documented_files(self, go, tmp_path):
        best = go()
        run = tmp_path / "run"
        assert {path.name for path in run.iterdir()} == {
            *("recipe.yaml", "run.json", "metrics.jsonl", "tensorboard", "checkpoints", "model")
        }
        assert finished(run)
        assert any((run / "tensorboard").iterdir())
        assert (
            f"stage {best['stage']}, epoch {best['epoch']}, {best['weights']} weights"
            in (run / "model" / "README.md").read_text()
        )

    def test_keeps_the_best_model_of_all_epochs_raw_or_ema(self, go, tmp_path, metrics):
        best = go()
        validations = [row for row in metrics(tmp_path / "run") if row["kind"] == "val"]
        assert best["rsum"] == max(row["rsum"] for row in validations)
        assert best == next(row for row in validations if row["rsum"] == best["rsum"])

    def test_is_the_same_again_to_the_bit(self, go, tmp_path, metrics):
        go("first")
        go("second")
        assert weights(tmp_path / "first") == weights(tmp_path / "second")
        assert metrics(tmp_path / "first") == metrics(tmp_path / "second")

    def test_depends_on_the_seed(self, go, tmp_path):
        go("first")
        go("second", seed=1)
        assert weights(tmp_path / "first") != weights(tmp_path / "second")

    @pytest.mark.parametrize(
        "changes",
        [
            {"loss": {"cmpm": 1.0}, "ema": EMAConfig(decay=0.0)},
            {"loss": {"cmpc": 1.0}, "ema": EMAConfig(parts="image", before_update=True)},
            {"precision": "bf16-mixed"},
            {"precision": "64-true"},
            {"channels_last": False},
        ],
        ids=["cmpm alone", "cmpc alone", "bf16", "double", "planes"],
    )
    def test_goes_through_with_other_settings(self, go, tmp_path, metrics, changes):
        go(**changes)
        rows = [row for row in metrics(tmp_path / "run") if row["kind"] == "train"]
        assert len(rows) == 12
        assert all(("cmpc" in row) == ("cmpc" in changes.get("loss", {"cmpc": 1.0})) for row in rows)
        trained = load_file(newest(tmp_path / "run") / "model.safetensors")
        expected = torch.float64 if changes.get("precision") == "64-true" else torch.float32
        assert trained["image_projection.linear.weight"].dtype == expected

    def test_keeps_the_names_of_its_weights_when_the_image_encoder_is_compiled(self, go, tmp_path, monkeypatch):
        compiled = []

        def compile_eagerly(function, **options):
            compiled.append(function)
            return function

        monkeypatch.setattr(torch, "compile", compile_eagerly)
        go("compiled", compile=True)
        go("eager")
        assert len(compiled) == 1
        assert weights(tmp_path / "compiled") == weights(tmp_path / "eager")

    @pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
    def test_writes_down_the_precision_that_auto_stood_for(self, go, tmp_path, monkeypatch, bf16, expected):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16})
        go(precision="auto", stage2=StageConfig())
        assert f"precision: {expected}\n" in (tmp_path / "run" / "recipe.yaml").read_text()


class TestHistograms:
    def test_are_written_every_so_many_steps_and_only_then(self, go, tmp_path):
        go("with", histograms=5)
        go("without")
        tags = {}
        for name in ("with", "without"):
            board = EventAccumulator(str(tmp_path / name / "tensorboard"), size_guidance={"histograms": 0})
            board.Reload()
            tags[name] = board.Tags()["histograms"]
            if name == "with":
                projections = board.Histograms("gradients/text_projection.linear.weight")
                assert [found.step for found in projections] == [0, 5, 10]
                assert [found.step for found in board.Histograms("weights/losses.cmpc_loss.weight")] == [0, 5, 10]
                assert [found.step for found in board.Histograms("weights/image_encoder.conv1.0.weight")] == [10]
        assert tags["without"] == []
        assert weights(tmp_path / "with") == weights(tmp_path / "without")


class TestAFrozenStage:
    def test_encodes_each_picture_once_and_once_mirrored(self, go, monkeypatch):
        seen = []
        features = DualEncoder.image_features

        def counting(self, images):
            seen.extend(image.numpy().tobytes() for image in images)
            return features(self, images)

        monkeypatch.setattr(DualEncoder, "image_features", counting)
        go(stage1=StageConfig(3, captions_per_image=1, **FROZEN), stage2=StageConfig())
        # 12 images of train, each also flipped, and 12 of val (the same drawings).
        assert len(seen) == 36
        assert sorted(seen[:12] + seen[12:24]) == sorted(set(seen))

    def test_encodes_nothing_that_another_run_has_encoded(self, go, monkeypatch):
        only = {"stage1": StageConfig(1, **FROZEN), "stage2": StageConfig()}
        go("first", **only)

        def refuse(self, images):
            raise AssertionError("encoded again")

        monkeypatch.setattr(DualEncoder, "image_features", refuse)
        go("second", **only)

    def test_leaves_the_image_encoder_as_it_is(self, go, tmp_path):
        go("one", stage1=StageConfig(1, **FROZEN), stage2=StageConfig())
        go("two", stage1=StageConfig(4, **FROZEN), stage2=StageConfig())
        first, second = (load_file(newest(tmp_path / name) / "model.safetensors") for name in ("one", "two"))
        image = [name for name in first if name.startswith("image_encoder.")]
        assert image
        assert all(torch.equal(first[name], second[name]) for name in image)
        assert not torch.equal(first["image_projection.linear.weight"], second["image_projection.linear.weight"])

    def test_with_moving_batch_norm_changes_statistics_only(self, go, tmp_path):
        moving = StageConfig(1, freeze_bn_stats=False, **FROZEN)
        go("still", stage1=StageConfig(1, **FROZEN), stage2=StageConfig())
        go("moving", stage1=moving, stage2=StageConfig())
        still, moved = (load_file(newest(tmp_path / name) / "model.safetensors") for name in ("still", "moving"))
        for name in (name for name in still if name.startswith("image_encoder.")):
            statistics = "running_" in name or "num_batches" in name
            assert torch.equal(still[name], moved[name]) != statistics, name


class TestNotANumber:
    @pytest.fixture
    def broken_after(self, monkeypatch):
        def install(steps: int) -> None:
            taken = []
            losses = MatchingLosses.forward

            def forward(self, *arguments):
                taken.append(None)
                total, terms = losses(self, *arguments)
                return (total * torch.nan if len(taken) > steps else total), terms

            monkeypatch.setattr(MatchingLosses, "forward", forward)

        return install

    @pytest.mark.parametrize("log_every", [1, 100])
    def test_a_loss_stops_the_run_and_names_step_and_batch(self, go, tmp_path, broken_after, log_every):
        broken_after(4)
        with pytest.raises(UserError, match=r"the loss is nan at step 4 \(stage 1, epoch 2, batch 2\)") as caught:
            go(log_every=log_every)
        assert "\n" not in str(caught.value)
        kept = newest(tmp_path / "run")
        assert kept.name == "step-00000003"
        assert all(value.isfinite().all() for value in load_file(kept / "model.safetensors").values())
        assert not finished(tmp_path / "run")

    def test_weights_stop_the_run_before_they_are_kept(self, go, tmp_path, monkeypatch):
        step = torch.optim.Adam.step

        def overflow(self, *arguments):
            step(self, *arguments)
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(torch.inf)

        monkeypatch.setattr(torch.optim.Adam, "step", overflow)
        only = StageConfig(1, epoch_covers="images", **{**FROZEN, "batch_size": 12})
        with pytest.raises(UserError, match=r"weights are NaN or infinite at step 0 \(stage 1, epoch 1, batch 1\)"):
            go(stage1=only, stage2=StageConfig())
        assert not (tmp_path / "run" / "checkpoints").exists()
        assert not (tmp_path / "run" / "model").exists()


class TestInterrupted:
    @pytest.fixture(scope="class")
    def undisturbed(self, tmp_path_factory):
        return {}

    @pytest.fixture
    def expected(self, undisturbed, go, tmp_path, metrics):
        """Weights and metrics of the run that nothing disturbs, made once."""
        if not undisturbed:
            best = go("undisturbed")
            run = tmp_path / "undisturbed"
            undisturbed.update(best=best, weights=weights(run), metrics=metrics(run))
        return undisturbed

    @pytest.mark.parametrize(
        ("step", "number"),
        [
            *[(0, signal.SIGINT), (1, signal.SIGTERM), (2, signal.SIGINT), (4, signal.SIGTERM)],
            *[(5, signal.SIGTERM), (6, signal.SIGINT), (7, signal.SIGTERM), (8, signal.SIGTERM), (11, signal.SIGINT)],
        ],
    )
    def test_a_resumed_run_equals_the_undisturbed_one_to_the_bit(
        self, go, at_step, expected, tmp_path, metrics, step, number
    ):
        at_step(step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match=f"stopped by {number.name}") as caught:
            go()
        assert caught.value.number == number
        assert newest(tmp_path / "run").name == f"step-{step + 1:08d}"
        torch.manual_seed(99)
        assert go(resume=True) == expected["best"]
        assert weights(tmp_path / "run") == expected["weights"]
        assert metrics(tmp_path / "run") == expected["metrics"]
        assert finished(tmp_path / "run")

    def test_several_times_and_with_checkpoints_all_along_it_is_still_the_same(
        self, go, at_step, expected, tmp_path, metrics
    ):
        at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        for turn in range(12):
            try:
                go(resume=turn > 0)
                break
            except Interrupted:
                at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert turn > 3
        assert weights(tmp_path / "run") == expected["weights"]
        assert metrics(tmp_path / "run") == expected["metrics"]

    def test_by_an_error_between_a_row_and_its_checkpoint_no_row_is_doubled(
        self, go, expected, tmp_path, metrics, monkeypatch
    ):
        save = loop.save_checkpoint

        def fail(directory, checkpoint):
            if checkpoint.state["step"] == 5:
                raise RuntimeError("a crash")
            save(directory, checkpoint)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", fail)
            with pytest.raises(RuntimeError, match="a crash"):
                go(checkpoint_minutes=0.0)
        assert [row["step"] for row in metrics(tmp_path / "run")][-1] == 4
        assert newest(tmp_path / "run").name == "step-00000004"
        go(checkpoint_minutes=0.0, resume=True)
        assert metrics(tmp_path / "run") == expected["metrics"]

    def test_by_a_signal_in_a_validation_it_is_cut_short_and_made_anew(
        self, go, expected, tmp_path, metrics, monkeypatch
    ):
        embed, save, embedded = loop.embed_split, loop.save_checkpoint, []

        def signalled(*arguments, **options):
            embedded.append(None)
            if len(embedded) == 4:  # the EMA after the second epoch
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("went on")
            return embed(*arguments, **options)

        def crash(directory, checkpoint):
            raise RuntimeError("a crash")

        monkeypatch.setattr(loop, "embed_split", signalled)
        with pytest.raises(Interrupted, match="SIGTERM"):
            go()
        assert newest(tmp_path / "run").name == "step-00000006"
        assert [row["step"] for row in metrics(tmp_path / "run") if row["kind"] == "val"] == [3, 3]
        monkeypatch.setattr(loop, "save_checkpoint", crash)
        with pytest.raises(RuntimeError, match="a crash"):  # with the rows written, and no checkpoint after them
            go(resume=True)
        monkeypatch.setattr(loop, "save_checkpoint", save)
        go(resume=True)
        assert weights(tmp_path / "run") == expected["weights"]
        assert metrics(tmp_path / "run") == expected["metrics"]

    def test_signal_handlers_are_put_back(self, go):
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        go(stage2=StageConfig())
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
        self, go, at_step, expected, tmp_path, metrics, caplog
    ):
        at_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            go()
        with (newest(tmp_path / "run") / "optimizer.safetensors").open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(b"\xff" * 8)
        go(resume=True)
        assert "step-00000008 is damaged" in caplog.text
        assert weights(tmp_path / "run") == expected["weights"]
        assert metrics(tmp_path / "run") == expected["metrics"]

    def test_half_written_leftovers_of_a_kill_are_removed(self, go, at_step, tmp_path):
        at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            go()
        run = tmp_path / "run"
        (run / ".model.12345").mkdir()
        (run / "checkpoints" / ".step-00000005.12345").mkdir()
        (run / ".metrics.jsonl.12345").touch()
        go(resume=True)
        assert not list(run.rglob(".*"))

    def test_a_full_disk_stops_the_run_with_a_sentence_and_the_last_checkpoint_goes_on(
        self, go, expected, tmp_path, metrics, monkeypatch
    ):
        save, saved = loop.save_checkpoint, []

        def full(directory, checkpoint):
            saved.append(directory)
            if len(saved) == 3:
                from safetensors import SafetensorError

                def fail(*arguments):
                    raise SafetensorError("I/O error: No space left on device (os error 28)")

                monkeypatch.setattr("safetensors.torch.save_file", fail)
            save(directory, checkpoint)

        monkeypatch.setattr(loop, "save_checkpoint", full)
        with pytest.raises(UserError, match="is full"):
            go()
        monkeypatch.undo()
        monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "cache"))
        assert newest(tmp_path / "run").name == "step-00000006"
        go(resume=True)
        assert weights(tmp_path / "run") == expected["weights"]
        assert metrics(tmp_path / "run") == expected["metrics"]


class TestRefused:
    @pytest.fixture
    def stopped(self, go, at_step):
        at_step(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            go()

    @pytest.mark.usefixtures("stopped")
    def test_resuming_another_recipe(self, go):
        with pytest.raises(UserError, match="differs from the recipe given in seed; resume with the same recipe"):
            go(resume=True, seed=1)

    @pytest.mark.usefixtures("stopped")
    def test_a_run_from_before_a_field_was_added_goes_on(self, go, tmp_path):
        path = next(tmp_path.rglob("recipe.yaml"))
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith("hflip_sides:")]
        assert len(kept) == len(lines) - 1
        path.write_text("".join(kept))
        go(resume=True)

    @pytest.mark.usefixtures("stopped")
    def test_resuming_on_other_data(self, go, toy_directory, tmp_path):
        from crosspair.data.prepare import prepare
        from crosspair.data.records import Record

        data = open_data(toy_directory)
        records = [
            Record(f"{name} {row}", data.split(name).image(row), row, ("other words",), name)
            for name in ("train", "val")
            for row in range(4)
        ]
        prepare(records, tmp_path / "other", source={}, size=0, processes=1, progress=False)
        with pytest.raises(UserError, match=f"trained on other data than .*other; resume with --data {toy_directory}"):
            go(resume=True, data=open_data(tmp_path / "other"))

    def test_resuming_a_finished_run(self, go):
        go(stage2=StageConfig())
        with pytest.raises(UserError, match="is finished already"):
            go(resume=True, stage2=StageConfig())

    def test_resuming_where_nothing_was_trained(self, go, tmp_path):
        (tmp_path / "run").mkdir()
        for name in ("run", "nowhere"):
            with pytest.raises(UserError, match="holds no training run to resume"):
                go(name, resume=True)

    def test_an_output_that_is_occupied(self, go, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").touch()
        with pytest.raises(UserError, match="exists and is not empty"):
            go()
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]

    def test_data_without_a_split_to_validate_on(self, go, toy_directory, tmp_path):
        from crosspair.data.prepare import prepare
        from crosspair.data.records import Record

        image = open_data(toy_directory).split("train").image(0)
        records = [Record("one", image, 0, ("a square",), "train")]
        prepare(records, tmp_path / "trainonly", source={}, size=0, processes=1, progress=False)
        with pytest.raises(UserError, match="has no split 'val'; it has train"):
            go(data=open_data(tmp_path / "trainonly"))
        assert not (tmp_path / "run").exists()

    def test_a_device_that_is_not_here(self, go):
        with pytest.raises(UserError, match=r"device '(cuda|warp)' can't be used .*expected auto, cpu, cuda or mps"):
            go(device="warp" if torch.cuda.is_available() else "cuda")
