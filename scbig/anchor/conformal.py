"""Intervals for predicted effects, calibrated on conditions that the predictor was fitted without.

Split conformal prediction with scaled errors: the score of an entry is its absolute error over a scale, which is the
gene's usual error times what the condition's difficulty makes of it; an interval is the prediction ± its scale times a
quantile of the scores. Scales are cross-fitted, so that no condition's errors are in the scale that they are held to.

Conditions, not entries, are what is exchangeable: all genes of a condition fail together. The quantile therefore gives
every calibration condition the same weight and the condition to come, whose scores may be anything, a weight as well
(hierarchical conformal prediction, Lee, Barber and Willett 2023; Dunn, Wasserman and Ramdas 2022). With n conditions of
a kind, the share of genes covered, averaged over new conditions of this kind, is then at least the level wherever the
scores of old and new conditions are exchangeable; below ``level / (1 - level)`` conditions the interval is infinite.
That is a statement on the average over conditions and genes. Coverage of one gene, or of one condition, is not
guaranteed, nor is it where conditions to come are of another sort than those left out. Cross-fitting of predictions and
scales makes the scores of old and new conditions exchangeable up to the difference that a fold of training makes; one
number by kind, how much the size of a predicted entry counts, is chosen on the scores themselves.

What is covered is the effect as it would be measured, noise included, on as many cells as the calibration conditions
had; where numbers of cells are known, the part of the error that falls with them is estimated and can be asked for.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int

from scbig.anchor.scales import Scales, fit_scales, size_factor
from scbig.anchor.spread import Agreement, agreement, coverage, effect_size, ensemble_spread, neighbour_error
from scbig.errors import InputError, some
from scbig.files import atomic
from scbig.rng import generator

__all__ = ["ENOUGH", "POOLED", "Agreement", "Calibration", "agreement", "calibrate", "coverage", "effect_size",
           "ensemble_spread", "neighbour_error"]  # fmt: skip

POOLED = ""
"""The name under which all kinds of condition are calibrated together."""
ENOUGH = 20
"""Conditions of a kind from which on it has quantiles of its own."""
_FOLDS = 20
_STEPS = 2000  # about as many points of a quantile function are kept; an interval takes the next one above
_SIZES = (0.0, 0.03, 0.1, 0.3, 1.0)
_JUDGED_ON = 400  # genes
_JUDGED_AT = 0.9  # level at which the part of the predicted entry is chosen


@dataclass(frozen=True)
class _Table:
    """Calibration of genes, or of modules.

    Attributes:
        names: one per column.
        scales: the fit on all conditions.
        sizes: how much wider an entry is for the size of its own prediction, by kind.
        quantiles: of the scores, by kind, at evenly spaced probabilities, infinite beyond the last.
    """

    names: tuple[str, ...]
    scales: Scales
    sizes: Float[np.ndarray, " kinds"]
    quantiles: Float[np.ndarray, "kinds points"]

    def half_width(
        self,
        effect: np.ndarray,
        kind: Sequence[str] | np.ndarray,
        spread: np.ndarray | None,
        level: float | int,
        cells: np.ndarray | None,
    ) -> np.ndarray:
        scales, out = self.scales, np.zeros(effect.shape)
        kind = np.asarray(kind, str)
        for number, name in enumerate(scales.kinds):
            # A kind without enough conditions of its own gets the widest of all intervals, entry by entry.
            rows = np.flatnonzero((kind == name) | ~np.isin(kind, scales.kinds[1:]))
            if not len(rows):
                continue
            at = None if spread is None else spread[rows]
            base = scales.entries(number, at, None if cells is None else cells[rows])
            grown = base * size_factor(effect[rows], base, self.sizes[number])
            # The condition to come counts as one more, with a score beyond all others.
            wanted = level * (scales.n[number] + 1) / max(scales.n[number], 1)
            if wanted > 1:
                q = np.inf
            else:
                q = self.quantiles[number, int(np.ceil(wanted * _steps(scales.n[number]) - 1e-6))]
            out[rows] = np.maximum(out[rows], q * grown)
        return out


@dataclass(frozen=True)
class Calibration:
    """What turns a predicted effect into an interval.

    Attributes:
        genes: symbols, one per column of an effect.
        module: position in ``modules`` of every gene; -1 without one.
        modules: names of the modules, sorted.
        by_gene: calibration of genes.
        by_module: calibration of the mean effects of modules; None without modules.
    """

    genes: tuple[str, ...]
    module: Int[np.ndarray, " genes"]
    modules: tuple[str, ...]
    by_gene: _Table
    by_module: _Table | None

    def conditions(self) -> dict[str, int]:
        """How many conditions each kind of interval rests on; ``POOLED`` for all kinds together."""
        return dict(zip(self.by_gene.scales.kinds, map(int, self.by_gene.scales.n), strict=True))

    def basis(self, kind: str) -> str:
        """Which calibration a kind of condition gets: its own name, or ``POOLED``.

        A kind without its own gets the widest interval that any kind would get, or all of them together.
        """
        return kind if kind in self.by_gene.scales.kinds else POOLED

    def means(self, effect: Float[np.ndarray, "n genes"]) -> Float[np.ndarray, "n modules"]:
        """Mean effect of each module; NaN entries do not count."""
        return _module_means(np.asarray(effect, np.float64), self.module, len(self.modules))

    def intervals(
        self,
        effect: Float[np.ndarray, "n genes"],
        kind: Sequence[str] | np.ndarray,
        spread: Float[np.ndarray, " n"] | Float[np.ndarray, "n measures"] | None = None,
        level: float | int = 0.9,
        modules: bool = False,
        n_cells: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Prediction intervals.

        Args:
            effect: predicted effects, genes in the order of ``genes``.
            kind: what is known of each condition, as in ``calibrate``.
            spread: difficulty of each condition, as in ``calibrate``.
            level: share to be covered.
            modules: intervals of the mean effect of each module instead.
            n_cells: cells that each condition would be measured on; as many as usual when None. Infinity asks for the
                effect without the noise of cells, as far as that could be told apart.

        Returns:
            Lower and upper ends, one column per gene or per module in the order of ``modules``; infinite where there
            were too few conditions to state anything at this level.

        Raises:
            InputError: arrays that do not fit the calibration, a level outside 0 … 1, or modules where there are none.
        """
        table = self.by_module if modules else self.by_gene
        if table is None:
            raise InputError("this calibration knows no modules: give groups= to calibrate")
        if not 0 < level < 1:
            raise InputError(f"level is a share between 0 and 1, not {level}")
        n = len(effect)
        if effect.shape[1] != len(self.genes) or len(kind) != n:
            raise InputError(
                f"effects of shape {effect.shape} with {len(kind)} kinds do not fit a calibration of "
                f"{len(self.genes)} genes"
            )
        wanted = table.scales.powers.shape[1]
        spread = _spread(spread, n)
        if (0 if spread is None else spread.shape[1]) != wanted:
            has = 0 if spread is None else spread.shape[1]
            raise InputError(f"calibrated with {wanted} measures of difficulty, but {has} are given as spread")
        cells = None if n_cells is None else _cells(n_cells, n)
        middle = self.means(effect) if modules else np.asarray(effect, np.float64)
        half = table.half_width(middle, kind, spread, level, cells)
        return middle - half, middle + half

    def arrays(self) -> dict[str, np.ndarray]:
        """The calibration as plain arrays by name, to be kept in a file."""
        arrays = {"genes": np.array(self.genes, str), "module": self.module, "modules": np.array(self.modules, str)}
        for prefix, table in (("gene", self.by_gene), ("module", self.by_module)):
            if table is None:
                continue
            arrays[f"{prefix}.sizes"], arrays[f"{prefix}.quantiles"] = table.sizes, table.quantiles
            for field in fields(Scales):
                value = getattr(table.scales, field.name)
                arrays[f"{prefix}.{field.name}"] = np.array(value, str) if field.name == "kinds" else np.asarray(value)
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Calibration:
        """The calibration that gave these arrays.

        Raises:
            ValueError: arrays that do not fit each other.
            KeyError: arrays that are missing.
        """
        genes, modules = (tuple(arrays[name].tolist()) for name in ("genes", "modules"))
        tables = {"gene": _table("gene", arrays, genes), "module": None}
        if modules:
            tables["module"] = _table("module", arrays, modules)
        module = arrays["module"]
        if module.shape != (len(genes),) or not ((module >= -1) & (module < len(modules))).all():
            raise ValueError("modules that do not fit the genes")
        return cls(genes, module, modules, tables["gene"], tables["module"])

    def save(self, path: str | os.PathLike) -> None:
        """Writes an ``.npz`` of plain arrays."""
        with atomic(path) as temporary:
            np.savez_compressed(temporary, **self.arrays())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Calibration:
        """Reads what :meth:`save` wrote.

        Raises:
            InputError: the file is absent, damaged, or of something else.
        """
        try:
            # Opened here since np.load leaves a damaged file open.
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
                return cls.of_arrays({name: file[name] for name in file.files})
        except FileNotFoundError:
            raise InputError(f"no calibration {path}; check the path") from None
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as problem:
            reason = (str(problem) or type(problem).__name__).splitlines()[0]
            raise InputError(f"{path} is truncated, corrupt or no calibration ({reason}); write it again") from None


def _table(prefix: str, arrays: Mapping[str, np.ndarray], names: tuple[str, ...]) -> _Table:
    found = {field.name: arrays[f"{prefix}.{field.name}"] for field in fields(Scales)}
    found["kinds"], found["cells"] = tuple(found["kinds"].tolist()), float(found["cells"])
    scales, sizes, quantiles = Scales(**found), arrays[f"{prefix}.sizes"], arrays[f"{prefix}.quantiles"]
    kinds = len(scales.kinds)
    shapes = {scales.levels.shape, scales.n.shape, scales.noise.shape, sizes.shape}
    fits = shapes == {(kinds,)} and scales.powers.shape == scales.easiest.shape == (kinds, scales.powers.shape[1])
    if (
        not fits
        or scales.scale.shape != (len(names),)
        or quantiles.shape != (kinds, _points(scales.n))
        or POOLED not in scales.kinds
    ):
        raise ValueError(f"arrays of {prefix}s that do not fit each other")
    numbers = (scales.scale, scales.levels, scales.powers, scales.easiest, scales.noise, sizes, quantiles)
    if any(each.dtype.kind != "f" or np.isnan(each).any() for each in numbers):
        raise ValueError(f"values of {prefix}s that are no numbers")
    return _Table(names, scales, sizes, quantiles)


def calibrate(
    predicted: Float[np.ndarray, "n genes"],
    observed: Float[np.ndarray, "n genes"],
    genes: Sequence[str],
    kind: Sequence[str] | np.ndarray,
    spread: Float[np.ndarray, " n"] | Float[np.ndarray, "n measures"] | None = None,
    n_cells: np.ndarray | None = None,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    within: Float[np.ndarray, "n genes"] | None = None,
) -> Calibration:
    """Calibrates intervals on conditions that the predictor was fitted without.

    Every kind of condition with at least ``ENOUGH`` conditions is calibrated by itself; another kind gets, entry by
    entry, the widest of these intervals and of the one from all conditions together.

    Args:
        predicted: out-of-fold predictions, one row per condition.
        observed: the measured effects; NaN entries do not count, such as the perturbed genes themselves.
        genes: symbols, one per column.
        kind: what was known of each condition when it was predicted, such as ``unseen``.
        spread: how difficult each condition is, one or several measures, none negative: the size of the predicted
            effect (``effect_size``), the spread of an ensemble (``ensemble_spread``), 1 - skill. The error may only grow
            with them, by a power that the errors themselves choose.
        n_cells: cells behind each measured effect; None, or 0 anywhere, where unknown.
        groups: module by gene, for intervals of the mean effect of modules.
        seed: of the folds over conditions.
        within: how far from ``observed`` the true value may lie, as where small values were not recorded; the
            intervals then cover wherever it lies.

    Raises:
        InputError: arrays that do not fit each other, values that are not finite, or rows that were predicted by what
            was measured.
    """
    n, columns = predicted.shape
    lengths = {"observed": len(observed), "kind": len(kind)} | ({} if within is None else {"within": len(within)})
    odd = [name for name, length in lengths.items() if length != n]
    if odd or observed.shape[1] != columns or len(genes) != columns:
        raise InputError(f"{n} predictions of {columns} genes, but {some(odd or ['genes'])} of another length")
    if not n or not columns:
        raise InputError("no condition or no gene to calibrate on")
    twice = len(genes) - len(set(genes))
    if twice:
        raise InputError(f"{twice} genes are named more than once: a calibration needs unique names")
    if not np.isfinite(predicted).all():
        raise InputError("predictions to calibrate on must be finite: leave out conditions without an answer")
    if np.isinf(observed).any() or not np.isfinite(observed).any(axis=1).all():
        raise InputError("an observed effect to calibrate on is infinite, or has no value at all")
    error = predicted.astype(np.float64) - observed
    same = np.flatnonzero((np.nan_to_num(error) == 0).all(axis=1) & predicted.any(axis=1))
    if len(same):
        raise InputError(
            f"{len(same)} rows are predicted exactly as measured (first: row {same[0]}): calibrate on out-of-fold "
            "predictions only"
        )
    spread, cells = _spread(spread, n), None if n_cells is None else _cells(n_cells, n)
    if cells is not None and not (np.isfinite(cells) & (cells > 0)).all():
        cells = None
    kinds = np.asarray(kind, str)
    slack = None if within is None else np.where(np.isnan(error), np.nan, within.astype(np.float64))
    names = tuple(sorted(set((groups or {}).values())))
    place = {name: i for i, name in enumerate(names)}
    module = np.array([place[groups[g]] if groups and g in groups else -1 for g in genes], np.int64)
    # Modules without a single gene here cannot be stated anything of.
    present = np.flatnonzero(np.bincount(module[module >= 0], minlength=len(names)))
    module = np.where(module >= 0, np.searchsorted(present, module), -1)
    names = tuple(names[i] for i in present)

    def table(names: tuple[str, ...], error: np.ndarray, slack: np.ndarray | None, effect: np.ndarray) -> _Table:
        return _calibrated(names, np.abs(error) + (0 if slack is None else slack), effect, kinds, spread, cells, seed)

    by_gene = table(tuple(map(str, genes)), error, slack, predicted)
    by_module = None
    if names:
        means = [None if x is None else _module_means(x, module, len(names)) for x in (error, slack, predicted)]
        by_module = table(names, *means)
    return Calibration(tuple(map(str, genes)), module, names, by_gene, by_module)


def _calibrated(
    names: tuple[str, ...],
    error: np.ndarray,
    effect: np.ndarray,
    kinds: np.ndarray,
    spread: np.ndarray | None,
    cells: np.ndarray | None,
    seed: int,
) -> _Table:
    """Cross-fits the scales, and takes the quantiles of the errors held to them."""
    n = len(error)
    several, counts = np.unique(kinds, return_counts=True)
    own = tuple(str(k) for k, c in zip(several, counts, strict=True) if c >= ENOUGH and k != POOLED)
    order = generator(seed, "folds of a calibration").permutation(n)
    every = (POOLED, *own)
    members = [np.ones(n, bool), *(kinds == name for name in own)]
    base = np.empty((len(every), n, error.shape[1]), np.float32)
    folds = min(_FOLDS, n)
    for fold in range(folds if n > 1 else 0):
        out = order[fold::folds]
        kept = np.setdiff1d(order, out)
        given = None if spread is None else spread[kept], None if cells is None else cells[kept]
        scales = fit_scales(error[kept], [m[kept] for m in members], every, *given)
        for number in range(len(every)):
            at = None if spread is None else spread[out]
            base[number, out] = scales.entries(number, at, None if cells is None else cells[out])
    scales = fit_scales(error, members, every, spread, cells)
    # Drawn by name, so that the order of genes does not matter.
    columns = np.argsort(names)[generator(seed, "entries of a calibration").permutation(len(names))[:_JUDGED_ON]]
    sizes, quantiles = np.zeros(len(every)), np.full((len(every), _points(scales.n)), np.inf)
    for number, rows in enumerate(members if n > 1 else []):
        sizes[number] = _choose_size(error[rows], effect[rows], base[number, rows], columns)
        grown = base[number, rows] * size_factor(effect[rows], base[number, rows], sizes[number])
        # An infinite scale covers anything: such an entry says nothing of the others.
        quantiles[number, : _steps(scales.n[number]) + 1] = _quantiles(
            np.where(np.isinf(grown), np.nan, error[rows] / grown)
        )
    return _Table(names, scales, sizes, quantiles)


def _choose_size(error: np.ndarray, effect: np.ndarray, base: np.ndarray, columns: np.ndarray) -> float:
    """The part of the predicted entry for which intervals are shortest, misses counted by how far they miss."""
    error, effect, base = error[:, columns], effect[:, columns], base[:, columns]
    known, cost = ~np.isnan(error) & np.isfinite(base), []
    if not known.any():
        return 0.0
    for size in _SIZES:
        grown = base * size_factor(effect, base, size)
        half = grown * np.quantile((error / grown)[known], _JUDGED_AT)
        # The interval score (Gneiting and Raftery 2007), halved.
        missed = np.maximum(error - half, 0) / (1 - _JUDGED_AT)
        cost.append((half + missed)[known].mean())
    best = int(np.argmin(cost))
    return _SIZES[best] if cost[best] < 0.995 * cost[0] else 0.0


def _steps(n: int | np.integer) -> int:
    """In how many steps a quantile function of n conditions is kept: shares of n conditions are among them."""
    return int(n) * max(1, _STEPS // max(int(n), 1))


def _points(n: np.ndarray) -> int:
    return max(map(_steps, n)) + 1


def _quantiles(scores: np.ndarray) -> np.ndarray:
    """Quantile function of the scores, every condition of the same weight."""
    known = ~np.isnan(scores)
    count = known.sum(axis=1)
    flat, steps = scores[known], _steps(len(scores))
    if not len(flat):
        return np.full(steps + 1, np.inf)
    order = np.argsort(flat)
    share = np.cumsum(np.repeat(1.0 / (np.maximum(count, 1) * (count > 0).sum()), count)[order])
    at = np.searchsorted(share, np.arange(steps + 1) / steps - 1e-9)
    return flat[order][np.minimum(at, len(flat) - 1)].astype(np.float64)


def _module_means(x: np.ndarray, module: np.ndarray, n: int) -> np.ndarray:
    member = (module[:, None] == np.arange(n)).astype(np.float64)
    known = ~np.isnan(x)
    count = known.astype(np.float64) @ member
    return np.divide(np.where(known, x, 0.0) @ member, count, out=np.full(count.shape, np.nan), where=count > 0)


def _spread(spread: np.ndarray | None, n: int) -> np.ndarray | None:
    if spread is None:
        return None
    values = np.asarray(spread, np.float64).reshape(len(spread), -1)
    if len(values) != n or not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"spread must be {n} rows of finite numbers, none negative; one or several per condition")
    return values


def _cells(cells: np.ndarray, n: int) -> np.ndarray:
    values = np.asarray(cells, np.float64)
    if values.shape != (n,) or np.isnan(values).any() or (values < 0).any():
        raise InputError(f"n_cells must be {n} numbers, none negative")
    return values
