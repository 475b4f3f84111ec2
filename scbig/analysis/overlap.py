"""Do predicted cells lie where real ones do? Two pictures, and the numbers that pictures cannot give."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from scbig.analysis import style
from scbig.analysis.chosen import Chosen, choose, measured, rows_of, thinned
from scbig.analysis.section import Ask, Figure, NotHere, Section
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError
from scbig.evaluation.distribution import Space, squared_distances
from scbig.rng import generator

if TYPE_CHECKING:
    from scbig.analysis.view import View

__all__ = ["embed", "overlap", "report"]

_MOST = 4  # conditions, where none are named
_CELLS = 600  # real cells of each kind, at most
_FITTED = 2_000  # training cells that the pictures are fitted on
_NEIGHBOURS = 15
_KINDS = ("control", "measured", "predicted")
_COLOURS = {"control": style.GREY, "measured": style.BLUE, "predicted": style.ORANGE}
_LINES = {"control": ":", "measured": "-", "predicted": "--"}


def overlap(
    real: Float[np.ndarray, "n dims"],
    predicted: Float[np.ndarray, "m dims"],
    control: Float[np.ndarray, "k dims"],
    *,
    neighbours: int = _NEIGHBOURS,
    draws: int = 200,
    seed: int = 0,
) -> dict[str, float]:
    """How far predicted cells have come from control to real perturbed cells, in one space.

    Every draw halves the real cells and takes as many predicted and control cells as a half holds. The spread of halves
    stands for that of whole samples (delete-half jackknife; Shao and Wu 1989), so intervals are percentiles over draws.

    Args:
        real: perturbed cells.
        predicted: predicted cells.
        control: control cells, not those that the prediction started from.
        neighbours: of a real cell that are looked at; no more than a quarter of a half.
        draws: halvings.
        seed: of them.

    Returns:
        ``e_distance``, ``e_control`` and ``e_ceiling``: energy distance of predicted cells, of controls and of the other
        half, to a half of the real cells. ``way``: 1 − e_distance / e_control, 1 where the prediction arrived, 0 where it
        stayed at control, negative where it went astray. ``mixing``: share of predicted cells among the nearest neighbours
        of a real cell, of as many predicted as real cells, over what is expected of equal distributions; so 1 is equal,
        and ``mixing_control`` what control cells reach. ``mixing_ceiling``: the other half. ``mixing_back``: share of real
        among the neighbours of a predicted cell; predictions that spread too little have much of the first and little of
        the second, those that spread too much the reverse. Each with ``_low`` and ``_high`` (95%), and ``n``, the cells of
        a half.

    Raises:
        InputError: fewer than 20 real, or 10 predicted or control cells.
    """
    if len(real) < 20 or min(len(predicted), len(control)) < 10:
        raise InputError(
            f"{len(real)} real, {len(predicted)} predicted and {len(control)} control cells: 20, 10 and 10 at least"
        )
    n = min(len(real) // 2, len(predicted), len(control))
    k = max(1, min(neighbours, n // 4))
    cells = np.concatenate([real, predicted, control]).astype(np.float64)
    squared = squared_distances(cells, cells)
    np.fill_diagonal(squared, 0.0)
    distance = np.sqrt(squared)
    starts = np.cumsum([0, len(real), len(predicted), len(control)])
    rng, found = generator(seed, "overlap halves"), []
    for _ in range(draws):
        halves = rng.permutation(len(real))[: 2 * n]
        drawn = [starts[i] + rng.permutation(starts[i + 1] - starts[i])[:n] for i in (1, 2)]
        own, others = halves[:n], {"e_distance": drawn[0], "e_control": drawn[1], "e_ceiling": halves[n:]}
        row = {name: _energy(distance, own, there) for name, there in others.items()}
        row["way"] = 1.0 - row["e_distance"] / row["e_control"] if row["e_control"] > 0 else np.nan
        for name, there in zip(("mixing", "mixing_control", "mixing_ceiling"), others.values(), strict=True):
            row[name] = _mixing(distance, own, there, k)
        row["mixing_back"] = _mixing(distance, drawn[0], own, k)
        found.append(row)
    table = pd.DataFrame(found)
    out: dict[str, float] = {}
    for name in table:
        values = table[name].dropna()
        out[str(name)] = float(values.mean()) if len(values) else float("nan")
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
        out[f"{name}_low"], out[f"{name}_high"] = float(low), float(high)
    # A ratio of means: single draws of a small distance to control would dominate a mean of ratios.
    out["way"] = 1.0 - out["e_distance"] / out["e_control"] if out["e_control"] > 0 else float("nan")
    return out | {"n": n, "neighbours": k}


def _energy(distance: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    n = len(a)
    within = sum(float(distance[np.ix_(rows, rows)].sum()) / (n * (n - 1)) for rows in (a, b))
    return 2.0 * float(distance[np.ix_(a, b)].mean()) - within


def _mixing(distance: np.ndarray, own: np.ndarray, others: np.ndarray, k: int) -> float:
    """Share of ``others`` among the k nearest of each of ``own``, over n / (2n − 1), which equal distributions give."""
    n = len(own)
    block = distance[np.ix_(own, np.concatenate([own, others]))].copy()
    block[np.arange(n), np.arange(n)] = np.inf
    nearest = np.argpartition(block, k - 1, axis=1)[:, :k]
    return float((nearest >= n).mean() * (2 * n - 1) / n)


def embed(
    fitted: Float[np.ndarray, "n dims"], others: Sequence[np.ndarray], seed: int = 0, neighbours: int = 30
) -> list[Float[np.ndarray, "cells two"]]:
    """UMAP fitted on some cells, and where it puts others; a picture, in which distances mean little.

    Args:
        fitted: cells that the picture is made for, in some 50 principal components.
        others: further cells in the same space.
        seed: the same cells and seed give the same picture.
        neighbours: of a cell that the picture keeps.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba and scikit-learn, about umap-learn's own code
        import umap

        model = umap.UMAP(n_neighbors=min(neighbours, len(fitted) - 1), random_state=seed, n_jobs=1)
        model.fit(np.asarray(fitted, np.float32))
        # In one call, since each would prepare the search for neighbours anew.
        placed = np.asarray(model.transform(np.concatenate(others).astype(np.float32)), np.float64)
    return np.split(placed, np.cumsum([len(each) for each in others])[:-1])


def report(view: View, ask: Ask) -> Section:
    """Control, measured and predicted cells of some conditions in the same space."""
    found = [(one, *measured(view, one)) for one in choose(view, ask, _MOST)]
    usable = [(one, rows, part) for one, rows, part in found if len(rows) >= 20]
    if not usable:
        raise NotHere("no chosen condition has 20 measured cells to lay predicted ones over")
    train = np.flatnonzero(view.part == "train")
    genes = tuple(map(str, view.adata.var_names))
    space = Space.fit(view.adata.X[train], seed=ask.seed, genes=genes)
    predictor = view.predictor
    cells = predictor.sample(
        [one.condition for one, *_ in usable], ask.n_cells, context=[one.context for one, *_ in usable], seed=ask.seed
    )
    parts, rows = [], []
    for number, (one, real, part) in enumerate(usable):
        own, base = genes_of(one.condition), _controls(view, one, predictor)
        real = thinned(real, _CELLS, ask.seed, f"overlap real {one.name}")
        base = thinned(base, _CELLS, ask.seed, f"overlap control {one.name}")
        told = cells.X[number * ask.n_cells : (number + 1) * ask.n_cells]
        projected = {
            "control": space.project(view.adata.X[base], own), "measured": space.project(view.adata.X[real], own),
            "predicted": space.project(told, own),
        }  # fmt: skip
        parts.append((one, projected))
        if min(len(base), len(told)) >= 10:
            values = overlap(projected["measured"], projected["predicted"], projected["control"],
                             draws=ask.draws, seed=ask.seed)  # fmt: skip
            rows.append({"condition": one.condition, "context": one.context, "part": part, "n_real": len(real),
                         "n_control": len(base), **values})  # fmt: skip
    table = pd.DataFrame(rows)
    fitted = space.project(view.adata.X[thinned(train, _FITTED, ask.seed, "overlap picture")])
    figures = [
        Figure("pca", _caption(space), lambda: _contours([(one, _two(p)) for one, p in parts], "PC1", "PC2")),
        Figure(
            "umap",
            "The same cells by UMAP, fitted on real training cells; the others are put into it. Distances and densities in "
            "a UMAP are no measures: read the numbers instead.",
            lambda: _contours(_placed(parts, fitted, ask.seed), "UMAP 1", "UMAP 2"),
        ),
    ]
    if len(table):
        figures.insert(0, Figure(
            "measures",
            "Left: share of the way from control to the measured cells by energy distance (1: arrived, 0: stayed). Right: "
            "share of predicted cells among the neighbours of measured ones (back: of measured among those of predicted) "
            "over that of equal populations, 1; beside it control cells and the other half of the measured cells. "
            "Intervals: 95%, over halvings of the measured cells.",
            lambda: _measures(table),
        ))  # fmt: skip
    skipped = [one.name for one, real, _ in found if len(real) < 20]
    return Section("Overlap of distributions", _told(table, skipped), {"overlap": table}, figures)


def _controls(view: View, one: Chosen, predictor: Any) -> np.ndarray:
    """Controls that predictions did not start from, where there are enough; else all of the context."""
    rows = rows_of(view, CONTROL, one.context)
    started = view.obs.index[rows].astype(str).isin(predictor.controls.index.astype(str))
    others = rows[~started]
    return others if len(others) >= 50 else rows


def _told(table: pd.DataFrame, skipped: Sequence[str]) -> str:
    text = (
        "Real controls, measured cells and predicted cells in 50 principal components of real training cells, perturbed "
        "genes left out. "
    )
    if len(table):
        arrived = (table["mixing_low"] <= table["mixing_ceiling"]) & (table["mixing_high"] >= table["mixing_ceiling"])
        text += (
            f"Median share of the way from control: {table['way'].median():.2f}; mixing with measured cells "
            f"{table['mixing'].median():.2f}, where control cells reach {table['mixing_control'].median():.2f} and the other "
            f"half of the measured cells {table['mixing_ceiling'].median():.2f}. In {int(arrived.sum())} of {len(table)} "
            "conditions mixing cannot be told from that of real cells, which is no proof that the cells are alike. Where a "
            "perturbation does little, control mixes as well as anything, and the share of the way has no meaning. "
        )
    if skipped:
        text += f"Too few measured cells: {', '.join(skipped)}. "
    return text + "Overlap in a picture of two dimensions can hide differences in all others."


def _caption(space: Space) -> str:
    first, second = (float(v) for v in space.explained[:2])
    return (
        "Density of control, measured and predicted cells on the first two principal components of real training cells "
        f"({first:.0%} and {second:.0%} of the variance). Each line holds half of its cells, the outer one 90%."
    )


def _two(projected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {kind: each[:, :2] for kind, each in projected.items()}


def _placed(parts, fitted: np.ndarray, seed: int):
    flat = [each for _, projected in parts for each in (projected[kind] for kind in _KINDS)]
    placed = iter(embed(fitted, flat, seed))
    return [(one, {kind: next(placed) for kind in _KINDS}) for one, _ in parts]


def _contours(parts: Sequence[tuple[Chosen, dict[str, np.ndarray]]], across: str, up: str) -> Any:
    """Cells as dots and their density as lines, a panel for each condition."""
    columns = min(4, len(parts))
    rows = -(-len(parts) // columns)
    figure, axes = style.new(max(1.9 * columns, 3.5), 0.45 + 1.9 * rows, rows, columns, squeeze=False, sharex=True,
                             sharey=True)  # fmt: skip
    ends = [np.percentile(each, [1, 99], axis=0) for _, kinds in parts for each in kinds.values()]
    low, high = np.min(ends, axis=(0, 1)), np.max(ends, axis=(0, 1))
    room = np.maximum((high - low) * 0.15, 1e-6)
    low, high = low - room, high + room
    for ax in axes.flat[len(parts) :]:
        ax.set_axis_off()
    for ax, (one, kinds) in zip(axes.flat, parts, strict=False):
        for kind, points in kinds.items():
            ax.scatter(*points.T, s=1.2, color=_COLOURS[kind], alpha=0.25, linewidth=0, rasterized=True)
        for kind, points in kinds.items():
            _lines(ax, points, low, high, kind)
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
        ax.set_title(one.name, loc="left")
    for ax in axes[-1]:
        ax.set_xlabel(across)
    for ax in axes[:, 0]:
        ax.set_ylabel(up)
    handles = [axes.flat[0].plot([], [], color=_COLOURS[k], linestyle=_LINES[k], label=k)[0] for k in _KINDS]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _lines(ax: Any, points: np.ndarray, low: np.ndarray, high: np.ndarray, kind: str) -> None:
    """Lines of equal density around half and 90% of the cells, from a Gaussian kernel."""
    from scipy.stats import gaussian_kde

    if len(points) < 10 or np.linalg.matrix_rank(points - points.mean(axis=0)) < 2:
        return
    kernel = gaussian_kde(points.T, 0.85 * len(points) ** (-1 / 6))  # Scott's width would smear separate groups
    x, y = np.meshgrid(*(np.linspace(low[i], high[i], 80) for i in (0, 1)))
    density = kernel(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
    levels = np.unique(np.percentile(kernel(points.T), [10, 50]))
    ax.contour(x, y, density, levels=levels, colors=_COLOURS[kind], linestyles=_LINES[kind], linewidths=(0.8, 1.3))


def _measures(table: pd.DataFrame) -> Any:
    names = [
        f"{r.condition} in {r.context}" if table["context"].nunique() > 1 else r.condition for r in table.itertuples()
    ]
    figure, (left, right) = style.new(7.0, 1.1 + 0.55 * len(table), 1, 2, sharey=True)
    style.forest(left, names, {"": [table[c] for c in ("way", "way_low", "way_high")]}, "share of the way from control")
    left.axvline(1, color=style.PALE, linewidth=0.8, zorder=0)
    series = {
        name: [table[f"{column}{end}"] for end in ("", "_low", "_high")]
        for name, column in (
            ("predicted", "mixing"),
            ("back", "mixing_back"),
            ("control", "mixing_control"),
            ("other half", "mixing_ceiling"),
        )
    }
    style.forest(right, names, series, "mixing with measured cells", zero=1.0)
    right.tick_params(labelleft=False)
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=4)
    return figure
