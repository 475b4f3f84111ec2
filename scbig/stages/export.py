"""A trained run as one file: what sampling needs, and what its readers must know."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from scbig import config as configuration
from scbig import predict
from scbig.console import say
from scbig.data.splits import PARTS, Split
from scbig.errors import InputError
from scbig.files import digest
from scbig.predict import Predictor, bundle
from scbig.predict.cells import Cells, thinned
from scbig.run import Run
from scbig.stages import card
from scbig.training import autoencoder
from scbig.training.checkpoint import export_params

__all__ = ["Task", "export"]

_COPIED = ("modules.csv", "gcae/summary.npz", "flow/conditions.npz", "flow/anchor.npz")
_TRAINED = ("prepare", "cluster", "pretrain", "train")


@dataclass(frozen=True)
class Task:
    """What is to be exported.

    Attributes:
        workdir: the run directory.
        out: the file to write, ending in ``.scbig``.
        controls: control cells that go along, at most; contexts give the same number each.
        force: replace the file.
    """

    workdir: str
    out: str
    controls: int = 2000
    force: bool = False


def export(task: Task) -> Path:
    """Writes a bundle; the run is left as it is.

    Returns:
        The file.

    Raises:
        InputError: no trained run, a file that is there, or one of another name.
    """
    out, run = Path(task.out), Run(task.workdir)
    if out.suffix != ".scbig":
        raise InputError(f"--out {task.out} must end in .scbig")
    if task.controls < 0:
        raise InputError(f"--controls {task.controls}: a number of cells is expected, 0 for none")
    if out.exists() and (out.is_dir() or not task.force):
        raise InputError(f"{task.out} exists; choose another --out or replace it with --force")
    if Path(task.workdir).is_file():
        raise InputError(f"{task.workdir} is a file; name the run directory that is to be exported")
    predictor = predict.load(task.workdir)
    cells = _cells(predictor, task.controls)
    about = _about(run, predictor, cells)
    with tempfile.TemporaryDirectory(prefix="scbig-") as name:
        folder = Path(name)
        for each in _COPIED:
            (folder / each).parent.mkdir(exist_ok=True)
            shutil.copyfile(run.path(each), folder / each)
        (folder / "config.json").write_text(configuration.as_json(_without_places(predictor.settings)), "utf-8")
        export_params(folder / "gcae/params", autoencoder.tree_of(predictor.auto))
        export_params(folder / "flow/params", _flow_params(predictor))
        bundle.write_cells(folder / "cells.h5ad", cells)
        (folder / "model_card.md").write_text(card.render(run, about["controls"]), "utf-8")
        sizes = bundle.pack(folder, out, about)
    _say(out, sizes, about["controls"])
    return out


def _cells(predictor: Predictor, most: int) -> Cells:
    """Controls of the predictor, thinned as it thins those of the run."""
    context = predictor.controls["context"].astype(str).to_numpy()
    every = np.arange(len(context))
    kept = thinned(every, context, most, predictor.settings.seed) if most else every[:0]
    var = predictor.var.drop(columns="module")
    return Cells(predictor.controls.iloc[kept], predictor.z0[kept], predictor.x0[kept], var, predictor.about)


def _flow_params(predictor: Predictor) -> Any:
    network = nnx.merge(predictor.graph, predictor.params)
    return nnx.split(network, nnx.Param, ...)[1]


def _without_places(settings: ConfigDict) -> ConfigDict:
    """The settings with names of files in place of paths, which are nobody else's business."""
    found = settings.copy_and_resolve_references()
    for group, field in (("data", "path"), ("split", "path")):
        found[group][field] = PurePath(found[group][field]).name
    found.priors.dir = found.compiled = ""
    for field in ("aliases", "gene_ids", "ppi", "ppi_info", "pathways"):
        found.priors[field] = PurePath(found.priors[field]).name
    for field in ("semantic", "condition", "gene_sets"):
        found.priors[field] = tuple(PurePath(name).name for name in found.priors[field])
    found.anchor.sources = tuple(PurePath(name).name for name in found.anchor.sources)
    return found


def _about(run: Run, predictor: Predictor, cells: Cells) -> dict[str, Any]:
    """Entries of the manifest; all from the run, so that the same run gives the same file."""
    stages, split = run.provenance["stages"], Split.load(run.path("split.csv"))
    held_out = "part" in cells.obs and bool((cells.obs["part"].astype(str) == "test").all()) and len(cells.obs) > 0
    per_context = cells.obs["context"].astype(str).value_counts().sort_index()
    return {
        "name": predictor.name,
        "trained": stages["train"]["finished"],
        "software": stages["train"]["software"],
        "normalization": {key: _plain(value) for key, value in predictor.about.items()},
        "split": {
            "name": split.name, "rule": split.rule, "seed": split.seed, "sha256": split.sha256,
            **{part: split.conditions(part) for part in PARTS},
        },
        "controls": {
            "cells": len(cells.obs), "of": len(predictor.controls), "held_out": held_out,
            "per_context": {str(name): int(n) for name, n in per_context.items()},
        },
        "parameters": {
            "gcae": _count(predictor.auto.params), "flow": _count(_flow_params(predictor)),
        },
        "run": run.outputs_of(_TRAINED),
    }  # fmt: skip


def _count(params: Any) -> int:
    return int(sum(np.size(leaf) for leaf in jax.tree.leaves(params)))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _say(out: Path, sizes: dict[str, int], controls: dict[str, Any]) -> None:
    for name, size in sizes.items():
        say(f"{size / 1e6:10.3f} MB  {name}")
    say(f"{out.stat().st_size / 1e6:10.3f} MB  {out}")
    if controls["cells"]:
        kept = f"{controls['cells']:,} of {controls['of']:,} control cells of the screen travel along"
        say(f"{kept}; --controls 0 leaves them out")
    else:
        say("no cells travel along: whoever samples gives control cells of their own")
    say("mean effects of the training conditions travel along; perturbed cells do not")
    say(f"sha256 {digest(out)}")
