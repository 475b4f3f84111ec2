"""Arithmetic in the latent space of an autoencoder: controls, moved by what the perturbation did elsewhere."""

from __future__ import annotations

import numpy as np

from scbig.baselines.base import Model, TrainingData, one_context
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError, some

__all__ = ["fit"]


def fit(data: TrainingData) -> Model:
    """Predicts ``mean D(z + Σ shift) − mean D(z)`` over control cells z of the context (scGen, Lotfollahi et al. 2019).

    The shift of a single is the difference of mean latents of its training cells and of controls. It is that of the
    same context; where the single was not seen there, the mean over the contexts that have it, which is the
    method's classic use. A combination is the sum over its genes, even where it was seen itself.

    Args:
        data: training effects, with a latent. In a table of effects, which has no cells, nothing is predicted and
            the reason says so.

    Raises:
        InputError: the latent has other genes than the effects.
    """
    latent, zero = data.latent, np.zeros(len(data.genes))
    if latent is None:
        return Model("scgen", data.genes, one_context(data), lambda c, _: zero if c == CONTROL else "needs cells")
    if latent.genes != data.genes:
        raise InputError("the latent given to scgen has other genes, or in another order, than the training effects")
    contexts = {*latent.controls, *data.contexts}
    tables = {k: latent.table(k) for k in (*contexts, "")}
    start = {k: latent.encode(x) for k, x in latent.controls.items()}
    # Both sides are decoded, so that what the autoencoder cannot tell of cells cancels.
    still = {k: _mean(latent.decode(z)) for k, z in start.items()}

    def rule(condition: str, context: str) -> np.ndarray | str:
        if condition == CONTROL:
            return zero
        if context not in start:
            return f"no training control cells in context {context}"
        table = tables[context]
        absent = [g for g in genes_of(condition) if g not in table]
        if absent:
            return f"no training cells of the single perturbation: {some(absent)}"
        shift = np.sum([table[g] for g in genes_of(condition)], axis=0)
        moved = (start[context] + shift).astype(start[context].dtype)
        return _mean(latent.decode(moved)) - still[context]

    return Model("scgen", data.genes, one_context(data), rule, (f"latent: {latent.name}",))


def _mean(cells: np.ndarray) -> np.ndarray:
    return np.asarray(cells).mean(axis=0, dtype=np.float64)
