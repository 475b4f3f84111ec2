"""A trained run directory or a bundle, read for sampling: no more of it than populations start from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from flax import nnx
from jaxtyping import Int
from ml_collections import ConfigDict

from scbig import config as configuration
from scbig.anchor import Anchor
from scbig.data.conditions import CONTROL
from scbig.data.source import told_damage
from scbig.data.store import Rows, index_on_disk
from scbig.errors import InputError
from scbig.predict import bundle
from scbig.predict.cells import Cells, own, thinned
from scbig.predict.ensemble import Ensemble
from scbig.predict.sampler import Predictor
from scbig.run import Run
from scbig.training import assemble, autoencoder
from scbig.training.vocabulary import Vocabulary

__all__ = ["cell_table", "load"]

_ABOUT = ("schema", "normalization", "target_sum", "size_factor")


@overload
def load(runs: str | os.PathLike, controls: ad.AnnData | None = None) -> Predictor: ...


@overload
def load(runs: Sequence[str | os.PathLike], controls: ad.AnnData | None = None) -> Predictor | Ensemble: ...


def load(
    runs: str | os.PathLike | Sequence[str | os.PathLike], controls: ad.AnnData | None = None
) -> Predictor | Ensemble:
    """A trained run directory or a file that ``scbig export`` wrote, or several of them as an ensemble over seeds.

    Args:
        runs: their paths.
        controls: cells to start from instead of those of the run, as :func:`scbig.data.read` leaves them: counts, or
            log-expression in the units of the run; genes are matched by name, and its contexts must be among those
            trained on. A file that was exported without controls needs them.

    Raises:
        InputError: where a stage has not been run, or its files changed since; where the file is damaged or of another
            format; and where the controls are in other units or lack genes.
    """
    if isinstance(runs, (str, os.PathLike)):
        return _load(Path(runs), controls)
    members = tuple(_load(Path(place), controls) for place in runs)
    return members[0] if len(members) == 1 else Ensemble(members)


def cell_table(run: Run) -> pd.DataFrame:
    """Condition, context, batch, part and dose of every cell of a pretrained run, without the cells' names."""
    path = run.path("latents.zarr")
    with told_damage(str(path)):
        obs: Any = zarr.open_group(str(path), mode="r")["obs"]
        return pd.DataFrame({name: ad.io.read_elem(obs[name]) for name in obs.attrs["column-order"]}, copy=False)


def _load(place: Path, controls: ad.AnnData | None) -> Predictor:
    if place.is_file() or (place.suffix == ".scbig" and not place.exists()):
        with bundle.unpacked(place) as run:
            settings = configuration.read_json(run.path("config.json"))
            cells = bundle.read_cells(run.path("cells.h5ad"))
            if controls is None and not len(cells.obs):
                raise InputError(
                    f"{place} was exported without control cells; give cells of your own, "
                    f'predict.load("{place}", controls=cells), where cells = scbig.data.read(FILE)'
                )
            return _assembled(run, settings, cells, controls)
    run = Run(place)
    if not run.path("config.json").exists():
        raise InputError(f"{place} is not a run directory (no config.json); train one with `scbig run`")
    run.require(("prepare", "cluster", "pretrain", "train"))
    settings = configuration.read_json(run.path("config.json"))
    return _assembled(run, settings, _cells(run, settings, controls is None), controls)


def _assembled(run: Run, settings: ConfigDict, cells: Cells, controls: ad.AnnData | None) -> Predictor:
    """The predictor of a run directory, or of what a bundle unpacks to."""
    cells.var["module"] = assemble.load_modules(run, cells.var.index).module
    auto = assemble.load_autoencoder(run, settings, cells.var.index)
    vocabulary = Vocabulary.load(run.path("flow/conditions.npz"))
    graph, params = nnx.split(assemble.load_flow(run, settings, vocabulary))
    if controls is not None:
        cells = own(controls, cells, auto, vocabulary.contexts)
    return Predictor(
        name=settings.name,
        settings=settings,
        auto=auto,
        graph=graph,
        params=params,
        vocabulary=vocabulary,
        controls=cells.obs,
        z0=cells.z0,
        x0=cells.x0,
        var=cells.var,
        about=cells.about,
        anchor=Anchor.load(run.path("flow/anchor.npz")),
    )


def _cells(run: Run, settings: ConfigDict, wanted: bool) -> Cells:
    """The controls of a run to start from; only genes and normalisation where they are not wanted."""
    path = run.path("prepared.h5ad")
    with told_damage(str(path)), h5py.File(path, "r") as file:
        var, about = ad.io.read_elem(file["var"]), ad.io.read_elem(file["uns/scbig"])
        about = {key: about[key] for key in _ABOUT if key in about}
        if not wanted:
            nothing = sp.csr_matrix((0, len(var)), dtype=np.float32)
            return Cells(pd.DataFrame(), np.zeros((0, settings.gcae.latent), np.float32), nothing, var, about)
        table = cell_table(run)
        chosen = _controls(table, settings.sample.max_controls, settings.seed)
        if settings.gcae.likelihood != "gaussian":
            size = np.asarray(ad.io.read_elem(file["obs/size_factor"]), np.float64)
            table["depth"] = autoencoder.depths(size, about)
        x = file["X"]
        x0 = Rows(x["data"], x["indices"], x["indptr"][...].astype(np.int64), len(var), str(path))[chosen]
    path = run.path("latents.zarr")
    with told_damage(str(path)):
        latents: Any = zarr.open_group(str(path), mode="r")
        z0 = _rows(latents["X"], chosen).astype(np.float32)
        names = _rows(index_on_disk(latents["obs"]), chosen)
    obs = table.iloc[chosen].set_axis(pd.Index(names.astype(object)), axis=0)
    return Cells(obs, z0, x0, var, about)


def _controls(table: pd.DataFrame, most: int, seed: int) -> Int[np.ndarray, " controls"]:
    """Places of the controls to start from; where there are more than ``most``, each context's share at random."""
    is_control = np.asarray(table["condition"] == CONTROL)
    test = is_control & np.asarray(table["part"] == "test")
    # Held-out controls where the split has them: a prediction should not start from cells it was trained on.
    chosen = np.flatnonzero(test if test.any() else is_control)
    return thinned(chosen, table["context"].iloc[chosen].astype(str).to_numpy(), most, seed)


def _rows(array: Any, places: Int[np.ndarray, " places"]) -> np.ndarray:
    """Rows of an array on disk at ascending places, chunk by chunk."""
    size = array.chunks[0]
    parts = [array[0:0]]
    for span in np.split(places, np.flatnonzero(np.diff(places // size)) + 1):
        first = int(span[0]) // size * size
        parts.append(array[first : first + size][span - first])
    return np.concatenate(parts)
