import json

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from crosspair.errors import UserError
from crosspair.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint


def checkpoint(step: int) -> Checkpoint:
    tensors = {
        "model": {"weight": torch.full((2, 3), float(step)), "count": torch.tensor(step)},
        "ema": {},
    }
    return Checkpoint(tensors, {"step": step, "position": [0, 1, 2], "best": {"rsum": 0.1 + 0.2}})


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_checkpoint_reads_back_the_same(tmp_path):
    save_checkpoint(tmp_path, checkpoint(3))
    again = load_checkpoint(tmp_path)
    assert again.state == checkpoint(3).state
    assert list(again.tensors) == ["model", "ema"]
    assert torch.equal(again.tensors["model"]["weight"], torch.full((2, 3), 3.0))
    assert again.tensors["model"]["count"].dtype == torch.int64
    assert again.tensors["ema"] == {}


def test_tensors_that_share_memory_or_lie_in_another_order_are_saved(tmp_path):
    base = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path, Checkpoint({"model": {"a": base, "b": base, "c": base[:, :1]}}, {"step": 0}))
    again = load_checkpoint(tmp_path).tensors["model"]
    assert torch.equal(again["a"], base)
    assert torch.equal(again["c"], base[:, :1])


def test_the_newest_two_are_kept(tmp_path):
    for step in (9, 10, 100, 1000):
        save_checkpoint(tmp_path, checkpoint(step))
    assert names(tmp_path) == ["step-00000100", "step-00001000"]
    assert load_checkpoint(tmp_path).state["step"] == 1000


def test_a_damaged_one_goes_before_those_that_are_whole(tmp_path):
    for step in (10, 20):
        save_checkpoint(tmp_path, checkpoint(step))
    damage_tensors(tmp_path / "step-00000020")
    assert load_checkpoint(tmp_path).state["step"] == 10
    save_checkpoint(tmp_path, checkpoint(12))
    assert names(tmp_path) == ["step-00000010", "step-00000012"]


def test_there_may_be_none(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "nowhere") is None


def damage_tensors(path):
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)


def cut_tensors(path):
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-4])


def damage_sums(path):
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "sha256": 3}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_tensors,
        cut_tensors,
        damage_sums,
        lambda path: (path / "model.safetensors").unlink(),
        lambda path: (path / "state.json").unlink(),
        lambda path: (path / "state.json").write_text('{"step": 1'),
        lambda path: (path / "state.json").write_text("[]"),
        lambda path: (path / "state.json").write_bytes(b"\0" * 100),
        lambda path: [file.unlink() for file in path.iterdir()],
    ],
    ids=["a bit", "the end", "sums", "no tensors", "no state", "half a state", "a list", "zeros", "empty"],
)
def test_a_damaged_one_is_noticed_and_the_one_before_taken(tmp_path, caplog, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step))
    damage(tmp_path / "step-00000002")
    assert load_checkpoint(tmp_path).state["step"] == 1
    assert "step-00000002 is damaged" in caplog.text
    damage(tmp_path / "step-00000001")
    with pytest.raises(UserError, match=r"all 2 checkpoints in .* are damaged; start again"):
        load_checkpoint(tmp_path)


def test_a_full_disk_is_a_sentence_and_keeps_the_ones_before(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step))

    def full(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match="is full"):
        save_checkpoint(tmp_path, checkpoint(3))
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert load_checkpoint(tmp_path).state["step"] == 2
