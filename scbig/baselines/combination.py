"""What perturbations do together: their denoised sum, weaker, and what alike pairs do beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np

from scbig.baselines.base import Model, TrainingData, fitted_contexts, missing_singles, one_context
from scbig.baselines.combination_terms import PLAIN, Basis, Fitted, Setting, basis_of, smooth
from scbig.baselines.validation import folds as deal
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError, some

__all__ = ["FEWEST", "GRID", "TERMS", "fit"]

FEWEST = 8
"""Training combinations with all their singles, below which nothing is learned from them."""

GRID = {
    "details": (float("inf"), 5.0, 3.0, 2.0),
    "attenuation": (1.0, 0.85, 0.7, 0.55),
    "interactions": (0.0, 0.3, 1.0, 3.0),
    "own": (0.1, 0.3, 1.0),
    "shared": (0.0, 0.03, 0.1),
}
"""Values tried, in this order; those of :data:`~scbig.baselines.combination_terms.PLAIN` among them."""

TERMS = ("noise", "details", "attenuation", "interactions", "shared")
"""What can be left out."""

_ROUNDS = 2  # over the grid
_TOP = 20  # genes


def fit(
    data: TrainingData,
    *,
    folds: int = 5,
    seed: int = 0,
    terms: Sequence[str] = TERMS,
    modules: Mapping[str, int | str] | None = None,
    chosen: Mapping[str, Mapping[str, float]] | None = None,
) -> Model:
    """Predicts combinations of perturbations that were each measured alone.

    Training effects are taken apart into components. In each, the effect of a condition is a Gaussian process: the
    effects of its genes, denoised and in a combination multiplied by a common factor (``attenuation``); what a gene
    does in combinations only (``shared``); what pairs of genes alike to these do beyond their sum (``interactions``,
    a kernel over unordered pairs); and something particular to the combination, which nothing tells. The share of
    signal in a component maximises its likelihood; conditions count by the ``noise`` their own residuals show. What
    single genes respond beside all components is added where it stands out of the noise (``details``).

    How much of each term is chosen by cross-validation over training combinations, one after another and starting
    from none, by the mean of the Pearson correlation, that of the twenty most changed genes, and the share of the
    squared effect explained, the perturbed genes left out. The model's departure from the sum of the measured
    effects is shrunk by the factor that fits the left-out combinations best, and dropped where it does not improve
    that score by two standard errors.

    Args:
        data: training effects.
        folds: of the cross-validation.
        seed: of the folds.
        terms: of :data:`TERMS`, those that may be used.
        modules: module of each gene, by which the perturbed genes are then compared in ``interactions``; by their
            components when None.
        chosen: settings by context, as ``Model.settings`` of an earlier fit has them; searched for when None.

    Returns:
        The model. A single that was measured is answered with its measured effect; conditions with a single that was
        not have no prediction. With fewer than :data:`FEWEST` combinations to learn from, effects add up.

    Raises:
        InputError: a term that is not one, modules without a gene of the data, or no chosen settings for a context.
    """
    odd = [t for t in terms if t not in TERMS]
    if odd:
        raise InputError(f"the combination model has no term {some(odd)}; there are: {some(TERMS)}")
    columns = _columns(data.genes, modules)
    parts, notes, study, settings = {}, [], [], {}
    for context in fitted_contexts(data):
        effects = _usable(data, context)
        table = data.table(context)
        learned = _combinations(effects)
        if len(learned) < FEWEST:
            parts[context] = (table, None, 0.0, 0.0)
            notes.append(f"{len(learned)} combinations of measured singles, {FEWEST} are needed: effects add up")
            continue
        if chosen is None:
            setting, kept, skill, tried = _search(effects, learned, data.genes, terms, columns, folds, seed)
            study += [{"context": context, **record} for record in tried]
        else:
            if context not in chosen:
                raise InputError(f"no chosen settings for context '{context}' in the combination model")
            given = dict(chosen[context])
            kept, skill = given.pop("kept"), given.pop("skill")
            setting = Setting(**given)
        settings[context] = {**asdict(setting), "kept": kept, "skill": skill}
        fitted = smooth(basis_of(effects, "noise" in terms, columns), setting) if kept > 0 else None
        parts[context] = (table, fitted, kept, skill)
        told = ", ".join(f"{name} {value:g}" for name, value in asdict(setting).items())
        notes.append(f"{told}, kept {kept:.2f} in context {context or 'any'}")
    last = list(parts)[-1]  # a context never trained on gets the model of all contexts together
    zero = np.zeros(len(data.genes))

    @lru_cache(1024)
    def rule(condition: str, context: str) -> np.ndarray | str:
        table, fitted, kept, _ = parts.get(context, parts[last])
        reason = missing_singles(condition, table)
        if reason:
            return reason
        genes = genes_of(condition)
        total = sum((table[g] for g in genes), zero)
        if fitted is None or len(genes) < 2 or not set(genes) <= set(fitted.basis.names):
            return total
        return total + kept * (fitted.predict([condition])[0] - total)

    def account(condition: str, context: str) -> dict[str, float | str]:
        table, fitted, kept, skill = parts.get(context, parts[last])
        if condition == CONTROL or missing_singles(condition, table):
            return {}
        if len(genes_of(condition)) == 1:
            return {"basis": "measured", "skill": 1.0, "kept": 1.0}
        learned = fitted is not None and set(genes_of(condition)) <= set(fitted.basis.names)
        basis = "pair of measured singles" if len(genes_of(condition)) == 2 else "measured singles"
        return {"basis": basis, "skill": skill if learned else 0.0, "kept": kept if learned else 0.0}

    again = {"terms": tuple(terms), "modules": modules, "chosen": settings} if settings else {}
    return Model("combination", data.genes, one_context(data), rule, tuple(notes), tuple(study), account, again)


def _usable(data: TrainingData, context: str) -> dict[str, np.ndarray]:
    """Effects of the context by condition, or of all contexts where it has no combination to learn from."""
    own = data.own(context)
    effects = own if len(_combinations(own)) >= FEWEST else data.table(context)
    return {c: e for c, e in effects.items() if c != CONTROL}


def _combinations(effects: Mapping[str, np.ndarray]) -> list[str]:
    return sorted(c for c in effects if len(genes_of(c)) > 1 and all(g in effects for g in genes_of(c)))


def _columns(genes: Sequence[str], modules: Mapping[str, int | str] | None) -> list[list[int]] | None:
    if modules is None:
        return None
    members: dict[str, list[int]] = {}
    for column, gene in enumerate(genes):
        if gene in modules:
            members.setdefault(str(modules[gene]), []).append(column)
    if not members:
        raise InputError("no gene of the training effects is in any of the modules given")
    return [members[m] for m in sorted(members)]


class _Fold:
    """Combinations left out, and what the others say of them."""

    def __init__(self, effects, left, genes, weighted, columns):
        self.left = list(left)
        self.truth = np.stack([effects[c] for c in left])
        self.total = np.stack([np.sum([effects[g] for g in genes_of(c)], axis=0) for c in left])
        own = [set(genes_of(c)) for c in left]
        self.wanted = set().union(*own)
        self.keep = np.array([[g not in each for g in genes] for each in own])
        rest = {c: e for c, e in effects.items() if c not in set(left)}
        self.basis: Basis = basis_of(rest, weighted, columns)
        self.alike = self.basis.interactions(self.left)

    def predict(self, setting: Setting) -> np.ndarray:
        fitted: Fitted = smooth(self.basis, setting, self.wanted)
        return fitted.predict(self.left, self.alike)


def _search(effects, learned, genes, terms, columns, folds, seed):
    """Settings, the share of the departure from the sum to keep, its skill, and what was tried."""
    parts = [_Fold(effects, left, genes, "noise" in terms, columns) for left in deal(learned, folds, seed)]
    truth, total, keep = (np.concatenate([getattr(p, n) for p in parts]) for n in ("truth", "total", "keep"))
    judge = _Judge(truth, keep)
    told: dict[Setting, np.ndarray] = {}

    def gains(setting: Setting) -> np.ndarray:
        if setting not in told:
            told[setting] = judge.score(np.concatenate([p.predict(setting) for p in parts]))
        return told[setting]

    best = PLAIN
    for _ in range(_ROUNDS):
        before = best
        for name, values in GRID.items():
            if name in TERMS and name not in terms:
                continue
            # The first of equals: the value that does the least.
            best = max((replace(best, **{name: value}) for value in values), key=lambda s: gains(s).mean())
        if best == before:
            break
    found = np.concatenate([p.predict(best) for p in parts])
    away, real = (np.where(keep, each - total, 0.0) for each in (found, truth))
    length = np.square(away).sum()
    kept = float(np.clip((away * real).sum() / length, 0.0, 1.0)) if length > 0 else 0.0
    gain = judge.score(total + kept * (found - total)) - judge.score(total)
    if not gain.mean() > 2 * gain.std() / np.sqrt(len(gain)):
        kept = 0.0
    skill = float(_pearson(away, real, keep).mean())
    tried = [{**asdict(s), "value": float(v.mean())} for s, v in told.items()]
    return best, kept, skill, tried


class _Judge:
    """Scores predictions of the same conditions, one number each."""

    def __init__(self, truth: np.ndarray, keep: np.ndarray):
        self.truth, self.keep = truth, keep
        size = np.where(keep, np.abs(truth), -1.0)
        first = np.argsort(-size, axis=1, kind="stable")[:, :_TOP]
        self.top = np.zeros_like(keep)
        np.put_along_axis(self.top, first, True, axis=1)
        self.top &= keep
        self.power = np.square(np.where(keep, truth, 0.0)).sum(axis=1).mean()

    def score(self, found: np.ndarray) -> np.ndarray:
        error = np.square(np.where(self.keep, found - self.truth, 0.0)).sum(axis=1)
        explained = 1.0 - error / max(self.power, 1e-300)
        r, top = (_pearson(found, self.truth, keep) for keep in (self.keep, self.top))
        return (r + top + explained) / 3.0


def _pearson(x: np.ndarray, y: np.ndarray, keep: np.ndarray) -> np.ndarray:
    n = np.maximum(keep.sum(axis=1, keepdims=True), 1)
    x, y = (np.where(keep, each, 0.0) for each in (x, y))
    x, y = (np.where(keep, each - each.sum(axis=1, keepdims=True) / n, 0.0) for each in (x, y))
    size = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), size, out=np.zeros(len(x)), where=size > 0)
