"""Elastic net from embeddings to the leading components of the effects."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from scbig.baselines.base import Model, TrainingData
from scbig.baselines.smoother import Choose, Judge, Weigher, choose_from, fit_smoother
from scbig.baselines.sources import Sources, unit_sources
from scbig.baselines.validation import search

__all__ = ["ALPHAS", "MIXTURES", "fit"]

ALPHAS = (0.3, 0.1, 0.03, 0.01)
"""Penalties tried, as shares of the smallest penalty under which a lasso keeps no feature."""
MIXTURES = (0.1, 0.5, 0.9)
"""Shares of the absolute penalty tried; the rest is quadratic."""


def fit(
    data: TrainingData,
    embedding: str | Sequence[str] | None = None,
    alpha: float | int | None = None,
    mixture: float | int | None = None,
    n_components: int = 50,
    folds: int = 3,
    seed: int = 0,
    trials: int = 0,
    shrink: bool = True,
) -> Model:
    """Predicts the leading components of the training effects by elastic nets (Zou & Hastie 2005).

    The features of a gene are its unit vectors of all sources side by side, centred on the training genes; a
    source that lacks the gene gives zeros, and a column that says so. Each component has its own regression.

    Args:
        data: training effects; single perturbations are learned from.
        embedding: a source in ``data.embeddings``, several, or None for all.
        alpha: penalty as a share of the one under which a lasso keeps no feature; chosen when None.
        mixture: share of the absolute penalty (scikit-learn's ``l1_ratio``); chosen when None.
        n_components: components predicted; never more than training genes allow.
        folds: of the cross-validation inside the training conditions.
        seed: of the folds, and of the search.
        trials: settings tried by Optuna; 0 tries the grid of ``ALPHAS`` and ``MIXTURES``.
        shrink: scale the deviation from the mean by the least-squares slope found in the same cross-validation.

    Raises:
        InputError: a source that is not there, or a search without Optuna.
    """
    sources = unit_sources(data, embedding, "elastic_net")
    if trials and alpha is None and mixture is None:
        choose = _search(trials, seed)
    else:
        alphas = ALPHAS if alpha is None else (float(alpha),)
        mixtures = MIXTURES if mixture is None else (float(mixture),)
        choose = choose_from([(a, m) for a in alphas for m in mixtures], _describe)
    return fit_smoother(
        "elastic_net", data, set().union(*sources.values()), f"no vector in {' or '.join(sources)}",
        lambda train, gram: _weigher(sources, train, gram, n_components), choose, _describe, folds, seed, shrink,
    )  # fmt: skip


def _describe(setting: tuple[float, float]) -> dict:
    return {"alpha": setting[0], "mixture": setting[1]}


def _search(trials: int, seed: int) -> Choose:
    def choose(judge: Judge) -> tuple[tuple[float, float], tuple[dict, ...]]:
        space = {"alpha": (0.01, 0.5, "log"), "mixture": (0.05, 1.0, "linear")}
        best, tried = search(lambda s: judge((s["alpha"], s["mixture"]))[0], space, trials, seed)
        return (best["alpha"], best["mixture"]), tried

    return choose


def _weigher(sources: Sources, train: Sequence[str], gram: np.ndarray, n_components: int) -> Weigher:
    features = _features(sources, train)
    x = features(train)
    x = x - x.mean(axis=0)
    value, vector = np.linalg.eigh(gram)
    kept = np.argsort(-value)[:n_components]
    kept = kept[value[kept] > 1e-9 * max(value.max(), 1e-300)]
    # Left singular vectors and values of the centred effects: the scores of training genes are their product.
    u, s = vector[:, kept], np.sqrt(value[kept])
    y = u * s
    scale = np.abs(x.T @ y).max() / len(x) if len(kept) else 0.0
    fitted: dict[tuple[float, float], np.ndarray] = {}
    centre = features(train).mean(axis=0)

    def weigh(genes: Sequence[str], setting: tuple[float, float]) -> np.ndarray:
        if not scale:
            return np.zeros((len(genes), len(train)))
        if setting not in fitted:
            fitted[setting] = _coefficients(x, y, setting[0] * scale, setting[1])
        return (features(genes) - centre) @ fitted[setting] / s @ u.T

    return weigh


def _features(sources: Sources, train: Sequence[str]):
    """From genes to features; what is centred on, and which columns there are, is settled by the training genes."""
    middle = {name: _mean(rows, train) for name, rows in sources.items()}

    def features(genes: Sequence[str]) -> np.ndarray:
        blocks = []
        for name, rows in sources.items():
            known = np.array([g in rows for g in genes], float)
            nothing = middle[name]
            blocks.append(np.stack([rows.get(g, nothing) - nothing for g in genes]))
            blocks.append(known[:, None])
        return np.concatenate(blocks, axis=1)

    return features


def _mean(rows: Mapping[str, np.ndarray], train: Sequence[str]) -> np.ndarray:
    known = [rows[g] for g in train if g in rows]
    return np.mean(known, axis=0) if known else np.zeros(len(next(iter(rows.values()))))


def _coefficients(x: np.ndarray, y: np.ndarray, alpha: float, mixture: float) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import ElasticNet

    net = ElasticNet(
        alpha=alpha, l1_ratio=mixture, fit_intercept=False, precompute=True, max_iter=2000, tol=1e-3, random_state=0
    )
    with warnings.catch_warnings():
        # The cross-validation judges what came out; nothing hangs on the last digits.
        warnings.simplefilter("ignore", ConvergenceWarning)
        net.fit(x, y)
    return np.atleast_2d(net.coef_).T
