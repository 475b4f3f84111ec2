"""What several stages need: the prior files, the prepared screen and the gene vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import numpy as np
from ml_collections import ConfigDict

from scbig import priors
from scbig.console import say
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.splits import Split
from scbig.data.store import Store, open_store
from scbig.errors import InputError
from scbig.rng import generator
from scbig.run import Run

__all__ = ["aliases", "load_prepared", "open_prepared", "prior_file", "semantic", "targets"]

_MOST_CONTROLS = 20_000  # cells that co-expression is taken from


def prior_file(settings: ConfigDict, name: str) -> Path:
    """The place of a prior file, refused where it is absent."""
    path = Path(settings.priors.dir, name)
    if not path.exists():
        raise InputError(f"no prior file {path}; check --config.priors.dir and the names in --config.priors")
    return path


def aliases(settings: ConfigDict) -> priors.AliasTable:
    """The alias table named in the settings, or an empty one."""
    if not settings.priors.aliases:
        return priors.AliasTable.empty()
    # An alias that is also another gene's approved symbol means that gene; the table alone does not tell.
    ids = settings.priors.gene_ids
    symbols = priors.read_gene_ids(prior_file(settings, ids), "ensgene").values() if ids else ()
    return priors.read_aliases(prior_file(settings, settings.priors.aliases), symbols=symbols)


def load_prepared(run: Run) -> tuple[ad.AnnData, Split, np.ndarray]:
    """The prepared screen, its split and the part of every cell."""
    adata = ad.read_h5ad(run.path("prepared.h5ad"))
    split = Split.load(run.path("split.csv"))
    return adata, split, split.assign(adata.obs)


@contextmanager
def open_prepared(run: Run) -> Iterator[tuple[Store, Split, np.ndarray]]:
    """The same with the matrix left on disk: rows are read when they are indexed."""
    with open_store(run.path("prepared.h5ad")) as store:
        split = Split.load(run.path("split.csv"))
        obs = store.obs.set_axis(store.names()) if "cell" in split.key else store.obs
        yield store, split, split.assign(obs)


def targets(adata: ad.AnnData | Store) -> list[str]:
    """Perturbed genes (or drugs) of the screen."""
    labels = adata.obs["condition"].unique()
    return sorted({gene for label in labels for gene in genes_of(str(label))})


def semantic(
    settings: ConfigDict, adata: ad.AnnData | Store, part: np.ndarray, remarks: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Gene vectors for clustering, and which genes have one."""
    genes, perturbed = list(adata.var_names), targets(adata)
    if not settings.priors.semantic:
        controls = np.flatnonzero((part == "train") & (adata.obs["condition"] == CONTROL).to_numpy())
        if len(controls) > _MOST_CONTROLS:
            chosen = generator(settings.seed, "coexpression cells").choice(len(controls), _MOST_CONTROLS, replace=False)
            controls = controls[np.sort(chosen)]
        embedding = priors.coexpression(adata.X[controls], genes, dim=min(50, len(genes) - 1), seed=settings.seed)
        aligned = [priors.align(embedding, genes)]
        say("cluster: no embeddings named, co-expression in training controls is used")
    else:
        table = aliases(settings)
        embeddings = [priors.read_embedding(prior_file(settings, name)) for name in settings.priors.semantic]
        aligned = [priors.align(embedding, genes, table, perturbed) for embedding in embeddings]
    for each in aligned:
        say(f"cluster: {each.coverage.line()}")
    remarks["coverage"] = [each.coverage.to_dict() for each in aligned]
    joined = priors.concatenate(aligned)
    return joined.vectors, joined.mask
