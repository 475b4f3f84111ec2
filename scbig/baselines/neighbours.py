"""An unseen gene does what its partners do, by all that is known of both, and no more than has been validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from scbig.baselines.base import Model, TrainingData, fitted_contexts, one_context
from scbig.baselines.kernels import choose_weights, correlations, kernel, left_out_one, similarities, stacked
from scbig.baselines.smoother import FEWEST
from scbig.baselines.sources import Sources, unit_sources
from scbig.baselines.validation import folds as deal
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError
from scbig.rng import generator

__all__ = ["AMPLITUDES", "OBJECTIVES", "fit"]

AMPLITUDES = tuple(np.round(np.arange(1.0, 3.01, 0.1), 1).tolist())
"""Multiples of the least-squares size of the deviations that are tried."""
OBJECTIVES = ("squares", "error", "discrimination")
"""What may decide on the size of the deviations; see ``fit``."""

_SEARCHED = 400  # genes that weights are chosen on: what they are worth does not hang on the others
_NESTED = 400  # genes up to which what was chosen is judged on genes that had no part in the choice
_FEWEST_PER_BIN = 25  # genes behind a statement on genes with similar support
_BINS = 8
_REMEMBERED = 512  # predictions


@dataclass(frozen=True)
class _Calibration:
    """What left-out genes said of predictions.

    Attributes:
        amplitude: factor on deviations from the mean.
        support: supports, rising, at which the next two are known.
        skill: correlation expected there, never falling.
        kept: share of the deviation that is kept there.
        overall: mean correlation over all left-out genes, and its standard error.
    """

    amplitude: float
    support: tuple[float, ...]
    skill: tuple[float, ...]
    kept: tuple[float, ...]
    overall: tuple[float, float]

    def at(self, support: float) -> tuple[float, float]:
        """Skill and share kept at a support."""
        return (
            float(np.interp(support, self.support, self.skill)),
            float(np.interp(support, self.support, self.kept)),
        )


@dataclass(frozen=True)
class _Part:
    """What one context learned; ``mean`` alone where no source does any good."""

    singles: Mapping[str, np.ndarray]
    mean: np.ndarray
    names: tuple[str, ...] = ()
    sources: Sources | None = None
    vectors: Mapping[str, np.ndarray] | None = None
    weights: Mapping[str, float] | None = None
    inverse: np.ndarray | None = None
    deviations: np.ndarray | None = None
    calibration: _Calibration | None = None

    def weigh(self, gene: str) -> tuple[np.ndarray | None, dict[str, float | str]]:
        """Weights of the training deviations for an unseen gene, None where there are none, and its account."""
        told: dict[str, float | str] = {"basis": "mean", "skill": 0.0, "kept": 0.0}
        if not self.weights or not any(gene in vectors for vectors in self.sources.values()):
            return None, told
        k = kernel(similarities(stacked(self.sources, [gene]), self.vectors), self.weights)[0]
        w = k @ self.inverse
        skill, kept = self.calibration.at(float(np.clip(w @ k, 0.0, 1.0)))
        if kept <= 0 or self.calibration.amplitude <= 0:
            return None, told
        return self.calibration.amplitude * kept * w, {"basis": "neighbours", "skill": skill, "kept": kept}

    def effect(self, gene: str) -> np.ndarray:
        """The effect of an unseen gene."""
        w, _ = self.weigh(gene)
        return self.mean if w is None else self.mean + w.astype(np.float32) @ self.deviations


def fit(
    data: TrainingData,
    embedding: str | Sequence[str] | None = None,
    *,
    weights: Mapping[str, float | int] | None = None,
    ridge: float | int | None = None,
    amplitude: float | int | None = None,
    objective: str = "discrimination",
    threshold: float | int | None = None,
    impute: bool = True,
    calibration: Sequence[Sequence[float]] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Model:
    """Predicts effects of unseen single perturbations by kernel ridge on all sources, shrunk by validated skill.

    The kernel of two genes is ``exp(−Σ w (1 − cosine))`` over the sources; weights and penalty are chosen by
    leave-one-out cross-validation over training genes, and a source that adds nothing gets none. The deviation from the
    mean training effect is multiplied by

    - a size common to all genes (``objective``), and
    - a share that depends on support, the part of the prior variance of the gene that training genes explain: in bins
      of support, ``1 − (standard error / mean correlation)²`` of left-out genes, 0 where the correlation is not above
      its standard error. Where nothing is validated the mean training effect is predicted, exactly.

    In a table of effects of which only large entries were recorded (others are exactly 0), the error of an entry that
    was not recorded is by how much a prediction exceeds the threshold, and deviations are learned from entries
    filled in with what left-out predictions say of them, within the threshold.

    Args:
        data: training effects; single perturbations are learned from.
        embedding: a source in ``data.embeddings``, several, or None for all.
        weights: of the sources; chosen when None.
        ridge: penalty; chosen when None.
        amplitude: factor on the deviations; chosen when None.
        objective: which factor is chosen: ``"squares"``, that of least squares; ``"error"``, that of the least error
            with censored entries as intervals; ``"discrimination"``, the largest at which that error is not above the
            error at ``"squares"`` and the correlation over recorded entries is above that of the mean training effect
            by a standard error: nothing is lost by it, and conditions are told apart better. Without censored
            entries all three are the same.
        threshold: size below which entries were not recorded; found when None (0: all were).
        impute: fill in entries that were not recorded.
        calibration: supports, skill and share kept there; found by cross-validation when None.
        folds: of the nested cross-validation, where there are few genes.
        seed: of folds and of the genes that weights are chosen on.

    Returns:
        The model. A single that was measured in training is its measured effect. A combination is the sum over its
        genes, measured where they are, else predicted. A gene that no source knows has the mean training effect.

    Raises:
        InputError: a source that is not there, weights of other sources, or an objective that is none.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"no objective '{objective}'; there are: {', '.join(OBJECTIVES)}")
    sources = unit_sources(data, embedding, "neighbours")
    odd = sorted(set(weights or {}) - set(sources))
    if odd:
        raise InputError(f"weights of {', '.join(odd)}, which the baseline neighbours is not given")
    chosen = _Options(weights, ridge, amplitude, objective, threshold, impute, calibration, folds, seed)
    parts, notes, study, settings = {}, [], [], {}
    several = len(set(data.contexts)) > 1
    for context in fitted_contexts(data):
        own = data.own(context)
        table = own if len(own) > 1 else data.table(context)
        part, tried, found = _fit(table, data, context, sources, chosen)
        parts[context] = part
        where = "" if not several else f" in context {context}" if context else " over all contexts"
        notes.append(_told(part, found) + where)
        study += [({"context": context} if several else {}) | record for record in tried]
        # Of several contexts, those of all together: one setting is given back.
        settings = found
    last = list(parts)[-1]

    # A prediction is asked for again where it is checked; it is the largest part of the time.
    @lru_cache(maxsize=_REMEMBERED)
    def unseen(gene: str, context: str) -> np.ndarray:
        return parts[context].effect(gene)

    def rule(condition: str, context: str) -> np.ndarray:
        here = context if context in parts else last
        known, total = parts[here].singles, np.zeros(len(data.genes))
        if condition != CONTROL:
            for gene in genes_of(condition):
                total += known[gene] if gene in known else unseen(gene, here)
        return total

    def account(condition: str, context: str) -> dict[str, float | str]:
        if condition == CONTROL:
            return {}
        part = parts.get(context, parts[last])
        measured: dict[str, float | str] = {"basis": "measured", "skill": 1.0, "kept": 1.0}
        told = [measured if g in part.singles else part.weigh(g)[1] for g in genes_of(condition)]
        bases = sorted({each["basis"] for each in told})
        basis = bases[0] if len(told) == 1 else f"sum of {' and '.join(bases)}"
        return {"basis": basis, "skill": min(t["skill"] for t in told), "kept": min(t["kept"] for t in told)}

    return Model("neighbours", data.genes, one_context(data), rule, tuple(notes), tuple(study), account, settings)


@dataclass(frozen=True)
class _Options:
    weights: Mapping[str, float | int] | None
    ridge: float | int | None
    amplitude: float | int | None
    objective: str
    threshold: float | int | None
    impute: bool
    calibration: Sequence[Sequence[float]] | None
    folds: int
    seed: int


def _told(part: _Part, found: Mapping[str, Any]) -> str:
    if not part.weights:
        return "no source tells left-out genes apart: the mean training effect"
    mean, error = part.calibration.overall
    sources = ", ".join(f"{s} {w:g}" for s, w in sorted(part.weights.items(), key=lambda each: -each[1]))
    return (
        f"{sources}; penalty {found['ridge']:g}, amplitude {found['amplitude']:.2f}, correlation {mean:.3f} ± {error:.3f}"
        f" on left-out genes, {len(part.names)} training singles"
    )


def _fit(
    table: Mapping[str, np.ndarray], data: TrainingData, context: str, sources: Sources, options: _Options
) -> tuple[_Part, tuple[dict, ...], dict[str, Any]]:
    singles = {c: e for c, e in data.table(context).items() if len(genes_of(c)) == 1}
    known = set().union(*sources.values())
    # In order of name, so that the rows' order cannot matter.
    names = tuple(sorted(c for c in table if len(genes_of(c)) == 1))
    every = np.stack([table[c] for c in (names or sorted(table))])
    effects, own = _without_own(every, names, data.genes)
    mean = effects.mean(axis=0)
    use = [i for i, c in enumerate(names) if c in known]
    nothing = {"weights": {}}
    if len(use) < FEWEST or (options.weights is not None and not any(options.weights.values())):
        return _Part(singles, mean), (), nothing
    names, y, own = tuple(names[i] for i in use), effects[use], own[use]
    vectors = stacked(sources, names)
    cosines = similarities(vectors, vectors)
    # From here on, the mean of the genes with a vector: a level that they share is not to be told from others.
    y = y - y.mean(axis=0)
    gram = _gram(y)
    study: tuple[dict, ...] = ()
    weights, ridge = options.weights, options.ridge
    if weights is None:
        weights, best, study = _choose(names, cosines, gram, sources, options.seed)
        ridge = best if ridge is None else ridge
    weights, ridge = {s: float(w) for s, w in weights.items() if w > 0}, float(1.0 if ridge is None else ridge)
    if not weights:
        return _Part(singles, mean), study, nothing
    k = kernel(cosines, weights)
    left = left_out_one(k, ridge)
    skill, support = correlations(left.weights, gram), left.support
    said = left.weights @ y
    slope = max(0.0, float((said * y).sum() / max(np.square(said).sum(), 1e-30)))
    if options.weights is None and len(names) <= _NESTED:
        skill, support, nested = _nested(names, cosines, gram, sources, options)
        slope = min(slope, nested)
    bins = _calibrate(skill, support)
    if options.calibration is not None:
        bins = tuple(tuple(map(float, each)) for each in options.calibration)
    if not any(bins[2]):
        return _Part(singles, mean), study, nothing
    limit = _threshold(every) if options.threshold is None else float(options.threshold)
    factor = slope
    if options.amplitude is not None:
        factor = float(options.amplitude)
    elif limit > 0 and options.objective != "squares":
        share = np.interp(support, bins[0], bins[2])[:, None]
        factor = slope * _amplitude(every[use], mean, slope * share * said, limit, own, options.objective)
    if limit > 0 and options.impute:
        missing = (every[use] == 0) & ~own
        y = np.where(missing, _within_limits(mean + slope * said, limit, missing.mean()), effects[use])
        y = y - y.mean(axis=0)
    overall = float(skill.mean()), float(skill.std(ddof=1) / np.sqrt(len(skill)))
    inverse = np.linalg.inv(k + ridge * np.eye(len(k)))
    used = {s: sources[s] for s in weights}, {s: vectors[s] for s in weights}
    part = _Part(
        singles, mean, names, *used, weights, inverse, y.astype(np.float32), _Calibration(factor, *bins, overall)
    )
    found = {"weights": weights, "ridge": ridge, "amplitude": factor, "calibration": bins, "impute": options.impute}
    return part, study, found


def _gram(y: Float[np.ndarray, "n genes"]) -> Float[np.ndarray, "n n"]:
    centred = y - y.mean(axis=1, keepdims=True)
    return centred @ centred.T


def _within(gram: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products of the deviations of some rows from the mean of these."""
    inner = gram[np.ix_(rows, rows)]
    middle = inner.mean(axis=1, keepdims=True)
    return inner - middle - middle.T + inner.mean()


def _choose(names: Sequence[str], cosines: Mapping[str, np.ndarray], gram: np.ndarray, sources: Sources, seed: int):
    rows = np.arange(len(names))
    if len(names) > _SEARCHED:
        rows = np.sort(generator(seed, "genes that weights are chosen on").permutation(len(names))[:_SEARCHED])
    known = np.array([[names[i] in vectors for i in rows] for vectors in sources.values()])
    return choose_weights({s: c[np.ix_(rows, rows)] for s, c in cosines.items()}, _within(gram, rows), known)


def _nested(
    names: tuple[str, ...], cosines: Mapping[str, np.ndarray], gram: np.ndarray, sources: Sources, options: _Options
) -> tuple[np.ndarray, np.ndarray, float]:
    """Correlation, support and least-squares slope of genes that had no part in the choice of weights and penalty."""
    product = square = 0.0
    at = {name: i for i, name in enumerate(names)}
    skill, support = np.zeros(len(names)), np.zeros(len(names))
    for held in deal(names, options.folds, options.seed):
        out = np.array([at[name] for name in held])
        rest = np.setdiff1d(np.arange(len(names)), out)
        inner = {s: c[np.ix_(rest, rest)] for s, c in cosines.items()}
        known = np.array([[names[i] in vectors for i in rest] for vectors in sources.values()])
        weights, ridge, _ = choose_weights(inner, _within(gram, rest), known)
        if not weights:
            continue
        across = kernel({s: c[np.ix_(out, rest)] for s, c in cosines.items()}, weights)
        w = across @ np.linalg.inv(kernel(inner, weights) + ridge * np.eye(len(rest)))
        support[out] = np.clip((w * across).sum(axis=1), 0.0, 1.0)
        # Deviations of all from the mean of the rest: a change of reference in the inner products.
        away = np.eye(len(names)) - np.isin(np.arange(len(names)), rest) / len(rest)
        shifted = away @ gram @ away.T
        xy, xx = (w * shifted[np.ix_(out, rest)]).sum(axis=1), ((w @ shifted[np.ix_(rest, rest)]) * w).sum(axis=1)
        product, square = product + xy.sum(), square + xx.sum()
        size = np.sqrt(np.maximum(xx, 0.0) * np.diag(shifted)[out])
        skill[out] = np.divide(xy, size, out=np.zeros(len(out)), where=size > 1e-12)
    return skill, support, max(0.0, float(product / square)) if square > 0 else 0.0


def _calibrate(
    skill: Float[np.ndarray, " n"], support: Float[np.ndarray, " n"]
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Skill and the share to keep, by support: bins of equal size, pooled until skill does not fall with support."""
    order = np.argsort(support, kind="stable")
    n_bins = max(1, min(_BINS, len(order) // _FEWEST_PER_BIN))
    bins = [list(b) for b in np.array_split(order, n_bins)]
    pooled: list[list[int]] = []
    for each in bins:
        pooled.append(each)
        while len(pooled) > 1 and skill[pooled[-1]].mean() < skill[pooled[-2]].mean():
            pooled[-2:] = [pooled[-2] + pooled[-1]]
    where = tuple(float(np.median(support[b])) for b in pooled)
    means = [float(skill[b].mean()) for b in pooled]
    errors = [float(skill[b].std(ddof=1) / np.sqrt(len(b))) for b in pooled]
    kept = tuple(max(0.0, 1.0 - (e / m) ** 2) if m > 0 else 0.0 for m, e in zip(means, errors, strict=True))
    return where, tuple(max(0.0, m) for m in means), kept


def _threshold(effects: Float[np.ndarray, "n genes"]) -> float:
    """The size below which entries were not recorded; 0 where there is no gap between zeros and other entries."""
    size = np.abs(effects)
    silent = size == 0
    if silent.mean() < 0.25 or silent.all():
        return 0.0
    values = size[~silent]
    # Of a quantity that was recorded throughout, a part is much smaller than the usual entries. A few entries below the
    # threshold (rounded, averaged, recorded for another reason) do not make it lower.
    least = float(np.quantile(values, 0.001))
    return least if least > 0.25 * np.median(values) else 0.0


def _within_limits(centre: np.ndarray, limit: float, share: float) -> np.ndarray:
    """The expected value of an entry that was not recorded: of a normal distribution cut at the limits.

    Its width is that at which the share that was not recorded of entries without any effect lies within the limits.
    """
    from scipy.special import ndtr, ndtri

    width = limit / max(float(ndtri(0.5 + 0.5 * share)), 1e-3)
    low, high = (-limit - centre) / width, (limit - centre) / width
    mass = np.maximum(ndtr(high) - ndtr(low), 1e-12)
    density = (np.exp(-0.5 * low**2) - np.exp(-0.5 * high**2)) / np.sqrt(2 * np.pi)
    return np.clip(centre + width * density / mass, -limit, limit)


def _amplitude(
    effects: np.ndarray, mean: np.ndarray, said: np.ndarray, limit: float, own: np.ndarray, objective: str
) -> float:
    """The multiple of left-out deviations that the objective asks for, of ``AMPLITUDES``."""
    recorded = (effects != 0) & ~own
    errors, margins = [], []
    base = _recorded_correlation(np.broadcast_to(mean, said.shape), effects, recorded)
    for factor in AMPLITUDES:
        x = mean + factor * said
        beyond = np.maximum(np.abs(x) - limit, 0.0)
        errors.append(float(np.square(np.where(own, 0.0, np.where(recorded, x - effects, beyond))).mean()))
        gap = _recorded_correlation(x, effects, recorded) - base
        margins.append(gap.mean() - gap.std(ddof=1) / np.sqrt(len(gap)))
        if errors[-1] > errors[0]:
            break
    least = int(np.argmin(errors))
    if objective == "error":
        return AMPLITUDES[least]
    able = [i for i, (e, g) in enumerate(zip(errors, margins, strict=True)) if e <= errors[0] and g >= 0]
    return AMPLITUDES[max(able, default=0)]


def _recorded_correlation(x: np.ndarray, y: np.ndarray, keep: np.ndarray) -> np.ndarray:
    n = np.maximum(keep.sum(axis=1, keepdims=True), 1)
    x, y = (np.where(keep, e - np.where(keep, e, 0.0).sum(axis=1, keepdims=True) / n, 0.0) for e in (x, y))
    size = np.sqrt(np.square(x).sum(axis=1) * np.square(y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), size, out=np.zeros(len(x)), where=size > 0)


def _without_own(y: np.ndarray, names: Sequence[str], genes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Effects in which a condition's own gene moves as in the others on average, and where that is."""
    place = {g: j for j, g in enumerate(genes)}
    rows = [i for i, g in enumerate(names) if g in place]
    columns = [place[names[i]] for i in rows]
    y, own = y.copy(), np.zeros(y.shape, bool)
    own[rows, columns] = True
    y[rows, columns] = (y[:, columns].sum(axis=0) - y[rows, columns]) / max(len(names) - 1, 1)
    return y, own
