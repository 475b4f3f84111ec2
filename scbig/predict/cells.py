"""The control cells that populations start from: a part of those there are, or the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int

from scbig import data
from scbig.data.conditions import CONTROL
from scbig.errors import InputError, some
from scbig.rng import generator
from scbig.training import autoencoder
from scbig.training.autoencoder import Autoencoder

__all__ = ["Cells", "own", "thinned"]


class Cells(NamedTuple):
    """Control cells with their genes.

    Attributes:
        obs: condition, context, batch and more, by the cells' names.
        z0: latents, ``[controls, latent]``.
        x0: log-expression, CSR ``[controls, genes]``.
        var: the genes, as in the prepared screen.
        about: normalisation of the screen.
    """

    obs: pd.DataFrame
    z0: Float[np.ndarray, "controls latent"]
    x0: sp.csr_matrix
    var: pd.DataFrame
    about: dict[str, Any]


def thinned(
    chosen: Int[np.ndarray, " cells"], context: np.ndarray, most: int, seed: int
) -> Int[np.ndarray, " controls"]:
    """At most so many of the cells; each context gives the same number, drawn at random.

    Args:
        chosen: places of the cells, ascending.
        context: of each of them.
        most: how many are kept, but at least one of each context.
        seed: of the draw.
    """
    if len(chosen) <= most:
        return chosen
    names = np.unique(context)
    kept = []
    for name in names:
        pool = chosen[context == name]
        share = min(len(pool), max(1, most // len(names)))
        kept.append(generator(seed, f"controls of {name}").choice(pool, share, replace=False))
    return np.sort(np.concatenate(kept))


def own(given: ad.AnnData, panel: Cells, auto: Autoencoder, contexts: tuple[str, ...]) -> Cells:
    """The user's own control cells, in the units and the genes of a trained run.

    Args:
        given: a screen as :func:`scbig.data.read` or ``scbig prepare`` leaves it: counts, which are normalised as those
            of the run were, or log-expression scaled to the same sum. Cells of other conditions are left out.
        panel: genes and normalisation of the run.
        auto: its autoencoder.
        contexts: those that it was trained on.

    Raises:
        InputError: other units, genes that are absent, no controls, or a context that was not trained on.
    """
    adata = _in_units(given, panel.about)
    absent = panel.var.index.difference(adata.var_names, sort=False)
    if len(absent):
        raise InputError(
            f"the controls given lack {len(absent)} of {len(panel.var)} genes of the run: {some(absent)}; "
            "genes are matched by name, so give all of them under the run's names"
        )
    is_control = np.asarray(adata.obs["condition"].astype(str) == CONTROL)
    if not is_control.any():
        raise InputError("the cells given as controls hold none whose obs['condition'] is control; see scbig.data.read")
    adata = adata[is_control, panel.var.index.to_numpy()]
    strange = sorted(set(adata.obs["context"].astype(str)) - set(contexts))
    if strange:
        raise InputError(
            f"the controls given are of context {some(strange)}, which was not trained on; there are "
            f"{', '.join(contexts)}: set obs['context'] to the one that they belong to"
        )
    columns = [name for name in ("condition", "context", "batch", "dose") if name in adata.obs]
    obs = adata.obs[columns].copy()
    obs.index = pd.Index(obs.index.to_numpy().astype(object))
    if auto.counts is not None:
        obs["depth"] = autoencoder.depths(adata.obs["size_factor"].to_numpy(np.float64), panel.about)
    x0 = sp.csr_matrix(adata.X, dtype=np.float32)
    x0.sort_indices()
    return Cells(obs, autoencoder.encode_all(auto, x0), x0, panel.var, panel.about)


def _in_units(given: ad.AnnData, about: Mapping[str, Any]) -> ad.AnnData:
    """The cells in the run's units, refused where they are in others or do not say in which."""
    marks = given.uns.get("scbig")
    if not isinstance(marks, Mapping) or "normalization" not in marks:
        raise InputError(
            "the controls given do not say what their numbers are (uns['scbig']); read them with scbig.data.read(FILE), "
            "or with normalized=True where the run was trained on log-expression as given"
        )
    theirs, ours = str(marks["normalization"]), str(about["normalization"])
    if ours == "given" or theirs == "given":
        if ours == theirs:
            return given
        told = {True: "log-expression as given", False: "counts that it scaled itself"}
        raise InputError(
            f"the run was trained on {told[ours == 'given']}, and the controls given are {told[theirs == 'given']}: read "
            f"them with scbig.data.read(FILE, normalized={ours == 'given'})"
        )
    target = float(about["target_sum"])
    if theirs == "counts":
        return data.normalize(given, None, target)
    scaled = float(marks.get("target_sum", np.nan))
    if not np.isclose(scaled, target, rtol=1e-6):
        raise InputError(
            f"the controls given are scaled to {scaled:g} counts per cell, those of the run to {target:g}: "
            "give counts, as scbig.data.read(FILE) leaves them"
        )
    return given
