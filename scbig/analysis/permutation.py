"""Perturbed cells beside controls of the same context and batch, and what chance alone makes of such a comparison.

A test here compares a statistic with what it becomes when the labels "perturbed" and "control" are swapped among cells of
the same context and batch. Every statistic is put in units of its own null distribution, and these are then pooled over
all tests: 200 permutations of one test cannot give a p below 1/201, which no correction for many tests would leave
standing, while those of a hundred tests together can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scbig.data.conditions import CONTROL
from scbig.errors import InputError, some
from scbig.evaluation.rank_sum import benjamini_hochberg
from scbig.rng import generator

__all__ = [
    "LEAST", "Contrast", "adjusted", "bootstrapped", "contrasts", "design_of", "false_discovery", "new_tally",
    "nuisance_of", "p_values", "permuted", "standardized", "tally",
]  # fmt: skip

LEAST = 30
"""Cells below which a condition is not tested."""

_NUISANCES = ("depth+median", "depth+mean", "depth", "median", "mean", "none")
_MOST = 2000  # controls of a condition; more make nothing clearer
_STEP, _BINS = 1e-3, 40_000  # of the null distribution, which is kept as a histogram


@dataclass(frozen=True)
class Contrast:
    """The cells of one perturbed condition and the controls they are compared with; c controls come first, then p.

    Attributes:
        condition: canonical, such as ``IFNGR2+JAK2``.
        context: cell line or cell type.
        dose: of a drug, 0 where doses do not apply.
        rows: places of the cells in the screen, controls first, ``[c+p]``.
        batch: number of each cell's batch, ``[c+p]``. Every batch has cells of both kinds.
        n_control: how many of them are controls.
    """

    condition: str
    context: str
    dose: float
    rows: Int[np.ndarray, " cells"]
    batch: Int[np.ndarray, " cells"]
    n_control: int

    @property
    def n_perturbed(self) -> int:
        """How many of the cells are perturbed."""
        return len(self.rows) - self.n_control

    @property
    def weight(self) -> Float[np.ndarray, " cells"]:
        """Weight of each cell: those of each kind sum to one, and a batch weighs in both what it has of perturbed cells."""
        control, perturbed = self.batch[: self.n_control], self.batch[self.n_control :]
        share = np.bincount(perturbed, minlength=self.batch.max() + 1) / len(perturbed)
        count = np.bincount(control, minlength=len(share))
        return np.concatenate([share[control] / count[control], np.full(len(perturbed), 1.0 / len(perturbed))])

    @property
    def strata(self) -> list[Int[np.ndarray, " stratum"]]:
        """Places, among the cells of the contrast, of those of each batch."""
        return [np.flatnonzero(self.batch == number) for number in np.unique(self.batch)]

    @property
    def groups(self) -> list[Int[np.ndarray, " group"]]:
        """Places of the cells of each kind in each batch."""
        kind = np.arange(len(self.batch)) >= self.n_control
        return [np.flatnonzero((self.batch == b) & (kind == k)) for b in np.unique(self.batch) for k in (False, True)]


def contrasts(
    obs: pd.DataFrame, conditions: Sequence[str] = (), least: int = LEAST, most: int = _MOST, seed: int = 0
) -> tuple[list[Contrast], pd.DataFrame]:
    """Each condition in each context beside the controls of the same context and batches.

    Args:
        obs: table of cells with ``condition``, ``context`` and ``batch``, and ``dose`` where there are doses.
        conditions: canonical; all perturbed ones where empty.
        least: cells of either kind without which a condition is not tested. Cells in batches without two controls do not
            count.
        most: controls of a contrast; where there are more, so many are drawn.
        seed: of that draw.

    Returns:
        The contrasts, and a table of what is not tested: ``condition``, ``context``, ``n_cells`` and ``reason``.

    Raises:
        InputError: for a table without these columns or without controls.
    """
    missing = [name for name in ("condition", "context", "batch") if name not in obs]
    if missing:
        raise InputError(f"the table of cells lacks {some(missing)}; `scbig prepare` writes them")
    table = pd.DataFrame({name: obs[name].astype(str).to_numpy() for name in ("condition", "context", "batch")})
    dose = pd.to_numeric(obs["dose"]).fillna(0.0).to_numpy(float) if "dose" in obs else np.zeros(len(obs))
    table["dose"] = dose
    control = (table["condition"] == CONTROL).to_numpy()
    if not control.any():
        raise InputError("no cells with condition control to compare with")
    wanted = list(conditions) or sorted(set(table["condition"]) - {CONTROL})
    places = table[~control].groupby(["condition", "context", "dose"], sort=True).indices
    rows_of = np.flatnonzero(~control)
    found, left_out = [], []
    for condition in wanted:
        keys = [key for key in places if key[0] == condition]
        if not keys:
            left_out.append((condition, "", 0, "no cells of it in this screen"))
        for key in keys:
            cells, controls = rows_of[places[key]], np.flatnonzero(control & (table["context"] == key[1]).to_numpy())
            made = _contrast(key, cells, controls, table["batch"].to_numpy(), least, most, seed)
            if isinstance(made, Contrast):
                found.append(made)
            else:
                left_out.append((condition, key[1], len(cells), made))
    return found, pd.DataFrame(left_out, columns=["condition", "context", "n_cells", "reason"])


def _contrast(key, cells, controls, batch, least, most, seed) -> Contrast | str:
    """The contrast, or why there is none."""
    if len(controls) > most:
        # Evenly over batches is not needed: batches are weighed. A stream for each context, shared by its conditions.
        controls = np.sort(generator(seed, f"controls beside {key[1]}").choice(controls, most, replace=False))
    controls = controls[np.isin(batch[controls], np.unique(batch[cells]))]
    counts = pd.Series(batch[controls]).value_counts()
    usable = set(counts.index[counts >= 2])
    kept = cells[np.isin(batch[cells], list(usable))]
    controls = controls[np.isin(batch[controls], list(set(batch[kept])))]
    if len(cells) < least:
        return f"{len(cells)} cells, fewer than {least}"
    if len(kept) < least:
        return f"{len(kept)} of {len(cells)} cells in batches with controls, fewer than {least}"
    if len(controls) < least:
        return f"{len(controls)} controls in its batches, fewer than {least}"
    rows = np.concatenate([controls, kept])
    codes = np.unique(batch[rows], return_inverse=True)[1]
    return Contrast(key[0], key[1], float(key[2]), rows, codes, len(controls))


def nuisance_of(
    obs: pd.DataFrame, scores: Float[np.ndarray, "cells modules"], how: str = "depth+median"
) -> tuple[Float[np.ndarray, "cells columns"], str]:
    """What of a cell is regressed out of its values, beside its batch.

    Depth, because all that is counted follows it. And what most modules do in the cell, because counts are shares of a
    library: where a perturbation drives one module up, all others go down, as far as it worked in that cell, and so come
    to vary together although nothing binds them. The median over modules follows these others, and not the few that
    moved; a mean would.

    Args:
        obs: the table of cells.
        scores: mean log-expression of each module's genes in these cells.
        how: ``depth``: the logarithm of ``size_factor``, else of ``n_umis``, and its square; ``median``: the median over
            modules of scores less their means over cells; ``mean``: their mean over modules; ``depth+median``,
            ``depth+mean``: both, or the second alone where the table has no depth; ``none``.

    Returns:
        The columns, none of them for ``none``, and words for what they are.

    Raises:
        InputError: for another word, for ``depth`` without such a column, or depths that are not positive.
    """
    if how not in _NUISANCES:
        raise InputError(f"nuisance={how!r}: choose one of {', '.join(_NUISANCES)}")
    columns, words = [np.empty((len(obs), 0))], []
    name = next((name for name in ("size_factor", "n_umis") if name in obs), "")
    if how == "depth" and not name:
        raise InputError(
            "nuisance='depth': the table of cells has neither size_factor nor n_umis; take 'median' or 'none'"
        )
    if "depth" in how and name:
        values = pd.to_numeric(obs[name]).to_numpy(np.float64)
        if not (np.isfinite(values) & (values > 0)).all():
            raise InputError(f"obs[{name!r}] is not positive in all cells; take nuisance='median' or 'none'")
        depth = np.log(values) - np.log(values).mean()
        columns += [depth[:, None], depth[:, None] ** 2]
        words.append(f"the logarithm of {name}, its square")
    middle = {"median": np.nanmedian, "mean": np.nanmean}.get(how.removeprefix("depth+"))
    if middle is not None:
        left = np.asarray(scores, np.float64)
        columns.append(middle(left - left.mean(axis=0), axis=1)[:, None])
        words.append(f"the cell's {how.removeprefix('depth+')} over modules")
    return np.concatenate(columns, axis=1), " and ".join(words) or "nothing else"


def design_of(
    contrast: Contrast, nuisance: Float[np.ndarray, "all columns"]
) -> Float[np.ndarray, "cells batches_and_columns"]:
    """Indicators of batches, and what else is regressed out, for the cells of a contrast.

    Args:
        contrast: the cells.
        nuisance: of all cells of the screen, from :func:`nuisance_of`.
    """
    own = nuisance[contrast.rows]
    spread = own.std(axis=0)
    own = (own - own.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    return np.concatenate([np.equal.outer(contrast.batch, np.unique(contrast.batch)).astype(np.float64), own], axis=1)


def adjusted(
    values: Float[np.ndarray, "cells columns"], contrast: Contrast, nuisance: Float[np.ndarray, "all nuisances"]
) -> Float[np.ndarray, "cells columns"]:
    """Values of the cells of a contrast less what nuisances explain of them within kind and batch.

    Args:
        values: of the contrast's cells, in its order.
        contrast: the cells.
        nuisance: of all cells of the screen, from :func:`nuisance_of`.
    """
    columns = design_of(contrast, nuisance)[:, len(contrast.strata) :]
    if not columns.shape[1]:
        return values
    within, inner = columns.copy(), values.astype(np.float64)
    for group in contrast.groups:
        within[group] -= within[group].mean(axis=0)
        inner[group] -= inner[group].mean(axis=0)
    slope = np.linalg.lstsq(within, inner, rcond=None)[0]
    return values - columns @ slope


def permuted(contrast: Contrast, draws: int, rng: np.random.Generator) -> Int[np.ndarray, "draws cells"]:
    """Which cell stands in each place when labels are swapped within batches; numbers of cells stay as they are."""
    return _shuffled(contrast.strata, len(contrast.rows), draws, lambda rows: rng.permuted(rows, axis=1))


def bootstrapped(contrast: Contrast, draws: int, rng: np.random.Generator) -> Int[np.ndarray, "draws cells"]:
    """Which cell stands in each place when cells of each kind and batch are drawn again, with replacement."""
    return _shuffled(
        contrast.groups,
        len(contrast.rows),
        draws,
        lambda rows: np.take_along_axis(rows, rng.integers(0, rows.shape[1], rows.shape), axis=1),
    )


def _shuffled(parts, n, draws, shuffle) -> np.ndarray:
    out = np.empty((draws, n), np.int64)
    for part in parts:
        out[:, part] = shuffle(np.tile(part, (draws, 1)))
    return out


def standardized(
    observed: Float[np.ndarray, " tests"], null: Float[np.ndarray, "draws tests"]
) -> tuple[Float[np.ndarray, " tests"], Float[np.ndarray, "draws tests"]]:
    """Statistics in units of their null distributions.

    A draw of the null is put in units of the other draws, as the statistic itself is: else the draws would look tamer
    than the statistic where they are few.

    Returns:
        z of the statistics and of the draws; NaN where the null does not vary.
    """
    n = len(null)
    mean, spread = null.mean(axis=0), null.std(axis=0, ddof=1)
    flat = ~(spread > 1e-12)
    spread = np.where(flat, np.nan, spread)
    off = null - mean
    rest = np.sqrt(np.maximum(((n - 1) * spread**2 - off**2 * n / (n - 1)) / (n - 2), 1e-300))
    return (observed - mean) / spread, off * n / (n - 1) / rest


def new_tally() -> Int[np.ndarray, " bins"]:
    """An empty histogram of |z| under the null."""
    return np.zeros(_BINS, np.int64)


def tally(null: Float[np.ndarray, "draws tests"]) -> Int[np.ndarray, " bins"]:
    """Histogram of |z| of the draws, to be added up over conditions: it is as small for a million tests as for ten."""
    values = np.abs(null[np.isfinite(null)])
    return np.bincount(_bin(values), minlength=_BINS)


def p_values(z: Float[np.ndarray, " tests"], null: Int[np.ndarray, " bins"]) -> Float[np.ndarray, " tests"]:
    """Two-sided p: the share of the pooled null at least as far out, the statistic itself counted in; NaN stays NaN."""
    above = np.cumsum(null[::-1])[::-1]
    known = np.isfinite(z)
    p = (1.0 + above[_bin(np.abs(np.where(known, z, 0.0)))]) / (1.0 + null.sum())
    return np.where(known, p, np.nan)


def _bin(values: np.ndarray) -> np.ndarray:
    return np.minimum(values / _STEP, _BINS - 1).astype(np.int64)


def false_discovery(p: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """False discovery rates of Benjamini and Hochberg over all tests; missing ones do not count."""
    return benjamini_hochberg(p.ravel()[None])[0].reshape(p.shape)
