"""A trained run directory, read for sampling: no more of it than populations start from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from flax import nnx
from jaxtyping import Int

from scbig import config as configuration
from scbig.anchor import Anchor
from scbig.data.conditions import CONTROL
from scbig.data.source import told_damage
from scbig.data.store import Rows
from scbig.errors import InputError
from scbig.predict.ensemble import Ensemble
from scbig.predict.sampler import Predictor
from scbig.rng import generator
from scbig.run import Run
from scbig.training import assemble, autoencoder
from scbig.training.vocabulary import Vocabulary

__all__ = ["cell_table", "load"]


def load(runs: str | os.PathLike | Sequence[str | os.PathLike]) -> Predictor | Ensemble:
    """A trained run directory, or several of them as an ensemble over seeds.

    Raises:
        InputError: where a stage has not been run, or its files changed since.
    """
    if isinstance(runs, (str, os.PathLike)):
        return _load(Path(runs))
    members = tuple(_load(Path(folder)) for folder in runs)
    return members[0] if len(members) == 1 else Ensemble(members)


def cell_table(run: Run) -> pd.DataFrame:
    """Condition, context, batch, part and dose of every cell of a pretrained run, without the cells' names."""
    path = run.path("latents.zarr")
    with told_damage(str(path)):
        obs = zarr.open_group(str(path), mode="r")["obs"]
        return pd.DataFrame({name: ad.io.read_elem(obs[name]) for name in obs.attrs["column-order"]}, copy=False)


def _load(folder: Path) -> Predictor:
    run = Run(folder)
    if not run.path("config.json").exists():
        raise InputError(f"{folder} is not a run directory (no config.json); train one with `scbig run`")
    run.require(("prepare", "cluster", "pretrain", "train"))
    settings = configuration.read_json(run.path("config.json"))
    table = cell_table(run)
    chosen = _controls(table, settings.sample.max_controls, settings.seed)
    path = run.path("prepared.h5ad")
    with told_damage(str(path)), h5py.File(path, "r") as file:
        var, about = ad.io.read_elem(file["var"]), ad.io.read_elem(file["uns/scbig"])
        if settings.gcae.likelihood != "gaussian":
            size = np.asarray(ad.io.read_elem(file["obs/size_factor"]), np.float64)
            table["depth"] = autoencoder.depths(size, about)
        x = file["X"]
        x0 = Rows(x["data"], x["indices"], x["indptr"][...].astype(np.int64), len(var), str(path))[chosen]
    var["module"] = assemble.load_modules(run, var.index).module
    auto = assemble.load_autoencoder(run, settings, var.index)
    vocabulary = Vocabulary.load(run.path("flow/conditions.npz"))
    network = assemble.load_flow(run, settings, vocabulary)
    graph, params = nnx.split(network)
    path = run.path("latents.zarr")
    with told_damage(str(path)):
        latents = zarr.open_group(str(path), mode="r")
        z0 = _rows(latents["X"], chosen).astype(np.float32)
        names = _rows(latents["obs"][latents["obs"].attrs["_index"]], chosen)
    kept = {key: about[key] for key in ("schema", "normalization", "target_sum", "size_factor") if key in about}
    return Predictor(
        name=settings.name,
        settings=settings,
        auto=auto,
        graph=graph,
        params=params,
        vocabulary=vocabulary,
        controls=table.iloc[chosen].set_axis(pd.Index(names.astype(object)), axis=0),
        z0=z0,
        x0=x0,
        var=var,
        about=kept,
        anchor=Anchor.load(run.path("flow/anchor.npz")),
    )


def _controls(table: pd.DataFrame, most: int, seed: int) -> Int[np.ndarray, " controls"]:
    """Places of the controls to start from; where there are more than ``most``, each context's share at random."""
    is_control = np.asarray(table["condition"] == CONTROL)
    test = is_control & np.asarray(table["part"] == "test")
    # Held-out controls where the split has them: a prediction should not start from cells it was trained on.
    chosen = np.flatnonzero(test if test.any() else is_control)
    if len(chosen) <= most:
        return chosen
    context = table["context"].iloc[chosen].astype(str).to_numpy()
    names = np.unique(context)
    kept = []
    for name in names:
        pool = chosen[context == name]
        share = min(len(pool), max(1, most // len(names)))
        kept.append(generator(seed, f"controls of {name}").choice(pool, share, replace=False))
    return np.sort(np.concatenate(kept))


def _rows(array: Any, places: Int[np.ndarray, " places"]) -> np.ndarray:
    """Rows of an array on disk at ascending places, chunk by chunk."""
    size = array.chunks[0]
    parts = [array[0:0]]
    for span in np.split(places, np.flatnonzero(np.diff(places // size)) + 1):
        first = int(span[0]) // size * size
        parts.append(array[first : first + size][span - first])
    return np.concatenate(parts)
