"""Run the notebooks and save their output: ``python tools/docs/run_notebooks.py [NAME ...]``; all if none is named.

Output of libraries on stderr (progress bars, terminal notices) is removed: it depends on the machine, not on the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def main(names: list[str]) -> None:
    """Run the notebooks whose file names begin with one of ``names``."""
    found = [path for path in sorted(FOLDER.glob("*.ipynb")) if not names or path.name.startswith(tuple(names))]
    for path in found:
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
        notebook.metadata = METADATA
        for cell in notebook.cells:
            cell.metadata = {}  # execution times, which change at every run
            if cell.cell_type == "code":
                cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
        nbformat.validate(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
