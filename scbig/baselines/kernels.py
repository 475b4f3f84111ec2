"""Kernels over genes from several sources, and what they predict of a gene that is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from scbig.baselines.sources import Sources

__all__ = ["LeftOut", "choose_weights", "correlations", "kernel", "left_out_one", "similarities", "stacked"]

Similarities = Mapping[str, Float[np.ndarray, "rows columns"]]

WEIGHTS = (0.5, 1.0, 2.0, 4.0)
"""Exponents tried for a source, besides 0."""
RIDGES = (0.5, 1.0, 2.0)
"""Penalties tried."""
LEAST = 0.002
"""Gain in mean correlation on left-out genes below which a source is not worth adding."""


class LeftOut(NamedTuple):
    """What kernel ridge says of every gene from the others.

    Attributes:
        weights: of the deviations of all genes from their mean; the row of a gene gives its prediction as a deviation
            from the mean of the *others*.
        support: share of the prior variance of each gene that the others explain, 0 to 1.
    """

    weights: Float[np.ndarray, "n n"]
    support: Float[np.ndarray, " n"]


def stacked(sources: Sources, genes: Sequence[str]) -> dict[str, np.ndarray]:
    """Unit vectors of a list of genes by source, and a column more that is 1 where the source does not know the gene.

    Inner products of these rows are cosines, 0 where one gene is unknown and 1 where both are: a source says of two
    genes that it does not know only that they are alike in this. So every matrix of them is positive semidefinite, and
    no vector is made up.
    """
    out = {}
    for name, vectors in sources.items():
        rows = np.zeros((len(genes), len(next(iter(vectors.values()))) + 1))
        for row, gene in zip(rows, genes, strict=True):
            if gene in vectors:
                row[:-1] = vectors[gene]
            else:
                row[-1] = 1.0
        out[name] = rows
    return out


def similarities(rows: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cosines by source of two lists of genes, as ``stacked`` gives them."""
    return {name: vectors @ columns[name].T for name, vectors in rows.items()}


def kernel(cosines: Similarities, weights: Mapping[str, float]) -> Float[np.ndarray, "rows columns"]:
    """``exp(−Σ w (1 − cosine))``: genes are alike where all sources that count say so; 1 for a gene with itself."""
    return np.exp(sum(w * (cosines[name] - 1.0) for name, w in weights.items()))


def left_out_one(k: Float[np.ndarray, "n n"], ridge: float | int) -> LeftOut:
    """Leave-one-out predictions of kernel ridge in closed form, without n fits.

    With ``B = (K + λI)⁻¹`` the prediction of row i from the others is ``y_i − (B y)_i / B_ii``. Deviations are from the
    mean of all rows; that the mean of the others differs is accounted for.
    """
    n = len(k)
    inverse = np.linalg.inv(k + ridge * np.eye(n))
    size = np.diag(inverse)
    weights = -inverse / size[:, None]
    np.fill_diagonal(weights, 0.0)
    weights[np.diag_indices(n)] = weights.sum(axis=1) / (n - 1)
    support = 1.0 - (1.0 / size - ridge) / np.diag(k)
    return LeftOut(weights, np.clip(support, 0.0, 1.0))


def correlations(weights: Float[np.ndarray, "n n"], gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """Correlation over genes of weighted sums of deviations with each row's own deviation.

    Args:
        weights: of the rows' deviations from their mean.
        gram: inner products of these deviations, each centred over genes.

    Returns:
        One value per row; 0 where a prediction is nothing, or only rounding.
    """
    product, square, own = (weights * gram).sum(axis=1), ((weights @ gram) * weights).sum(axis=1), np.diag(gram)
    size = np.sqrt(np.maximum(square, 0.0) * own)
    return np.divide(product, size, out=np.zeros(len(size)), where=(square > 1e-12 * own) & (own > 0))


def choose_weights(
    cosines: Similarities, gram: Float[np.ndarray, "n n"], known: Bool[np.ndarray, "sources n"] | None = None
) -> tuple[dict[str, float], float, tuple[dict, ...]]:
    """Weights of the sources and the penalty, by the mean correlation on left-out genes.

    Sources are added in the order of what each is worth alone, as long as a weight of those tried adds ``LEAST``; then
    every weight is looked at once more, and the penalty is chosen.

    Args:
        cosines: between the genes, by source.
        gram: inner products of their effects' deviations.
        known: unused sources are those that know fewer than two of the genes.

    Returns:
        Weights above zero by source (none where no source does any good), the penalty, and a record of what was tried.
    """
    study: list[dict] = []

    def value(weights: Mapping[str, float], ridge: float) -> float:
        found = float(correlations(left_out_one(kernel(cosines, weights), ridge).weights, gram).mean())
        study.append(dict.fromkeys(cosines, 0.0) | dict(weights) | {"ridge": ridge, "value": found})
        return found

    usable = [s for i, s in enumerate(cosines) if known is None or known[i].sum() > 1]
    alone = {s: max((value({s: w}, 1.0), w) for w in WEIGHTS) for s in usable}
    order = sorted(usable, key=lambda s: -alone[s][0])
    if not order or alone[order[0]][0] <= 0:
        return {}, 1.0, tuple(study)
    best, chosen = alone[order[0]][0], {order[0]: alone[order[0]][1]}
    best, chosen = _pass(order[1:], chosen, best, lambda w: value(w, 1.0))
    best, chosen = _pass(order, chosen, best, lambda w: value(w, 1.0))
    ridge = max(RIDGES, key=lambda r: best if r == 1.0 else value(chosen, r))
    return chosen, ridge, tuple(study)


def _pass(
    order: Sequence[str], chosen: dict[str, float], best: float, value: Callable[[Mapping[str, float]], float]
) -> tuple[float, dict[str, float]]:
    """One look at every source: another weight where that adds enough."""
    for source in order:
        trials = [w for w in WEIGHTS if w != chosen.get(source)]
        found, weight = max((value(chosen | {source: w}), w) for w in trials)
        if found > best + LEAST:
            best, chosen = found, chosen | {source: weight}
    return best, chosen
