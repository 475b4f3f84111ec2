"""Executes the notebooks on a copy of the demo run and stores their outputs.

    make demo
    .venv/bin/python scripts/notebooks.py            # all of them
    .venv/bin/python scripts/notebooks.py 03 06      # those whose names begin so

The notebooks and ``runs/demo`` are copied to a temporary folder of the same layout, so nothing of the run changes.
Needs nbclient and ipykernel.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
_COLOURS = 128


def layout(scratch: Path, run: Path, notebooks: Path = FOLDER) -> Path:
    """Copies notebooks and a run to where they stand in the tree; returns the folder of the notebooks."""
    shutil.copytree(run, scratch / "runs" / "demo")
    return Path(shutil.copytree(notebooks, scratch / "notebooks"))


def execute(
    file: Path, timeout: float = 600.0, more: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> nbformat.NotebookNode:
    """Runs all cells of a notebook in a kernel of its own, in the notebook's folder.

    Args:
        file: the notebook; it is not changed.
        timeout: seconds for any one cell.
        more: code of cells to run after the last.
        environment: of the kernel's process; that of this one by default.

    Raises:
        nbclient.exceptions.CellExecutionError: where a cell fails.
    """
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in more]
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(file.parent)}},
    )
    client.execute(**({} if environment is None else {"env": dict(environment)}))
    return notebook


def _smaller(picture: str) -> str:
    """A PNG (base64) with a palette in place of full colours: a third of the size, and looks the same for drawings."""
    from PIL import Image

    packed = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leaves out of an executed notebook what differs from machine to machine and packs pictures; changed in place.

    Raises:
        ValueError: where a cell wrote to standard error: readers would be shown a warning that is not theirs.
    """
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                raise ValueError(f"a cell wrote to standard error: {output.text.strip()}\n{cell.source}")
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    nbformat.validate(notebook)
    return notebook


def main() -> int:
    """Executes the notebooks asked for."""
    parser = argparse.ArgumentParser(description="Execute the notebooks and store their outputs.")
    parser.add_argument("names", nargs="*", help="beginnings of names; without them all")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo", help="the demo run (runs/demo)")
    given = parser.parse_args()
    if not (given.run / "report.html").exists():
        print(f"error: no finished run in {given.run}; run `make demo` first", file=sys.stderr)
        return 2
    chosen = [f for f in sorted(FOLDER.glob("*.ipynb")) if not given.names or f.name.startswith(tuple(given.names))]
    with tempfile.TemporaryDirectory() as scratch:
        folder = layout(Path(scratch), given.run)
        for file in chosen:
            start = time.perf_counter()
            notebook = tidy(execute(folder / file.name))
            nbformat.write(notebook, file)
            print(f"{file.name}: {time.perf_counter() - start:.0f} s, {file.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
