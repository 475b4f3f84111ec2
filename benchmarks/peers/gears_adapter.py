"""GEARS' side of a comparison; runs in GEARS' environment, where scbig is not installed.

Reads a run directory's prepared cells (``prepared.h5ad``), the part of every cell (``latents.zarr``) and annotations of
genes (a GMT file), trains GEARS through its public interface on training cells alone, and writes the mean profiles that
it predicts. GEARS fetches annotations from the network unless the file that it expects is there: it is made here.
"""

from __future__ import annotations

import gzip
import os
import pickle
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from gears import GEARS, PertData

from benchmarks.peers.worker import serve

__all__ = ["Adapter"]


class Adapter:
    """One model; the methods are the requests."""

    def load(
        self, run: str, annotations: str, work: str, most: int = 0, batch: int = 32, seed: int = 0
    ) -> dict[str, Any]:
        """Training and validation cells in GEARS' own form, without perturbations that have no annotation.

        Of each condition at most ``most`` cells, where it is not 0.
        """
        prepared = ad.read_h5ad(Path(run, "prepared.h5ad"))
        part = ad.read_zarr(Path(run, "latents.zarr")).obs.loc[prepared.obs_names, "part"].astype(str).to_numpy()
        labels = prepared.obs["condition"].astype(str).map(_spelled)
        tested = sorted(set(labels[part == "test"]) - {"ctrl"})
        self.genes = [str(gene) for gene in prepared.var_names]
        folder = Path(work)
        Path(folder, "data").mkdir(parents=True, exist_ok=True)
        os.chdir(folder)  # it keeps its graph of annotations in ./data
        known = _annotations(annotations)
        with open(folder / "gene2go_all.pkl", "wb") as file:
            pickle.dump(known, file)
        perturbed = {gene for label in labels.unique() for gene in label.split("+")} - {"ctrl"}
        graph = sorted((perturbed | set(self.genes)) & set(known))
        with open(folder / "graph_genes.pkl", "wb") as file:
            pickle.dump(graph, file)
        self.answered = [label for label in tested if set(label.split("+")) - {"ctrl"} <= set(graph)]

        def usable(label):
            return set(label.split("+")) - {"ctrl"} <= set(graph)

        kept = np.isin(part, ("train", "val")) & labels.map(usable).to_numpy()
        if most:
            order = pd.Series(np.random.default_rng(seed).permutation(len(labels)), index=labels.index)
            kept &= (order.where(kept).groupby(labels).rank() <= most).to_numpy()
        cells = ad.AnnData(prepared.X[kept].tocsr(), obs=pd.DataFrame(index=prepared.obs_names[kept]))
        cells.var = pd.DataFrame({"gene_name": self.genes}, index=self.genes)
        cells.obs["condition"], cells.obs["cell_type"] = labels[kept].to_numpy(), "cells"
        self.control = np.asarray(cells.X[(cells.obs["condition"] == "ctrl").to_numpy()].mean(axis=0)).ravel()
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.data = PertData(str(folder), gene_set_path=str(folder / "graph_genes.pkl"))
        self.data.new_data_process("screen", adata=cells)
        self._split(labels[kept].to_numpy(), part[kept], folder)
        self.data.get_dataloader(batch_size=batch)
        # Without it, no part of the training looks at a test cell (there are none here) or fails for want of them.
        del self.data.dataloader["test_loader"]
        self.data.dataloader["train_loader"] = _Timed(self.data.dataloader["train_loader"])
        self.model = GEARS(self.data, device="cpu")
        self.model.model_initialize()
        count = sum(weight.numel() for weight in self.model.model.parameters())
        return {"network": count, "cells": int(kept.sum()), "tested": len(tested), "answered": len(self.answered)}

    def _split(self, labels: np.ndarray, part: np.ndarray, folder: Path) -> None:
        """Our conditions in its form. Where cells are split, training conditions also serve for choosing the epoch."""
        train = sorted(set(labels[part == "train"]))
        val = sorted(set(labels[part == "val"]) - set(train)) or [label for label in train if label != "ctrl"]
        with open(folder / "split.pkl", "wb") as file:
            pickle.dump({"train": train, "val": val, "test": []}, file)
        self.data.prepare_split("custom", split_dict_path=str(folder / "split.pkl"))

    def train(self, epochs: int) -> dict[str, Any]:
        """Trains; ``training`` is the part of the seconds spent in updates, the rest goes into its evaluations."""
        loader = self.data.dataloader["train_loader"]
        begun = time.perf_counter()
        self.model.train(epochs=epochs)
        seconds = time.perf_counter() - begun
        # Each epoch goes through the training cells twice: to learn, then to evaluate.
        return {"seconds": seconds, "training": sum(loader.seconds[0::2]), "cells": sum(loader.cells[0::2])}

    def predict(self, out: str) -> dict[str, Any]:
        """Writes the mean profiles predicted for the test conditions, and the mean of the training controls."""
        wanted = [[gene for gene in label.split("+") if gene != "ctrl"] for label in self.answered]
        begun = time.perf_counter()
        found = self.model.predict(wanted)
        seconds = time.perf_counter() - begun
        means = np.stack([found["_".join(genes)] for genes in wanted])
        names = np.array(["+".join(sorted(genes)) for genes in wanted])
        np.savez(out, conditions=names, means=means, control=self.control, genes=np.array(self.genes))
        return {"seconds": seconds, "conditions": len(names)}


class _Timed:
    """A loader that keeps how long each pass over it took, and its cells."""

    def __init__(self, loader: Any):
        self._loader = loader
        self.seconds: list[float] = []
        self.cells: list[int] = []

    def __iter__(self) -> Any:
        begun, cells = time.perf_counter(), 0
        for batch in self._loader:
            cells += len(batch.pert)
            yield batch
        self.seconds.append(time.perf_counter() - begun)
        self.cells.append(cells)


def _spelled(label: str) -> str:
    """A condition as GEARS writes it."""
    if label == "control":
        return "ctrl"
    return label if "+" in label else f"{label}+ctrl"


def _annotations(path: str) -> dict[str, set[str]]:
    """Terms of every gene, from a GMT file."""
    found: dict[str, set[str]] = {}
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as file:
        for line in file:
            term, _, *genes = line.rstrip("\n").split("\t")
            for gene in genes:
                found.setdefault(gene, set()).add(term)
    return found


if __name__ == "__main__":
    adapter = Adapter()
    serve({name: getattr(adapter, name) for name in ("load", "train", "predict")})
