import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crosspair.errors import UserError
from crosspair.formats.tensorflow_checkpoint import read_checkpoint
from tests.fixtures.paths import ORACLE

Writer = Callable[[Path, dict[str, np.ndarray]], None]

CHECKPOINT = ORACLE / "legacy" / "index"  # the whole index, and the beginning of its data
VARIABLES = {
    "global_step": np.array(39, dtype=np.int64),
    "net/biases": np.linspace(-1, 1, 5, dtype=np.float32),
    "net/counts": np.array([-3, 0, 2**31 - 1], dtype=np.int32),
    "net/flags": np.array([[True], [False]]),
    "net/weights": np.random.default_rng(0).standard_normal((3, 3, 4, 2)).astype(np.float32),
    "net/weights/double": np.random.default_rng(1).standard_normal(7),
    "none": np.empty((0, 4), dtype=np.float32),
}


@pytest.fixture(params=["v1", "v2"])
def written(request: pytest.FixtureRequest, tmp_path: Path, write_v1: Writer, write_v2: Writer) -> Path:
    path = tmp_path / "model.ckpt-39"
    {"v1": write_v1, "v2": write_v2}[request.param](path, VARIABLES)
    return path


def test_an_index_of_tensorflow_lists_all_variables_and_gives_those_whose_bytes_are_there() -> None:
    expected = json.loads((CHECKPOINT / "variables.json").read_text())
    checkpoint = read_checkpoint(CHECKPOINT / "model.ckpt-39")
    assert list(checkpoint) == sorted(expected["shapes"])
    for name, digest in expected["first"].items():
        assert list(checkpoint[name].shape) == expected["shapes"][name]
        assert hashlib.sha256(checkpoint[name].tobytes()).hexdigest() == digest
    with pytest.raises(UserError, match=r"variable global_step: its 8 bytes .* are not there"):
        checkpoint["global_step"]


def test_every_variable_of_a_whole_checkpoint_has_its_checksum(shared_oracle: Path) -> None:
    whole = shared_oracle / "checkpoint"
    expected = json.loads((whole / "variables.json").read_text())
    expected = expected.get("variables", expected)
    checkpoint = read_checkpoint(whole / "model.ckpt-39")
    assert len(checkpoint) == 499
    for name, facts in expected.items():
        assert hashlib.sha256(checkpoint[name].tobytes()).hexdigest() == facts["sha256"]


def test_both_formats_give_names_shapes_types_and_values(written: Path) -> None:
    checkpoint = read_checkpoint(written)
    assert sorted(checkpoint) == sorted(VARIABLES)
    for name, expected in VARIABLES.items():
        assert checkpoint[name].dtype == expected.dtype
        np.testing.assert_array_equal(checkpoint[name], expected, strict=True)


def test_arrays_are_the_callers_own(written: Path) -> None:
    checkpoint = read_checkpoint(written)
    checkpoint["net/biases"][:] = 7
    np.testing.assert_array_equal(checkpoint["net/biases"], VARIABLES["net/biases"])


def test_an_index_file_names_its_checkpoint(tmp_path: Path, write_v2: Writer) -> None:
    write_v2(tmp_path / "model.ckpt-1", VARIABLES)
    assert len(read_checkpoint(tmp_path / "model.ckpt-1.index")) == len(VARIABLES)


def test_a_changed_value_is_noticed_when_it_is_read(tmp_path: Path, write_v2: Writer) -> None:
    write_v2(tmp_path / "model", VARIABLES)
    data = tmp_path / "model.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[8] ^= 1  # the first byte behind global_step
    data.write_bytes(content)
    checkpoint = read_checkpoint(tmp_path / "model")
    assert checkpoint["global_step"] == 39
    with pytest.raises(UserError, match="variable net/biases: its checksum is wrong; expected a whole TensorFlow"):
        checkpoint["net/biases"]


def test_any_changed_byte_of_a_table_is_an_error_or_changes_nothing(written: Path) -> None:
    path = written if written.is_file() else written.with_name(f"{written.name}.index")
    whole = path.read_bytes()
    for position in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        path.write_bytes(damaged)
        try:
            checkpoint = read_checkpoint(written)
            found = {name: checkpoint[name] for name in checkpoint}
        except UserError:
            continue
        assert sorted(found) == sorted(VARIABLES)
        for name, expected in VARIABLES.items():
            np.testing.assert_array_equal(found[name], expected, strict=True)


@pytest.mark.parametrize("kept", [0, 10, 60, 300])
def test_a_cut_file_is_one_sentence(written: Path, kept: int) -> None:
    path = written if written.is_file() else written.with_name(f"{written.name}.index")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        UserError, match=r"can't read the checkpoint .*; expected a whole TensorFlow checkpoint"
    ) as error:
        read_checkpoint(written)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path: Path, write_v2: Writer) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at .*model; expected model\.index"):
        read_checkpoint(tmp_path / "model")
    write_v2(tmp_path / "model", VARIABLES)
    (tmp_path / "model.data-00000-of-00001").unlink()
    with pytest.raises(UserError, match=r"model\.data-00000-of-00001"):
        read_checkpoint(tmp_path / "model")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"no table" * 100)
    with pytest.raises(UserError, match="neither a V2 prefix nor a V1 file"):
        read_checkpoint(tmp_path / "model.ckpt")
