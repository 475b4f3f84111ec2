"""By how much the mean of a module's attention, or of any score of modules, shifts under a perturbation; and by chance.

Real cells are compared with controls of the same context and batches, predicted cells with the controls they started from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from scbig.analysis import permutation
from scbig.analysis.permutation import Contrast
from scbig.rng import generator

__all__ = ["Draws", "agreement", "predicted_shifts", "shifts"]

Draws = dict[tuple[str, str, float], Float[np.ndarray, "draws columns"]]
"""Bootstrap draws of shifts, by condition, context and dose."""


def shifts(
    values: Float[np.ndarray, "cells columns"],
    obs: pd.DataFrame,
    conditions: Sequence[str] = (),
    *,
    nuisance: Float[np.ndarray, "cells nuisances"] | None = None,
    least: int = permutation.LEAST,
    draws: int = 200,
    permutations: int = 200,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame, Draws]:
    """Mean shift of every column (attention or any score of modules) in every condition, against matched controls.

    Args:
        values: such as those of :func:`received`; each column is tested.
        obs: the table of the same cells: condition, context and batch.
        conditions: canonical; all perturbed ones where empty.
        nuisance: what is regressed out, from :func:`~scbig.analysis.permutation.nuisance_of`; nothing where None.
        least: cells below which a condition is not tested.
        draws: of the bootstrap over cells within kind and batch.
        permutations: of labels within context and batch.
        seed: of both.

    Returns:
        A row per condition, context and column (``module``): ``control`` and ``perturbed`` means, where batches weigh in
        both what they have of perturbed cells; their difference ``shift``, ``low`` and ``high`` (95%), ``effect`` (the
        shift in standard deviations over control cells), ``z`` (in units of the null), ``p``, ``q``
        (Benjamini–Hochberg over the whole table), ``n_cells``, ``n_control``. What was not tested, with the reason. And
        the bootstrap draws of the shifts, by condition, context and dose.

    Raises:
        InputError: for a table of cells without controls, batches or contexts.
    """
    found, left_out = permutation.contrasts(obs, conditions, least, seed=seed)
    tables, null, boots = [], permutation.new_tally(), {}
    for contrast in found:
        own = values[contrast.rows].astype(np.float64)
        if nuisance is not None:
            own = permutation.adjusted(own, contrast, nuisance)
        name = f"{contrast.condition}@{contrast.context}@{contrast.dose:g}"
        rng = generator(seed, f"shift bootstrap {name}")
        signed = _signed(contrast)
        observed = signed @ own
        boot = _weights(permutation.bootstrapped(contrast, draws, rng), signed) @ own
        labels = permutation.permuted(contrast, permutations, generator(seed, f"shift labels {name}"))
        z, drawn = permutation.standardized(observed, _weights(labels, signed) @ own)
        null += permutation.tally(drawn)
        means = _means(contrast, own)
        tables.append(_rows(contrast, means, observed, boot, z, _spread(contrast, own)))
        boots[contrast.condition, contrast.context, contrast.dose] = boot
    return _judged(tables, null), left_out, boots


def _signed(contrast: Contrast) -> np.ndarray:
    """Weights of cells whose sum of values is the mean of perturbed cells less that of controls."""
    return contrast.weight * np.where(np.arange(len(contrast.rows)) < contrast.n_control, -1.0, 1.0)


def _weights(drawn: np.ndarray, signed: np.ndarray) -> np.ndarray:
    """Weight of each cell in every draw, ``[draws, cells]``."""
    n = drawn.shape[1]
    flat = (drawn + n * np.arange(len(drawn))[:, None]).ravel()
    return np.bincount(flat, np.tile(signed, len(drawn)), drawn.size).reshape(drawn.shape)


def _means(contrast: Contrast, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, weight = contrast.n_control, contrast.weight
    return weight[:n] @ own[:n], weight[n:] @ own[n:]


def _spread(contrast: Contrast, own: np.ndarray) -> np.ndarray:
    """Standard deviations over control cells within batches."""
    control = own[: contrast.n_control].copy()
    for group in contrast.groups[::2]:
        control[group] -= control[group].mean(axis=0)
    return control.std(axis=0)


def _rows(contrast, means, shift, boot, z, spread) -> pd.DataFrame:
    low, high = np.percentile(boot, [2.5, 97.5], axis=0)
    effect = np.divide(shift, spread, out=np.full_like(shift, np.nan), where=spread > 1e-12)
    table = pd.DataFrame(
        {
            "condition": contrast.condition,
            "context": contrast.context,
            "module": np.arange(len(shift)),
            "control": means[0],
            "perturbed": means[1],
            "shift": shift,
            "low": low,
            "high": high,
            "effect": effect,
            "z": z,
            "n_cells": contrast.n_perturbed,
            "n_control": contrast.n_control,
        }
    )
    if contrast.dose:
        table.insert(2, "dose", contrast.dose)
    return table


def _judged(tables: list[pd.DataFrame], null: np.ndarray) -> pd.DataFrame:
    """All rows with p and q."""
    columns = ["condition", "context", "module", "control", "perturbed", "shift", "low", "high", "effect", "z"]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*columns, "n_cells", "n_control"])
    place = table.columns.get_loc("z") + 1
    p = permutation.p_values(table["z"].to_numpy(float), null)
    table.insert(place, "p", p)
    table.insert(place + 1, "q", permutation.false_discovery(p))
    return table


def predicted_shifts(
    cells: Float[np.ndarray, "cells columns"],
    sources: Float[np.ndarray, "cells columns"],
    obs: pd.DataFrame,
    *,
    nuisance: tuple[Float[np.ndarray, "cells nuisances"], Float[np.ndarray, "cells nuisances"]] | None = None,
    draws: int = 200,
    permutations: int = 200,
    seed: int = 0,
) -> tuple[pd.DataFrame, Draws]:
    """Mean shift of every column in predicted cells, each against the control it started from.

    Labels are swapped within these pairs. The test tells what the model moves from what it leaves alone or jitters; it
    cannot tell whether the model is right.

    Args:
        cells: values of the predicted cells.
        sources: values of the controls that they started from, in the same order.
        obs: condition and context of the predicted cells, and dose where there are doses.
        nuisance: what is regressed out, of the predicted cells and of their controls; nothing where None.
        draws: of the bootstrap over pairs.
        permutations: of labels within pairs.
        seed: of both.

    Returns:
        A table like that of :func:`shifts`, and the bootstrap draws.
    """
    keys = pd.DataFrame({"condition": obs["condition"].astype(str), "context": obs["context"].astype(str)})
    keys["dose"] = obs["dose"].to_numpy(float) if "dose" in obs else 0.0
    tables, null, boots = [], permutation.new_tally(), {}
    for (condition, context, dose), places in keys.reset_index(drop=True).groupby([*keys], sort=False).indices.items():
        n, name = len(places), f"{condition}@{context}@{dose:g}"
        pair = Contrast(condition, context, dose, np.arange(2 * n), np.zeros(2 * n, np.int64), n)
        own = np.concatenate([sources[places], cells[places]]).astype(np.float64)
        if nuisance is not None:
            own = permutation.adjusted(own, pair, np.concatenate([nuisance[1][places], nuisance[0][places]]))
        moved = own[n:] - own[:n]
        rng = generator(seed, f"predicted shift {name}")
        boot = rng.multinomial(n, np.full(n, 1.0 / n), draws) / n @ moved
        z, drawn = permutation.standardized(moved.mean(axis=0), rng.choice([-1.0, 1.0], (permutations, n)) / n @ moved)
        null += permutation.tally(drawn)
        tables.append(_rows(pair, _means(pair, own), moved.mean(axis=0), boot, z, _spread(pair, own)))
        boots[condition, context, dose] = boot
    return _judged(tables, null), boots


def agreement(
    real: pd.DataFrame,
    predicted: pd.DataFrame,
    real_draws: Draws,
    predicted_draws: Draws,
) -> pd.DataFrame:
    """Correlation over modules of the real with the predicted shift, by condition.

    Args:
        real: from :func:`shifts`.
        predicted: from :func:`predicted_shifts`.
        real_draws: bootstrap draws of the one.
        predicted_draws: and of the other, as many.

    Returns:
        A row per condition and context in both: ``r``, ``low`` and ``high`` (95%: the spread of arctanh r over bootstrap
        draws of cells, around the estimate, since draws themselves agree less than the means do), ``r_others`` (the mean
        of r with the real shifts of the other conditions: what a prediction gets that says the same of all),
        ``ceiling`` (what r noise in the real cells leaves to a perfect prediction: the square root of the reliability of
        the real shifts over modules), ``n_called`` modules called in real cells (by ``called``; all where the table lacks
        it) and ``same_sign``, the share of these that the prediction moves the same way.
    """
    rows = []
    real_shift = {key: _of(real, key).sort_values("module")["shift"].to_numpy() for key in real_draws}
    for key in [key for key in real_draws if key in predicted_draws]:
        one, other = (_of(table, key).sort_values("module") for table in (real, predicted))
        a, b = one["shift"].to_numpy(), other["shift"].to_numpy()
        if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
            continue
        r = _r(a, b)
        drawn = [_z(_r(x, y)) for x, y in zip(real_draws[key], predicted_draws[key], strict=True)]
        half = 1.96 * float(np.std(drawn, ddof=1))
        # Of the variance over modules that the shifts show, what the bootstrap puts down to the draw of cells.
        noise = float(real_draws[key].var(axis=0, ddof=1).mean())
        reliable = max(0.0, 1.0 - noise / float(a.var(ddof=1)))
        called = one["called"].to_numpy(bool) if "called" in one else np.ones(len(a), bool)
        same = float((np.sign(a) == np.sign(b))[called].mean()) if called.any() else np.nan
        others = [_r(shift, b) for name, shift in real_shift.items() if name[0] != key[0]]
        elsewhere = float(np.mean(others)) if others else np.nan
        ends = np.tanh([_z(r) - half, _z(r) + half])
        rows.append((*key, r, *ends, elsewhere, np.sqrt(reliable), int(called.sum()), same, len(a)))
    names = ["condition", "context", "dose", "r", "low", "high", "r_others", "ceiling", "n_called", "same_sign"]
    names.append("n_modules")
    table = pd.DataFrame(rows, columns=names)
    return table if table["dose"].any() else table.drop(columns="dose")


def _r(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation; 0 where one of the two does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def _z(r: float) -> float:
    return float(np.arctanh(np.clip(r, -0.9999, 0.9999)))


def _of(table: pd.DataFrame, key: tuple[str, str, float]) -> pd.DataFrame:
    """Rows of one condition, context and dose."""
    dose = table["dose"].fillna(0.0) if "dose" in table else pd.Series(0.0, table.index)
    return table[(table["condition"] == key[0]) & (table["context"] == key[1]) & (dose == key[2])]
