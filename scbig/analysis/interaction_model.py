"""Which pairs will depart from the sum of their singles: learned from the pairs that were measured.

A plain prediction of the double hardly tells which pairs interact. How two genes' modules stand to each other does: whether
one acts on the other, whether both act on a third, whether they are the same. Direct actions between modules come from
the responses of all modules to all perturbations (modular response analysis, Kholodenko et al. 2002, PNAS 99:12841; here
as a sparse regression), and a regularised logistic regression learns from measured pairs what they mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from scbig.baselines import TrainingData
from scbig.baselines.validation import folds
from scbig.data.conditions import CONTROL, genes_of, join
from scbig.errors import InputError
from scbig.rng import generator

__all__ = ["FEATURES", "FEWEST", "CallModel", "direct_actions", "fit", "module_responses"]

FEWEST = 16
"""Measured pairs below which nothing is learned."""
FEATURES = ("likeness", "same module", "action", "link", "common action", "common link", "size", "effect on module")
_STRENGTH = 0.5  # of the logistic regression's data against its penalty
_FOLDS = 5
_DRAWS = 50


def module_responses(
    effects: Mapping[str, np.ndarray], genes: Sequence[str], modules: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Mean effect of each condition on each module, its own perturbed genes left out, and the module of each gene.

    Args:
        effects: by condition.
        genes: one per entry of an effect.
        modules: module of each gene, from 0; genes without one are left out.

    Returns:
        Responses by condition, and the home module of every perturbed gene: its own, or where it has none the module
        that it changes most.
    """
    n = max(modules.values()) + 1
    member = np.zeros((len(genes), n))
    for row, gene in enumerate(genes):
        if gene in modules:
            member[row, modules[gene]] = 1.0
    at = {g: i for i, g in enumerate(genes)}
    found, home = {}, {}
    for condition, effect in effects.items():
        keep = np.ones(len(genes))
        keep[[at[g] for g in genes_of(condition) if g in at]] = 0.0
        found[condition] = ((effect * keep) @ member) / np.maximum(keep @ member, 1.0)
    for gene in sorted({g for c in effects for g in genes_of(c)}):
        if gene in modules:
            home[gene] = modules[gene]
        elif join([gene]) in found:
            home[gene] = int(np.abs(found[join([gene])]).argmax())
    return found, home


def direct_actions(
    responses: Float[np.ndarray, "n modules"], home: Sequence[set[int]]
) -> Float[np.ndarray, "modules modules"]:
    """Direct action of each module (row) on each other (column), relative to its own change.

    What a module does is regressed on what all others do, over the conditions that do not perturb it, by an adaptive lasso
    (Zou 2006) whose penalty has the least BIC; conditions far off, which may act on the module themselves, are left
    out and the regression repeated. Conditions weigh the same however strong they are.

    Args:
        responses: changes of modules, one row per condition.
        home: modules that each condition perturbs.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LassoLarsIC, Ridge

    size = np.linalg.norm(responses, axis=1, keepdims=True)
    y_all = responses / np.where(size > 0, size, 1.0)
    n = responses.shape[1]
    out = np.zeros((n, n))
    for k in range(n):
        rows = [i for i, each in enumerate(home) if k not in each]
        others = np.flatnonzero(np.arange(n) != k)
        x, y = y_all[rows][:, others], y_all[rows, k]
        if len(rows) < 4 or not np.abs(y).max() > 0:
            continue
        keep, found = np.ones(len(y), bool), np.zeros(len(others))
        penalty = max(0.05 * float(np.square(x).sum()) / x.shape[1], 1e-9)
        for _ in range(3):
            first = Ridge(alpha=penalty, fit_intercept=False).fit(x[keep], y[keep]).coef_
            weight = np.abs(first) + 1e-3
            noise = max(float(np.square(y[keep] - x[keep] @ first).mean()), 1e-9)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a path cut short is a path
                lasso = LassoLarsIC("bic", fit_intercept=False, noise_variance=noise).fit(x[keep] * weight, y[keep])
            found = lasso.coef_ * weight
            rest = np.abs(y - x @ found)
            keep = rest <= 3.5 * 1.4826 * np.median(rest) + 1e-6
        out[others, k] = found
    return out


def _features(pair: str, singles: Mapping[str, np.ndarray], known: _Known) -> list[float]:
    a, b = (join([g]) for g in sorted(genes_of(pair)))
    keep = np.ones(len(singles[a]), bool)
    keep[[known.at[g] for g in genes_of(pair) if g in known.at]] = False
    x, y = singles[a][keep], singles[b][keep]
    sizes = np.linalg.norm(x), np.linalg.norm(y)
    here, there = known.home.get(a, 0), known.home.get(b, 0)
    u, v, w = known.responses[a], known.responses[b], known.actions
    first, second = np.abs(u[here] * w[here]), np.abs(v[there] * w[there])
    apart = float(here != there)
    return [
        abs(float(x @ y)) / max(float(sizes[0] * sizes[1]), 1e-12),
        1.0 - apart,
        float(max(first[there], second[here])),
        float(max(abs(w[here, there]), abs(w[there, here]))),
        apart * float(np.minimum(first, second).max()),
        apart * float(np.minimum(np.abs(w[here]), np.abs(w[there])).max()),
        float(np.log(max(min(sizes), 1e-6))),
        float(max(abs(u[there]), abs(v[here]))),
    ]


@dataclass(frozen=True)
class _Known:
    """What a set of conditions tells of modules."""

    at: Mapping[str, int]
    responses: Mapping[str, np.ndarray]
    home: Mapping[str, int]
    actions: np.ndarray


def _learn(effects: Mapping[str, np.ndarray], genes: Sequence[str], modules: Mapping[str, int]) -> _Known:
    responses, home = module_responses(effects, genes, modules)
    names = sorted(responses)
    homes = [{home[g] for g in genes_of(c) if g in home} for c in names]
    actions = direct_actions(np.stack([responses[c] for c in names]), homes)
    return _Known({g: i for i, g in enumerate(genes)}, responses, home, actions)


@dataclass(frozen=True)
class CallModel:
    """Tells how likely a pair is to depart from the sum by more than the median of the measured pairs.

    Attributes:
        threshold: that median, as a relative departure.
        n: measured pairs it was learned from.
        auroc: of left-out pairs: chance that a pair above the median gets more than one below.
        auroc_low: lower end of its 95% bootstrap interval over pairs.
        auroc_high: upper end.
        brier: mean squared error of the left-out probabilities; 0.25 is what a coin gets.
        left_out: the left-out probability of each measured pair.
        actions: direct actions between modules, ``[modules, modules]``.
    """

    threshold: float
    n: int
    auroc: float
    auroc_low: float
    auroc_high: float
    brier: float
    left_out: Mapping[str, float]
    actions: np.ndarray
    known: Any
    singles: Mapping[str, np.ndarray]
    fits: Sequence[Any]
    calibration: tuple[float, float]

    def features(self, pairs: Sequence[str]) -> pd.DataFrame:
        """What the model looks at, one row per pair, columns :data:`FEATURES`."""
        rows = [_features(p, self.singles, self.known) for p in pairs]
        return pd.DataFrame(rows, index=list(pairs), columns=list(FEATURES))

    def probability(self, pairs: Sequence[str]) -> pd.DataFrame:
        """Probability of a departure above the threshold.

        Args:
            pairs: canonical pairs of genes that were measured alone.

        Returns:
            ``condition``, ``probability``, and ``low``, ``high``: its 90% interval over draws of the measured pairs.

        Raises:
            InputError: a gene that was not measured alone.
        """
        missing = sorted({g for p in pairs for g in genes_of(p)} - {g for c in self.singles for g in genes_of(c)})
        if missing:
            raise InputError(f"{missing[0]} was not measured alone: its pairs cannot be judged")
        x = self.features(pairs).to_numpy()
        slope, shift = self.calibration
        each = np.stack([_squash(slope * m.decision_function(x) + shift) for m in self.fits])
        low, high = np.quantile(each[1:], [0.05, 0.95], axis=0)
        middle = each[0]
        return pd.DataFrame(
            {"condition": list(pairs), "probability": middle, "low": np.minimum(low, middle),
             "high": np.maximum(high, middle)}
        )  # fmt: skip


def _squash(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -30, 30)))


def _regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH))


def fit(
    departures: Mapping[str, float], data: TrainingData, modules: Mapping[str, int], context: str, seed: int = 0
) -> CallModel:
    """Learns from measured pairs which pairs depart strongly.

    Left-out probabilities come from five folds of pairs: direct actions, regression and all are made anew without the
    fold. They give the skill and, by a logistic regression on their log-odds (Platt 1999), the calibration. The median
    that divides the pairs is taken over all of them.

    Args:
        departures: relative departure of each measured pair, noise taken off; NaN is left out.
        data: training effects; those of the pairs left out are not read when they are judged.
        modules: module of each gene, from 0.
        context: whose effects.
        seed: of folds and draws.

    Raises:
        InputError: fewer than 16 pairs of genes measured alone, or all departures alike.
    """
    effects = {c: e for c, e in data.table(context).items() if c != CONTROL}
    singles = {c: e for c, e in effects.items() if len(genes_of(c)) == 1}
    able = sorted(p for p, v in departures.items() if np.isfinite(v) and all(join([g]) in singles for g in genes_of(p)))
    if len(able) < FEWEST:
        raise InputError(f"{len(able)} measured pairs in context {context}: {FEWEST} are needed to learn which depart")
    value = np.array([departures[p] for p in able])
    threshold = float(np.median(value))
    label = (value > threshold).astype(int)
    if label.sum() < FEWEST // 4:
        raise InputError("the measured pairs all depart alike: nothing tells strong departures from weak ones")
    place = {p: i for i, p in enumerate(able)}
    odds = np.zeros(len(able))
    for held in folds(able, _FOLDS, seed):
        known = _learn({c: e for c, e in effects.items() if c not in held}, data.genes, modules)
        x = np.array([_features(p, singles, known) for p in able])
        out = np.zeros(len(able), bool)
        out[[place[p] for p in held]] = True
        if len(set(label[~out])) > 1:
            odds[out] = _regression().fit(x[~out], label[~out]).decision_function(x[out])
    slope, shift = _platt(odds, label)
    told = _squash(slope * odds + shift)
    known = _learn(effects, data.genes, modules)
    x = np.array([_features(p, singles, known) for p in able])
    rng = generator(seed, "pairs of an interaction model")
    fits = [_regression().fit(x, label)]
    while len(fits) <= _DRAWS:
        rows = rng.integers(len(able), size=len(able))
        if len(set(label[rows])) > 1:
            fits.append(_regression().fit(x[rows], label[rows]))
    auroc, low, high = auroc_interval(odds, label, seed)
    brier = float(np.square(told - label).mean())
    return CallModel(
        threshold, len(able), auroc, low, high, brier, dict(zip(able, told.tolist(), strict=True)), known.actions, known,
        singles, tuple(fits), (slope, shift),
    )  # fmt: skip


def _platt(odds: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=1.0).fit(odds[:, None], label)
    slope, shift = float(found.coef_[0, 0]), float(found.intercept_[0])
    if slope <= 0:  # left-out pairs were ranked no better than by chance: the base rate is all there is to say
        rate = float(label.mean())
        return 0.0, float(np.log(rate / (1 - rate)))
    return slope, shift


def auroc_interval(
    value: Float[np.ndarray, " n"], label: np.ndarray, seed: int, draws: int = 500
) -> tuple[float, float, float]:
    """Area under the ROC curve, and its 95% interval by bootstrap over the observations.

    Args:
        value: larger where the label is expected to be 1.
        label: 0 or 1.
        seed: of the draws.
        draws: how many.
    """
    from scipy.stats import rankdata

    def area(v: np.ndarray, y: np.ndarray) -> float:
        n1 = int(y.sum())
        n0 = len(y) - n1
        return float((rankdata(v)[y == 1].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)) if n1 and n0 else float("nan")

    rng = generator(seed, "bootstrap of an area under the curve")
    found = []
    for _ in range(draws):
        rows = rng.integers(len(label), size=len(label))
        found.append(area(value[rows], label[rows]))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return area(value, label), float(low), float(high)
