"""The stages that look at the screen and at its genes: prepare and cluster."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from ml_collections import ConfigDict

from scbig import data, modules, priors
from scbig.console import say
from scbig.data import large
from scbig.data.store import Store
from scbig.data.text import portable
from scbig.errors import InputError
from scbig.files import atomic
from scbig.run import Run
from scbig.stages.common import aliases, open_prepared, prior_file, semantic, targets

__all__ = ["cluster", "prepare"]

_BASELINES = {
    "balanced_kmeans": modules.balanced_kmeans,
    "kmeans": modules.kmeans,
    "random": modules.random,
    "soft": modules.soft_top2,
}
_BLOCK = 4096  # cells read at once


def prepare(run: Run, settings: ConfigDict, remarks: dict) -> None:
    """Reads, checks, splits and normalises the screen."""
    backend, size = large.backend(settings)
    with atomic(run.path("prepared.h5ad")) as temporary:
        if backend == "dask":
            say(f"prepare: {size:.1f} GB of matrices, by blocks on Dask workers")
            adata, split = large.prepare(settings, temporary)
        else:
            adata, split = data.prepare(None, settings)
            with portable():
                adata.write_h5ad(temporary, compression="lzf")
    for line in data.report_lines(adata):
        say(f"prepare: {line}")
    remarks["backend"] = backend
    split.save(run.path("split.csv"))
    counts = {part: len(split.conditions(part)) for part in ("train", "val", "test")}
    part = split.assign(adata.obs)
    cells = {name: int((part == name).sum()) for name in ("test", "train", "val")}
    remarks |= {"cells": adata.n_obs, "genes": adata.n_vars, "conditions": counts}
    remarks |= {"cells_per_part": {name: n for name, n in cells.items() if n}}
    say(
        f"prepare: {adata.n_obs:,} cells × {adata.n_vars:,} genes; split {split.name}: "
        + ", ".join(f"{n} {part}" for part, n in counts.items())
        + " conditions"
    )


def _gene_sets(settings: ConfigDict) -> dict[str, dict[str, tuple[str, ...]]]:
    names = [settings.priors.pathways, *settings.priors.gene_sets]
    return {
        Path(name).name.split("_")[0].split(".")[0]: priors.read_gmt(prior_file(settings, name))
        for name in names
        if name
    }


def _features(
    settings: ConfigDict, screen: Store, part: np.ndarray, vectors: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What genes are clustered by, and which genes have any: embeddings, and where asked for responses beside them."""
    weight = settings.modules.response_weight
    if not weight:
        return vectors, mask
    train = part == "train"
    effects = modules.mean_effects(screen.X.chosen(train).blocks(_BLOCK), screen.obs, train)
    say(f"cluster: genes are compared by their responses to {len(effects)} training conditions too (share {weight:g})")
    return modules.with_responses(vectors, mask, effects, weight)


def cluster(run: Run, settings: ConfigDict, remarks: dict) -> None:
    """Groups the genes into modules and audits them."""
    with open_prepared(run) as (adata, _, part):
        genes, c = list(adata.var_names), settings.modules
        if c.method not in ("grc", *_BASELINES):
            raise InputError(f"--config.modules.method={c.method}: there are grc, {', '.join(_BASELINES)}")
        vectors, mask = semantic(settings, adata, part, remarks)
        features, usable = _features(settings, adata, part, vectors, mask)
    gene_sets = _gene_sets(settings)  # before the work, so that an absent file stops it before anything is written
    network = sp.csr_matrix((len(genes), len(genes)), dtype=np.float32)
    if settings.priors.ppi:
        info = prior_file(settings, settings.priors.ppi_info) if settings.priors.ppi_info else None
        ppi = priors.read_ppi(prior_file(settings, settings.priors.ppi), settings.priors.ppi_min_score, info)
        found = priors.adjacency(ppi, genes, aliases(settings), targets(adata))
        network = found.matrix
        remarks["coverage"].append(found.coverage.to_dict())
        say(f"cluster: {found.coverage.line()}")
    if c.method == "grc":
        result = modules.cluster(
            features, usable, network, genes, n_modules=c.n_modules, w_sem=c.w_sem, w_ppi=c.w_ppi if network.nnz else 0.0,
            standardize=c.standardize, epsilon=c.epsilon, max_rounds=c.max_rounds, rounding=c.rounding, seed=settings.seed,
        )  # fmt: skip
    else:
        result = _BASELINES[c.method](features, usable, genes, n_modules=c.n_modules, seed=settings.seed)
    result.save(run.path("modules.csv"))
    audit = modules.audit(result, network, gene_sets, vectors=vectors, mask=mask, seed=settings.seed)
    with atomic(run.path("audit.json")) as temporary:
        temporary.write_text(json.dumps(audit, indent=1) + "\n", encoding="utf-8")
    say(f"cluster: {result.n_modules} modules of {result.sizes.min()}–{result.sizes.max()} genes")
