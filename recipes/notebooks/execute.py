"""Runs notebooks from start to end, and saves them with what they print and draw, as they are committed.

    python recipes/notebooks/execute.py 01_data 02_tokenizer  # without names, all of them

In order, as later ones go on with what earlier ones made in `outputs/notebooks`. With other settings, and saved
elsewhere, `papermill recipes/notebooks/03_pretraining.ipynb mine.ipynb -p STEPS 1000` runs one.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def main(names: Sequence[str]) -> None:
    for name in names or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        print(name, flush=True)
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        options = {"timeout": None, "record_timing": False, "coalesce_streams": True}
        NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}, **options).execute()
        for cell in notebook.cells:  # progress bars and warnings are on standard error
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        without_places = nbformat.writes(notebook).replace(f"{ROOT}/", "").replace(str(Path.home()), "~")
        (FOLDER / f"{name}.ipynb").write_text(f"{without_places}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
