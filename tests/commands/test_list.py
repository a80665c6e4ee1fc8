"""What `crosspair list` prints, and plugins named on the command line."""

import pytest

import crosspair
from crosspair import registry
from crosspair.cli import main

PLUGIN = '''
import crosspair.registry

@crosspair.registry.register_sampler("{name}")
def by_hand(labels):
    """Batches that a user chose."""
    return labels
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A file that registers a sampler; what it leaves in this process is undone."""
    monkeypatch.setattr(registry, "_plugins", {})
    monkeypatch.setattr(registry.SAMPLERS, "_entries", dict(registry.SAMPLERS._entries))
    path = tmp_path / "my_sampler.py"
    path.write_text(PLUGIN.format(name="by-hand"))
    return path


def test_without_a_kind_the_kinds_are_listed(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out.split()
    assert {"losses", "image-encoders", "text-encoders", "encoders", "readers", "formats", "recipes"} <= set(printed)
    assert {"protocols", "samplers", "optimizers", "schedules", "engines", "backends"} <= set(printed)


def test_a_plugin_is_listed_with_its_summary_and_file(plugin, capsys):
    assert main(["list", "samplers", "--plugin", str(plugin)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("by-hand"))
    assert line.split(maxsplit=1)[1] == "Batches that a user chose. [plugin my_sampler.py]"
    entry = next(entry for entry in crosspair.list_registered("samplers") if entry.name == "by-hand")
    assert entry.plugin is not None
    assert len(entry.plugin.checksum) == 64


def test_recipes_are_listed_as_by_their_own_command(capsys):
    assert main(["recipes"]) == 0
    own = capsys.readouterr().out
    assert main(["list", "recipes"]) == 0
    assert capsys.readouterr().out == own


def test_an_unknown_kind_brings_the_nearest_one(capsys):
    assert main(["list", "loss"]) == 2
    assert "there is no list of loss (did you mean losses?)" in capsys.readouterr().err
    with pytest.raises(crosspair.UserError, match="there are no registered loss; expected one of losses, image-enc"):
        crosspair.list_registered("loss")


@pytest.mark.parametrize("command", ["demo", "recipes", "verify"])
def test_a_plugin_that_is_not_there_or_fails_stops_any_command(command, tmp_path, capsys):
    assert main([command, "--plugin", str(tmp_path / "none.py")]) == 2
    assert "there is no plugin" in capsys.readouterr().err
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    assert main([command, "--plugin", str(broken)]) == 2
    assert "fails with ZeroDivisionError: division by zero" in capsys.readouterr().err
