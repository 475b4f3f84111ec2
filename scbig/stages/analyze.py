"""What moved in a trained run, and what it rests on: tables, figures and one page."""

from __future__ import annotations

import difflib
import importlib
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from scbig import analysis
from scbig.analysis import PARTS, Ask, Section, View, page, style
from scbig.analysis.chosen import checked
from scbig.analysis.section import NotHere
from scbig.console import say
from scbig.errors import InputError, some
from scbig.files import atomic

__all__ = ["Task", "analyze"]

_QUICK = 50  # draws and permutations
_RECORD = "about.json"
_STAGES = ("prepare", "cluster", "pretrain", "train")
_SOFTWARE = ("scbig", "jax", "numpy", "scipy", "pandas", "anndata", "matplotlib")


@dataclass(frozen=True)
class Task:
    """What the command was asked.

    Attributes:
        workdir: a trained run.
        out: the folder to write; ``analysis`` in the run where empty.
        only: parts; empty for all.
        conditions: to be looked at; empty lets each part choose, and say which.
        quick: 50 draws and permutations in place of 200.
        seed: of all of them, and of the cells drawn.
        force: replace an earlier analysis.
    """

    workdir: str
    out: str = ""
    only: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    quick: bool = False
    seed: int = 0
    force: bool = False


def analyze(task: Task) -> Path:
    """Runs the parts and writes ``index.html``, ``PART/NAME.csv``, ``.svg`` and ``.png``, and ``about.json``.

    The folder appears whole or not at all.

    Returns:
        The page.

    Raises:
        InputError: an unknown part or condition, a run that is not trained, or a folder that exists.
    """
    parts = _parts(task.only)
    out = Path(task.out) if task.out else Path(task.workdir, "analysis")
    _free(out, task.force)
    view = analysis.load(task.workdir)
    ask = Ask(conditions=checked(view, task.conditions), seed=task.seed)
    if task.quick:
        ask = Ask(ask.conditions, draws=_QUICK, permutations=_QUICK, seed=task.seed)
    with atomic(out) as folder:
        folder.mkdir()
        found = {part: _one(part, view, ask, folder) for part in parts}
        record = _record(task, view, ask, found)
        (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        text = page.render(f"What moved: {view.settings.name}", _lead(view, ask), _facts(record), found, folder)
        (folder / "index.html").write_text(text, encoding="utf-8")
    return out / "index.html"


def _parts(only: tuple[str, ...]) -> tuple[str, ...]:
    """The parts asked for, in their own order."""
    odd = [name for name in only if name not in PARTS]
    if odd:
        near = difflib.get_close_matches(odd[0], PARTS, 1, 0.5)
        raise InputError(
            f"--only {some(odd)}: no such part{f' (did you mean {near[0]}?)' if near else ''}; there are {some(PARTS)}"
        )
    return tuple(part for part in PARTS if not only or part in only)


def _free(out: Path, force: bool) -> None:
    """Refuses to replace anything but an earlier analysis, and that only when told to."""
    if not out.exists():
        return
    # What is forced away is deleted: it must be what this command wrote.
    if not (out / _RECORD).is_file():
        raise InputError(f"{out} exists and is no analysis (no {_RECORD} in it); choose another --out")
    if not force:
        raise InputError(f"{out} holds an analysis; choose another --out or replace it with --force")


def _one(part: str, view: View, ask: Ask, folder: Path) -> Section | str:
    """Runs a part and writes its files; the reason where it does not apply."""
    begun = time.monotonic()
    try:
        found = importlib.import_module(f"scbig.analysis.{part}").report(view, ask)
    except NotHere as reason:
        say(f"{part:<13} {time.monotonic() - begun:6.1f} s  not in this run: {reason}")
        return str(reason)
    home = folder / part
    home.mkdir()
    for name, table in found.tables.items():
        _write(table, home / f"{name}.csv")
    for figure in found.figures:
        style.save(figure, home)
    say(f"{part:<13} {time.monotonic() - begun:6.1f} s  {len(found.tables)} tables, {len(found.figures)} figures")
    return found


def _write(table: pd.DataFrame, file: Path) -> None:
    """A table as CSV, with the index where it has a name."""
    named = table.index.name is not None or table.index.nlevels > 1
    table.to_csv(file, index=named, float_format="%.6g", lineterminator="\n")


def _record(task: Task, view: View, ask: Ask, found: Mapping[str, Section | str]) -> dict[str, Any]:
    return {
        "run": str(Path(task.workdir).resolve()),
        "name": view.settings.name,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ask": asdict(ask),
        "parts": {part: "done" if isinstance(each, Section) else f"not here: {each}" for part, each in found.items()},
        "inputs": view.run.outputs_of(_STAGES),
        "software": {"python": platform.python_version(), **{name: metadata.version(name) for name in _SOFTWARE}},
    }


def _facts(record: Mapping[str, Any]) -> dict[str, object]:
    ask = record["ask"]
    return {
        "Run": record["run"],
        "Date": record["date"],
        "Conditions": list(ask["conditions"]) or "chosen by each part",
        "Predicted cells per condition": ask["n_cells"],
        "Bootstrap draws": ask["draws"],
        "Permutations": ask["permutations"],
        "False discovery rate": ask["alpha"],
        "Seed": ask["seed"],
        "Software": record["software"],
        "Inputs (sha256)": {file: digest[:12] for file, digest in record["inputs"].items()},
    }


def _lead(view: View, ask: Ask) -> str:
    cells, genes = view.adata.shape
    held = {part: len(view.conditions(part)) for part in ("train", "val", "test")}
    text = (
        f"{cells:,} cells, {genes:,} genes, {view.modules.n_modules} modules; perturbed conditions with cells in training, "
        f"validation and test: {held['train']}, {held['val']} and {held['test']}. "
    )
    if ask.conditions:
        text += f"Asked for: {some(ask.conditions)}. "
    return text + "What each part shows, and what not to conclude from it, is in docs/analysis.md."
