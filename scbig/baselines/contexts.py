"""What a perturbation does in a context where it was not measured, from what it does in the others."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scbig.baselines.base import Model, TrainingData, one_context
from scbig.baselines.validation import folds as deal
from scbig.data.conditions import CONTROL
from scbig.errors import InputError
from scbig.rng import generator

__all__ = ["BANDWIDTHS", "FALLS", "RISES", "fit"]

BANDWIDTHS = (0.15, 0.25, 0.35, 0.5, 1.0, 2.0, 100.0)
"""Widths tried, as multiples of the median distance between contexts; by the last all contexts count alike."""
FALLS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares tried of the rule that a gene falls in proportion to where it starts."""
RISES = (0.0, 0.1, 0.2, 0.3)
"""Shares tried of the rule that a gene rises to the same level wherever it starts."""

_FLOOR = 0.05  # log-expression added to a level that is divided by: below it a control mean is mostly noise
_FEWEST = 3  # left-out answers that a choice can rest on
_MOST = 2_000  # left-out answers that it rests on

Setting = tuple[float, float, float]
"""Bandwidth, falls, rises."""


@dataclass(frozen=True)
class _Chosen:
    """What is used: ``kept`` of the way from the plain mean over contexts to what the setting says."""

    setting: Setting
    kept: float
    skill: float | None


class _Sources:
    """Effects by condition and context, and how contexts resemble each other before any perturbation."""

    def __init__(self, data: TrainingData) -> None:
        self.effects: dict[str, dict[str, np.ndarray]] = {}
        for condition, context, effect in zip(data.conditions, data.contexts, data.effects, strict=True):
            self.effects.setdefault(condition, {})[context] = effect.astype(np.float64)
        self.level = {k: np.asarray(x, np.float64) for k, x in data.control_mean.items()}
        names = sorted(self.level)
        unit = {k: _unit(self.level[k]) for k in names}
        self.distance = {
            (a, b): max(0.0, 1.0 - float(unit[a] @ unit[b])) for a, b in itertools.product(names, repeat=2)
        }
        apart = [d for (a, b), d in self.distance.items() if a < b]
        self.median = float(np.median(apart)) if apart and np.median(apart) > 0 else 1.0

    def of(self, condition: str, context: str) -> list[str]:
        """The other contexts that the condition was measured in."""
        return sorted(set(self.effects.get(condition, {})) - {context})

    def comparable(self, context: str, others: Sequence[str]) -> bool:
        """Whether the controls of all of them are known."""
        return context in self.level and all(k in self.level for k in others)

    def plain(self, condition: str, others: Sequence[str]) -> np.ndarray:
        return np.mean([self.effects[condition][k] for k in others], axis=0)

    def parts(self, condition: str, context: str, others: Sequence[str], bandwidth: float) -> np.ndarray:
        """Weighted mean of the other effects, and what falls and rises in full would add to it: 3 × genes."""
        d = np.stack([self.effects[condition][k] for k in others])
        from_ = np.stack([self.level[k] for k in others])
        away = np.array([self.distance[context, k] for k in others])
        w = np.exp(-(away - away.min()) / (bandwidth * self.median))
        w /= w.sum()
        gap = self.level[context] - from_
        share = np.clip(d / (from_ + _FLOOR), -1.0, 0.0)
        return np.stack([w @ d, w @ (share * gap), w @ np.where(d > 0, -gap, 0.0)])


def fit(
    data: TrainingData,
    *,
    bandwidth: float | int | None = None,
    falls: float | int | None = None,
    rises: float | int | None = None,
    kept: float | int | None = None,
    skill: float | int | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Model:
    """Predicts the effect of a condition in a context from its effects in the other contexts.

    Contexts count by how alike their controls are: the weight is ``exp(−distance / width)``, the distance being one
    minus the correlation of the control profiles. Each effect is first taken to the level where the gene starts in
    the context asked for: a gene that falls loses the same share of its expression (``falls`` of the way), one that
    rises comes to the same level (``rises`` of the way). The result is then drawn towards the plain mean over the
    contexts, ``kept`` being the share of the difference that stays.

    Where the condition was measured in the context asked for, its own training effect is the answer.

    Args:
        data: training effects with the profiles of their controls. In a table of effects, which has no controls,
            the plain mean over the contexts is predicted; so it is in a context without training controls.
        bandwidth: width of the weights, a multiple of the median distance between contexts.
        falls: share, 0 to 1, of the rule for genes that fall.
        rises: the same for genes that rise.
        kept: share of the difference to the plain mean.
        skill: what an earlier fit with these settings found, for the account.
        folds: what is None above is chosen by leaving out every measured condition and context in turn and
            predicting it from the others. How much is kept is what would have been right for answers in one fold
            with settings chosen in the others, and nothing where the gain over the plain mean is less than its
            standard error.
        seed: of the folds.

    Raises:
        InputError: a setting out of its range, or fewer than two folds.
    """
    for name, value in {"falls": falls, "rises": rises, "kept": kept}.items():
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"contexts: {name}={value} is not between 0 and 1")
    if bandwidth is not None and not bandwidth > 0:
        raise InputError(f"contexts: bandwidth={bandwidth} is not above 0")
    if folds < 2:
        raise InputError(f"contexts: folds={folds}; at least two are needed")
    sources = _Sources(data)
    grid = [
        (float(b), float(f), float(r))
        for b in (BANDWIDTHS if bandwidth is None else (bandwidth,))
        for f in (FALLS if falls is None else (falls,))
        for r in (RISES if rises is None else (rises,))
    ]
    if kept is not None and len(grid) == 1:
        chosen, study, note = _Chosen(grid[0], float(kept), skill), (), "settings given"
    else:
        chosen, study, note = _choose(sources, grid, folds, seed)
        chosen = chosen if kept is None else replace(chosen, kept=float(kept))
    zero = np.zeros(len(data.genes))

    def rule(condition: str, context: str) -> np.ndarray | str:
        if condition == CONTROL:
            return zero
        measured = sources.effects.get(condition, {})
        if context in measured:
            return measured[context]
        others = sources.of(condition, context)
        if not others:
            return "no training effect of this condition in any context"
        plain = sources.plain(condition, others)
        if chosen.kept == 0 or not sources.comparable(context, others):
            return plain
        width, down, up = chosen.setting
        moved = np.array([1.0, down, up]) @ sources.parts(condition, context, others, width)
        return plain + chosen.kept * (moved - plain)

    def account(condition: str, context: str) -> Mapping[str, float | str]:
        others = sources.of(condition, context)
        if condition == CONTROL or not (others or context in sources.effects.get(condition, {})):
            return {}
        if context in sources.effects.get(condition, {}):
            return {"basis": "measured", "kept": 1.0}
        share = chosen.kept if sources.comparable(context, others) else 0.0
        told: dict[str, float | str] = {"basis": "other contexts", "kept": share}
        return told if chosen.skill is None else told | {"skill": float(chosen.skill)}

    names = ("bandwidth", "falls", "rises")
    settings = dict(zip(names, chosen.setting, strict=True)) | {"kept": chosen.kept}
    told_as = ", ".join(f"{name} {value:.2g}" for name, value in settings.items())
    settings |= {} if chosen.skill is None else {"skill": chosen.skill}
    return Model("contexts", data.genes, one_context(data), rule, (f"{told_as}; {note}",), study, account, settings)


def _choose(sources: _Sources, grid: Sequence[Setting], folds: int, seed: int) -> tuple[_Chosen, tuple[dict, ...], str]:
    """Leaves out one measured answer at a time; every score comes from the inner products of a few vectors."""
    asked = [
        (condition, context)
        for condition, measured in sorted(sources.effects.items())
        for context in sorted(measured)
        if len(measured) > 1 and sources.comparable(context, list(measured))
    ]
    if len(asked) < _FEWEST:
        note = f"{len(asked)} answers can be left out and {_FEWEST} are needed: the mean over contexts"
        return _Chosen(grid[0], 0.0, None), (), note
    if len(asked) > _MOST:
        drawn = generator(seed, "contexts left out").choice(len(asked), _MOST, replace=False)
        asked = [asked[i] for i in np.sort(drawn)]
    widths = sorted({setting[0] for setting in grid})
    product, centred = _products(sources, asked, widths)
    at = np.array([widths.index(setting[0]) for setting in grid])
    answer = np.array([[0.0, 0.0, 1.0, down, up] for _, down, up in grid])
    error = _square(product[:, at], _TRUTH - answer)
    plain_error = _square(product[:, 0], np.tile(_TRUTH - _PLAIN, (len(asked), 1)))

    # The setting for each answer is chosen on the other folds, so that its gain is an honest one.
    chosen = np.empty(len(asked), np.int64)
    place = {"\t".join(each): i for i, each in enumerate(asked)}
    for part in deal(list(place), folds, seed):
        held = np.array([place[name] for name in part])
        chosen[held] = np.delete(error, held, axis=0).mean(axis=0).argmin()
    rows = np.arange(len(asked))
    inner, away = product[rows, at[chosen]], answer[chosen] - _PLAIN
    square = _square(inner, away).sum()
    toward = np.einsum("ia,iab,b->", away, inner, _TRUTH - _PLAIN)
    kept = float(np.clip(toward / square, 0.0, 1.0)) if square > 1e-12 else 0.0
    left = _square(inner, _TRUTH - _PLAIN - kept * away)
    gain = plain_error - left
    if gain.mean() <= gain.std(ddof=1) / np.sqrt(len(gain)):
        kept, left = 0.0, plain_error
    final, inner = _PLAIN + kept * away, centred[rows, at[chosen]]
    size = np.sqrt(_square(inner, final) * inner[:, 0, 0])
    r = np.divide(np.einsum("ia,ia->i", final, inner[:, :, 0]), size, out=np.zeros(len(rows)), where=size > 1e-12)
    study = tuple(
        {"bandwidth": b, "falls": f, "rises": r, "value": float(1.0 - error[:, s].mean())}
        for s, (b, f, r) in enumerate(grid)
    )
    note = (
        f"{len(asked)} left-out answers, error {left.mean():.3f} of their size, by the mean over contexts "
        f"{plain_error.mean():.3f}"
    )
    return _Chosen(grid[int(error.mean(axis=0).argmin())], kept, float(r.mean())), study, note


_TRUTH = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
_PLAIN = np.array([0.0, 1.0, 0.0, 0.0, 0.0])


def _products(
    sources: _Sources, asked: Sequence[tuple[str, str]], widths: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of truth, plain mean, weighted mean, falls and rises: answers × widths × 5 × 5.

    They are taken with effects of which the truth has length one; and again without their means over genes.
    """
    product = np.empty((len(asked), len(widths), 5, 5))
    centred = np.empty_like(product)
    for i, (condition, context) in enumerate(asked):
        others = sources.of(condition, context)
        both = np.stack([sources.effects[condition][context], sources.plain(condition, others)])
        size = max(float(np.linalg.norm(both[0])), 1e-12)
        for j, width in enumerate(widths):
            vectors = np.concatenate([both, sources.parts(condition, context, others, width)]) / size
            product[i, j] = vectors @ vectors.T
            mean = vectors.sum(axis=1)
            centred[i, j] = product[i, j] - np.outer(mean, mean) / vectors.shape[1]
    return product, centred


def _square(product: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Squared lengths of combinations of the five vectors, one combination per place before the last two axes."""
    return np.maximum(np.einsum("...sa,...sab,...sb->...s", weights, product, weights), 0.0)


def _unit(x: np.ndarray) -> np.ndarray:
    """Centred and of length one; zero where it is constant."""
    x = x - x.mean()
    length = np.linalg.norm(x)
    return x / length if length > 0 else x
