"""Names that users add to: by plugins, by the environment, by installed packages, in one sentence where it fails."""

import hashlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import crosspair
from crosspair import registry
from crosspair.errors import UserError
from crosspair.registry import LOSSES, REGISTRIES, Plugin, load_plugin, loaded_plugins

HALF = """
import crosspair

@crosspair.register_loss("half")
def half(image_embeddings, text_embeddings, image_labels, text_labels, *, share: float = 0.5):
    '''One direction counts more.

    More words.
    '''
    return share * image_embeddings.sum()
"""


@pytest.fixture(autouse=True)
def _untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it, but for built-in losses, whose modules register only once."""
    monkeypatch.delenv("CROSSPAIR_PLUGINS", raising=False)
    LOSSES.entries()
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    monkeypatch.setattr(LOSSES, "_from_packages", None)
    monkeypatch.setattr(registry, "_plugins", {})


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[..., str]:
    def write(text: str = HALF, name: str = "my_loss.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def test_a_file_registers_what_it_decorates(plugin):
    path = plugin()
    assert "half" not in LOSSES
    loaded = load_plugin(path)
    assert loaded == Plugin("my_loss.py", hashlib.sha256(Path(path).read_bytes()).hexdigest(), path)
    entry = LOSSES.entry("half")
    assert (entry.plugin, entry.summary) == (loaded, "One direction counts more.")
    assert [(name, setting.type, setting.default) for name, setting in entry.settings.items()] == [
        ("share", float, 0.5)
    ]
    assert loaded_plugins() == [loaded]
    assert load_plugin(path) is loaded


def test_a_module_is_a_plugin_by_its_name(plugin, tmp_path, monkeypatch):
    plugin(name="half_module.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_plugin("half_module").name == "half_module"
    assert LOSSES.get("half").__module__ == "half_module"


def test_plugins_of_the_environment_are_loaded_when_a_name_is_asked_for(plugin, monkeypatch):
    other = plugin(HALF.replace("half", "third"), "other.py")
    monkeypatch.setenv("CROSSPAIR_PLUGINS", f"{plugin()}:{other}")
    assert {"half", "third"} <= set(LOSSES.names())


def test_a_plugin_of_the_environment_may_ask_for_names_itself(plugin, monkeypatch):
    monkeypatch.setenv("CROSSPAIR_PLUGINS", plugin("from crosspair.registry import LOSSES\nLOSSES.names()\n" + HALF))
    assert "half" in LOSSES


def test_built_in_things_are_no_plugins_even_if_one_imports_them_first(plugin):
    script = f"""
        from crosspair.registry import LOSSES, load_plugin
        load_plugin({plugin("import crosspair.losses" + HALF)!r})
        assert LOSSES.entry("cmpm").plugin is None
        assert LOSSES.entry("half").plugin.name == "my_loss.py"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_names_are_listed_without_torch():
    script = "import sys; from crosspair.registry import *; assert [r.names() for r in REGISTRIES.values()]; " + (
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_built_in_name_is_registered_by_the_module_that_is_named_for_it():
    for kind in ("losses", "samplers", "optimizers", "schedules"):
        for name in REGISTRIES[kind].names():
            entry = REGISTRIES[kind].entry(name)
            assert entry.summary
            assert entry.plugin is None
            assert all(setting.meaning for setting in entry.settings.values()), name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("broken.py", "1 / 0", "the plugin broken.py fails with ZeroDivisionError: division by zero; mend it"),
        ("broken.py", "import not_there", "the plugin broken.py fails with ModuleNotFoundError: No module named"),
        ("broken.py", "def (", "the plugin broken.py fails with SyntaxError"),
        ("late.py", HALF + "1 / 0", "the plugin late.py fails with ZeroDivisionError"),
        ("taken.py", HALF.replace('"half"', '"cmpm"'), "'cmpm' is a built-in loss; give your own another name"),
        ("dots.py", HALF.replace('"half"', '"my.half"'), "the loss 'my.half' can't be called so; expected letters"),
        ("bare.py", HALF.replace('("half")', ""), r'a loss needs a name; write @register_loss\("name"\)'),
    ],
)
def test_what_is_wrong_with_a_plugin_is_one_sentence_and_leaves_nothing(plugin, name, text, message):
    before = LOSSES.names()
    with pytest.raises(UserError, match=message) as caught:
        load_plugin(plugin(text, name))
    assert "\n" not in str(caught.value)
    assert (LOSSES.names(), loaded_plugins()) == (before, [])


@pytest.mark.parametrize("name", ["missing.py", "missing_module", "missing.module", "not a name"])
def test_a_missing_plugin_is_one_sentence(name):
    with pytest.raises(UserError, match=f"there is no plugin {name}; expected"):
        load_plugin(name)


def test_a_name_that_two_plugins_register_is_one_sentence_that_names_both(plugin):
    load_plugin(plugin(name="one/my_loss.py"))
    with pytest.raises(UserError, match=r"'half' is registered twice, by .*my_loss.*half and .*my_loss.*half; rename"):
        load_plugin(plugin(name="two/my_loss.py"))


def test_what_is_run_again_in_a_notebook_replaces_itself():
    for _ in range(2):

        @crosspair.register_loss("again")
        def again(image_embeddings, text_embeddings, image_labels, text_labels): ...

    assert LOSSES.get("again") is again
    assert LOSSES.entry("again").plugin is None


def test_an_unknown_name_is_one_sentence_with_the_nearest():
    with pytest.raises(UserError, match=r"there is no loss 'tripplet' \(did you mean triplet\?\); .*--plugin"):
        LOSSES.get("tripplet")


def install(site: Path, name: str, loss: str, version: str = "0.3") -> None:
    """A package as pip leaves it, with an entry point."""
    (site / f"{name}.py").write_text(HALF.replace('@crosspair.register_loss("half")', ""))
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[crosspair.losses]\n{loss} = {name}:half\n")


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    return path


def test_an_installed_package_adds_names_by_entry_points(site):
    install(site, "crosspair_half", "half")
    assert "half" in LOSSES.names()
    assert "crosspair_half" not in sys.modules
    entry = LOSSES.entry("half")
    assert entry.plugin == Plugin("crosspair_half==0.3")
    assert list(entry.settings) == ["share"]


def test_packages_that_add_the_same_name_or_a_built_in_one_are_named(site):
    install(site, "crosspair_one", "same")
    install(site, "crosspair_two", "same")
    with pytest.raises(UserError, match=r"crosspair_\w+==0.3 and crosspair_\w+==0.3 both add a loss 'same'"):
        LOSSES.get("same")
    install(site, "crosspair_cmpm", "sdm")
    LOSSES._entries.pop("sdm", None)
    LOSSES._from_packages = None
    with pytest.raises(UserError, match=r"crosspair_cmpm==0.3 adds a loss 'sdm', which is a built-in name; uninstall"):
        LOSSES.get("sdm")


def test_a_package_that_fails_is_one_sentence(site):
    install(site, "crosspair_broken", "broken")
    (site / "crosspair_broken.py").write_text("raise RuntimeError('no')")
    with pytest.raises(UserError, match=r"the plugin crosspair_broken==0.3 fails with RuntimeError: no"):
        LOSSES.get("broken")


def test_all_decorators_are_at_the_top():
    assert {f"register_{registry.kind.replace(' ', '_')}" for registry in REGISTRIES.values()} - {
        "register_data_format",
        "register_search_engine",
    } | {"register_reader", "register_engine"} == {name for name in crosspair.__all__ if name.startswith("register_")}
