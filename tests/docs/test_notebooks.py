"""The notebooks run from top to bottom, as a reader would run them, and are kept with what they showed."""

import re

import nbformat
import pytest
from common import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONG = {  # what make test-all runs
    "04_does_it_look": "scores the words of sixty scenes anew without their object",
    "06_calibration_and_gating": "attacks and answers hundreds of scenes, of which each map and bound needs enough",
    "08_add_a_model": "runs the conformance suite three times, as test_the_page_from_top_to_bottom does",
}
RUN = [pytest.param(path, id=path.stem, marks=[pytest.mark.long] * (path.stem in LONG)) for path in NOTEBOOKS]
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures_of(notebook):
    """How many pictures each cell shows."""
    return [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in code_of(notebook)]


def shown(notebook):
    """The text of every output: what was printed, and what stands beside or in place of a picture."""
    for cell in code_of(notebook):
        for output in cell.outputs:
            yield output.get("text", "")
            yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


# Seconds for a cell and for a kernel to start: a run that hangs ends, and one that waits for a busy machine does not.
FAR_TOO_LONG = {"timeout": 1800, "startup_timeout": 600}


# Each starts a kernel that imports torch and transformers: some need 20 s on a slow machine.
@pytest.mark.parametrize("path", RUN)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, kernel_name="python3", resources=place, **FAR_TOO_LONG).execute()
    assert all(cell.execution_count for cell in code_of(notebook))
    told = "".join(output.get("text", "") for cell in code_of(notebook) for output in cell.outputs)
    assert not re.search("Loading weights|IProgress", told)
    assert pictures_of(notebook) == pictures_of(nbformat.read(path, as_version=4)), "run tools/docs/run_notebooks.py"


@notebooks
def test_notebook_is_kept_with_output_and_without_noise(path):
    notebook = nbformat.read(path, as_version=4)
    code = code_of(notebook)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"]
    text = "\n".join(shown(notebook))
    assert not re.search(r"/(home|root|tmp|Users|site-packages)/|\x1b\[", text)


@notebooks
def test_links_of_notebook_lead_to_files(path):
    notebook = nbformat.read(path, as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", prose) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


def test_all_notebooks_are_there():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, 10)]
