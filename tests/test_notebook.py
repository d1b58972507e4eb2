"""The tutorial runs from top to bottom without a network, and what it says of its results is so."""

import json
import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def test_it_is_stored_without_outputs():
  cells = json.loads(NOTEBOOK.read_text())["cells"]
  assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
def test_it_runs_and_leaves_what_it_says(monkeypatch, tmp_path):
  nbclient = pytest.importorskip("nbclient", reason="the `dev` extra is not installed")
  nbformat = pytest.importorskip("nbformat")
  pytest.importorskip("ipykernel")
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
  for name in ("http_proxy", "https_proxy"):  # nothing is there
    monkeypatch.setenv(name, "http://127.0.0.1:9")
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
  (folder,) = tmp_path.glob("letters-*")
  results = json.loads((folder / "runs" / "letters" / "results.json").read_text())
  assert results["mAP"] > 0.5 > results["auxiliary_mAP"]
  assert results["pointing"] > max(0.7, results["fixed_grid_pointing"])
  assert (folder / "letters.html").read_text().count('<figure class="card">') == results["test_images"] == 200
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
  said = "".join(output.get("text", "") for output in outputs)
  assert "error" not in said.lower()
  predicted = re.findall(r"^000[012]\.png \[(.*)\]$", said, re.MULTILINE)
  assert len(predicted) == 3  # in one of them there may be nothing that is sure enough
  assert any(re.match(r"\('[A-Z]', [01]\.\d+, \[\d+, \d+, \d+, \d+\]\)", labels) for labels in predicted)
  assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
