"""What the comparisons take from a finished run: what peers are given, and the judge that all are put before."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from scbig import config as configuration
from scbig import evaluation
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.splits import Split
from scbig.evaluation.distribution import mean_distance
from scbig.run import Run
from scbig.training import assemble, decode_all
from scbig.training.vocabulary import Vocabulary

__all__ = ["Screen"]

# Of Papalexi 2021: the knockouts that change cells the most; the other effects there drown in noise.
_NAMED = ("STAT1", "IFNGR1", "IFNGR2", "JAK2", "SMAD4", "IRF1")


class Screen:
    """A finished run, its test cells and its decoder.

    Attributes:
        folder: the run directory.
        prepared: its cells.
        split: its split.
        context: where the comparison takes place: the one of most test cells.
        tested: all test conditions there.
        watched: those that time to quality looks at: the knockouts with a clear effect on Papalexi, elsewhere all.
        z0: latents of the held-out controls, ``[cells, latent]``.
        changes: settings in which our training is to differ from the run's, as ``flow.steps=100``.
    """

    def __init__(self, folder: str | Path, changes: list[str], most: int = 600):
        self.folder, self.changes, run = Path(folder), changes, Run(folder)
        self._run, self.settings = run, configuration.read_json(run.path("config.json"))
        self.prepared = ad.read_h5ad(run.path("prepared.h5ad"))
        self.split = Split.load(run.path("split.csv"))
        part = self.split.assign(self.prepared.obs)
        self._auto = assemble.load_autoencoder(run, self.settings, self.prepared.var_names)
        self._space = evaluation.Space.fit(self.prepared.X[part == "train"], seed=self.settings.seed)
        condition = self.prepared.obs["condition"].astype(str).to_numpy()
        context = self.prepared.obs["context"].astype(str).to_numpy()
        perturbed = (part == "test") & (condition != CONTROL)
        self.context = str(pd.Series(context[perturbed]).mode()[0])
        here = context == self.context
        rows = pd.Series(np.flatnonzero(perturbed & here)).groupby(condition[perturbed & here])
        self._rows = {name: each.to_numpy() for name, each in rows}
        self.tested = sorted(self._rows)
        named = [name for name in _NAMED if name in self._rows]
        self.watched = named if len(named) == len(_NAMED) else self.tested
        control = here & (condition == CONTROL)
        held_out = control & (part == "test")
        # Held-out controls where the split has them, as our sampler takes them.
        self._controls = np.flatnonzero(held_out if held_out.any() else control)[:most]
        self.z0 = np.asarray(ad.read_zarr(run.path("latents.zarr")).X, np.float32)[self._controls]
        self._real = {name: self._truth(name) for name in self.watched}

    def _truth(self, name: str) -> tuple:
        controls = self.prepared.X[self._controls].toarray()
        real = self.prepared.X[self._rows[name]].toarray()
        keep = ~self.prepared.var_names.isin(genes_of(name))
        cells, base = self._space.project(real), self._space.project(controls)
        within = mean_distance(cells)
        own = evaluation.e_distance(base, cells, within_y=within)
        mean = controls.mean(axis=0)
        return cells, within, own, keep, mean, (real.mean(axis=0) - mean)[keep]

    def vectors(self, target: Path) -> Path:
        """Writes the embedding of every perturbation: all sources of our model joined, zeros where one lacks it."""
        known = Vocabulary.load(self._run.path("flow/conditions.npz"))
        labels = self.prepared.obs["condition"].astype(str).unique()
        names = sorted({gene for label in labels for gene in genes_of(label)})
        parts = []
        for source, values in known.vectors.items():
            places = [known.place(source, name) for name in names]
            parts.append([np.zeros(values.shape[1]) if place is None else values[place] for place in places])
        np.savez(target, genes=np.array(names), vectors=np.concatenate(parts, axis=1).astype(np.float32))
        return target

    def score(self, z: np.ndarray) -> dict[str, float]:
        """Mean over the watched conditions of what their sampled latents, ``[conditions, cells, latent]``, score.

        ``e_distance`` to the real test cells as a share of that of the controls the samples started from, in 50
        principal components of training cells; ``pearson_delta`` of the effect without the perturbed gene, both effects
        seen from those controls.
        """
        shares, correlations = [], []
        for name, latent in zip(self.watched, z, strict=True):
            cells, within, own, keep, base, observed = self._real[name]
            decoded = decode_all(self._auto, latent)
            shares.append(evaluation.e_distance(self._space.project(decoded), cells, within_y=within) / own)
            correlations.append(np.corrcoef(observed, (decoded.mean(axis=0) - base)[keep])[0, 1])
        return {"e_distance": float(np.mean(shares)), "pearson_delta": float(np.mean(correlations))}

    def cells(self, method: str, z: np.ndarray) -> ad.AnnData:
        """Sampled latents of all test conditions as predictions that ``scbig evaluate`` reads; decoded, cut at zero."""
        x = np.maximum(decode_all(self._auto, z.reshape(-1, z.shape[-1])), 0.0)
        labels = np.repeat(self.tested, z.shape[1])
        obs = pd.DataFrame({"condition": labels, "context": self.context})
        obs.index = [f"{label}-{i}" for label, i in zip(labels, np.tile(range(z.shape[1]), len(z)), strict=True)]
        return self._told(ad.AnnData(x, obs=obs, var=self.prepared.var[[]].copy()), "cells", method)

    def effects(self, method: str, means: dict[str, np.ndarray], control: np.ndarray) -> ad.AnnData:
        """Predicted mean profiles of conditions, less the controls' ``control``, for ``scbig evaluate``."""
        obs = pd.DataFrame({"condition": list(means), "context": self.context}, index=list(means))
        x = np.stack(list(means.values())) - control[None]
        adata = ad.AnnData(x.astype(np.float32), obs=obs, var=self.prepared.var[[]].copy())
        return self._told(adata, "effects", method)

    def _told(self, adata: ad.AnnData, kind: str, method: str) -> ad.AnnData:
        about = self.prepared.uns["scbig"]
        kept = {key: about[key] for key in ("schema", "normalization", "target_sum", "size_factor") if key in about}
        adata.uns["scbig"] = {"kind": kind, "method": method, "predicted": True, **kept}
        return adata
