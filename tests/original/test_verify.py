"""The checks that ship with the package, and that they fail when something is wrong."""

import math
from collections.abc import Iterator

import pytest
import torch

from crosspair.cli import main
from crosspair.original.verify import checks, formulas, towers, trajectory
from crosspair.original.verify.checks import verify
from crosspair.original.verify.formulas import check_losses
from crosspair.original.verify.reference import Comparison, largest_difference, largest_share


def test_every_check_passes_and_the_command_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    header, *lines, summary = capsys.readouterr().out.splitlines()
    assert header.split() == ["what", "largest", "difference", "tolerance", "verdict"]
    assert all(line.endswith("  ok") for line in lines)
    assert summary.startswith(f"{len(lines)} comparisons, 0 failed, ")
    parts = ("CMPM", "CMPC", "pixels", "MobileNet-v1", "ResNet-v1", "text", "projection", "Recall", "precision")
    assert all(any(part in line for line in lines) for part in (*parts, "training"))


def test_a_difference_beyond_its_tolerance_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check() -> Iterator[Comparison]:
        yield Comparison("right", 1e-9, 1e-9)
        yield Comparison("wrong", 2e-9, 1e-9)
        yield Comparison("broken", math.nan, 1e-9)

    monkeypatch.setattr(checks, "CHECKS", {"some": check})
    assert main(["verify"]) == 1
    verdicts = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:4]]
    assert verdicts == ["ok", "FAILED", "FAILED"]


def test_a_changed_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = formulas.cmpm_terms
    monkeypatch.setattr(formulas, "cmpm_terms", lambda *given, **options: terms(*given, epsilon=2e-8, **options))
    failed = [comparison.what for comparison in check_losses() if not comparison.passed]
    assert failed
    assert all(what.startswith("CMPM") for what in failed)


def test_a_changed_encoder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "slim_mobilenet_v1", lambda multiplier: torch.nn.Sequential())
    with pytest.raises(TypeError):
        list(towers.check_encoders())
    monkeypatch.undo()
    monkeypatch.setattr(towers, "norm_momentum", lambda decay: 0.1)
    failed = {comparison.what for comparison in towers.check_encoders() if not comparison.passed}
    assert failed == {f"projection for {name}, statistics after a step" for name in ("MobileNet", "ResNet")}


def test_all_comparisons_are_named_once() -> None:
    names = [comparison.what for comparison in verify().comparisons]
    assert len(set(names)) == len(names)


def test_differences_are_the_largest_ones_and_nan_fails() -> None:
    assert largest_difference(torch.tensor([1.0, 2.0]), [1.0, 2.5]) == 0.5
    assert largest_share([1.0, 9.0], [0.0, 10.0]) == pytest.approx(0.1)
    assert not Comparison("", largest_difference([math.nan, 1.0], [1.0, 1.0]), 1.0).passed
    with pytest.raises(ValueError, match="found shape"):
        largest_difference([1.0], [1.0, 2.0])


def test_the_packaged_recording_is_the_frozen_one() -> None:
    recording = trajectory.packaged_recording()
    assert recording.frozen
    assert recording.variables("after30")
    assert not recording.variables("after10")
