"""How baselines choose their settings: on left-out training conditions, never on what is tested."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from scbig.errors import InputError, some
from scbig.rng import generator

__all__ = ["folds", "score", "search"]

if TYPE_CHECKING:  # an extra, imported where it is used
    from optuna import Trial

_SCALES = ("log", "linear", "int")


def folds(conditions: Sequence[str], n: int = 5, seed: int = 0) -> list[tuple[str, ...]]:
    """Deals conditions into folds by their names, whatever their order.

    Args:
        conditions: training conditions, each once.
        n: folds; fewer where there are fewer conditions.
        seed: of the draw.

    Returns:
        The conditions left out in each fold, sorted; every condition is left out once.

    Raises:
        InputError: fewer than two folds, a condition named twice, or fewer than two conditions.
    """
    names = sorted(conditions)
    twice = sorted({a for a, b in itertools.pairwise(names) if a == b})
    if twice:
        raise InputError(f"conditions named twice cannot be dealt into folds: {some(twice)}")
    if n < 2 or len(names) < 2:
        raise InputError(
            f"{n} folds of {len(names)} training conditions: at least two of each are needed to choose settings"
        )
    order = generator(seed, "folds of training conditions").permutation(len(names))
    n = min(n, len(names))
    return [tuple(sorted(names[i] for i in order[k::n])) for k in range(n)]


def score(
    predicted: Float[np.ndarray, "n genes"],
    truth: Float[np.ndarray, "n genes"],
    reference: Float[np.ndarray, " genes"],
    keep: Bool[np.ndarray, "n genes"] | None = None,
) -> float:
    """How well predictions tell conditions apart: mean Pearson correlation of both effects taken to a reference.

    The reference is the mean of the training effects of the fold, so that what all perturbations share earns
    nothing (Systema, Viñas Torné et al. 2025). A prediction that equals the reference scores 0.

    Args:
        predicted: effects, one row per condition.
        truth: observed effects.
        reference: mean effect of the conditions that the prediction was fitted on.
        keep: genes that count, by condition; all by default.

    Returns:
        The mean over conditions; 0 where either side is constant.
    """
    keep = np.ones(truth.shape, bool) if keep is None else keep
    n = np.maximum(keep.sum(axis=1, keepdims=True), 1)
    x, y = (np.where(keep, each.astype(np.float64) - reference, 0.0) for each in (predicted, truth))
    # A prediction that is the reference but for rounding says nothing.
    silent = np.abs(x).max(axis=1, initial=0.0) < 1e-5 * np.abs(y).max(axis=1, initial=0.0)
    x, y = (np.where(keep, each - each.sum(axis=1, keepdims=True) / n, 0.0) for each in (x, y))
    size = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    r = np.divide((x * y).sum(axis=1), size, out=np.zeros(len(x)), where=(size > 0) & ~silent)
    return float(r.mean())


def search(
    objective: Callable[[Mapping[str, float | int]], float],
    space: Mapping[str, tuple[float | int, float | int, str]],
    trials: int,
    seed: int,
) -> tuple[dict[str, float | int], tuple[dict[str, float | int], ...]]:
    """Maximises an objective by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

    Args:
        objective: from settings to what is to be large; a value that is not finite is a failed trial.
        space: lowest and highest value of each setting and its scale, ``"log"``, ``"linear"`` or ``"int"``.
            A setting of scale ``"int"`` is handed over as an ``int``.
        trials: how many settings to try.
        seed: of the sampler; the same seed tries the same settings as long as the objective answers the same.

    Returns:
        The best settings, and one record per trial: ``trial``, every setting, and ``value`` (NaN where it
        failed).

    Raises:
        InputError: Optuna is not installed, no trial, an empty or ill-defined range, or no trial with a value.
    """
    odd = [
        name
        for name, (low, high, scale) in space.items()
        if scale not in _SCALES or not low <= high or (scale == "log" and low <= 0)
    ]
    if odd:
        raise InputError(f"the range of {some(odd)} is not (low, high, log|linear|int) with low ≤ high (log: 0 < low)")
    if trials < 1 or not space:
        raise InputError(f"a search needs settings and at least one trial, not {len(space)} settings, {trials} trials")
    try:
        import optuna
    except ModuleNotFoundError:
        raise InputError(
            "a search over settings needs Optuna: pip install 'scbig[tune]', or leave trials at 0"
        ) from None

    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        records: list[dict[str, float | int]] = []
        for number in range(trials):
            trial = study.ask()
            chosen = {name: _suggest(trial, name, *limits) for name, limits in space.items()}
            value = float(objective(chosen))
            if math.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                value = math.nan
            records.append({"trial": number, **chosen, "value": value})
    finally:
        optuna.logging.set_verbosity(told)
    worked = [r for r in records if math.isfinite(r["value"])]
    if not worked:
        raise InputError(f"none of {trials} trials over {some(space)} gave a finite score")
    best = max(worked, key=lambda r: r["value"])
    return {name: best[name] for name in space}, tuple(records)


def _suggest(trial: Trial, name: str, low: float | int, high: float | int, scale: str) -> float | int:
    if scale == "int":
        return trial.suggest_int(name, int(low), int(high))
    return trial.suggest_float(name, low, high, log=scale == "log")
