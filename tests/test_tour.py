"""The guided tour: the notebook is the script, and all of it runs."""

import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parent.parent / "examples/tour"


def test_the_notebook_is_the_script():
    script, notebook = jupytext.read(TOUR / "tour.py"), jupytext.read(TOUR / "tour.ipynb")
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ]


@pytest.mark.slow
def test_every_cell_runs(models, tmp_path, monkeypatch):
    monkeypatch.setenv("TOUR_MODELS", str(models))
    monkeypatch.setenv("TOUR_OUTPUT", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(TOUR / "tour.ipynb", as_version=4)
    executed = NotebookClient(notebook, timeout=900, kernel_name="python3").execute(env=dict(os.environ))
    parts = [part for cell in executed.cells if cell.cell_type == "code" for part in cell.outputs]
    said = "\n".join(part.get("text") or part.get("data", {}).get("text/plain", "") for part in parts)
    assert "['terse', 'list-maker', 'storyteller', 'hot']" in said
    assert "break-even probe" in said
    assert "Held out: 20 probe prompts" in said
    assert "datasets:" in said or "tags:" in said, "the card is shown"
    results = (tmp_path / "comparison/results.jsonl").read_text().splitlines()
    assert len(results) >= 4  # two policies, two seeds
