"""Which known perturbations a state is most like, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from jaxtyping import Float

from scbig import baselines
from scbig.analysis import style
from scbig.analysis.chosen import Chosen, choose
from scbig.analysis.section import Ask, Figure, NotHere, Section
from scbig.baselines import group_means
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError, some
from scbig.rng import generator

if TYPE_CHECKING:
    from scbig.analysis.view import View

__all__ = ["effect_of_cells", "nearest", "references", "report"]

_MOST = 8  # conditions, where none are named
_SHOWN = 6  # neighbours in a figure
_MEASURES = ("cosine", "correlation")
_CENTRES = ("mean", "control")


def nearest(
    effects: pd.DataFrame,
    known: pd.DataFrame,
    *,
    measure: str = "cosine",
    centre: str = "mean",
    groups: pd.Series | None = None,
    own: bool = False,
    most: int = 10,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """The known perturbations that each effect is most like.

    The interval and ``stays_first`` are a bootstrap over genes, in whole groups where they are given, since genes of a
    module move together. It tells whether a few genes make the neighbour; the noise of the effects themselves is not in it.
    Perturbed genes of either side are left out of a comparison.

    Args:
        effects: what is asked, a row per state, named; a column per gene. Rows named as conditions lose their genes.
        known: effects of known perturbations, a row per condition, in any order of the genes.
        measure: ``cosine`` or ``correlation``, of effects.
        centre: ``mean`` takes effects to the mean of the known ones, without which what all perturbations share (stress,
            guide toxicity) makes all alike; ``control`` leaves them as they are.
        groups: by gene, what is drawn together.
        own: whether a condition may be its own neighbour.
        most: neighbours that are told.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A row per state and neighbour: ``state``, ``rank`` from 1, ``neighbour``, ``similarity`` with ``low`` and ``high``
        (95%), ``stays_first`` (share of draws in which the neighbour is first), ``margin`` to the next with ``margin_low``
        and ``margin_high``.

    Raises:
        InputError: an unknown measure or centre, genes that differ, fewer than two known perturbations, or values that
            are not finite.
    """
    if measure not in _MEASURES or centre not in _CENTRES:
        raise InputError(
            f"there are {some(_MEASURES)} as measure and {some(_CENTRES)} as centre, not {measure}, {centre}"
        )
    if odd := sorted(set(map(str, effects.columns)) ^ set(map(str, known.columns))):
        raise InputError(f"states and known effects are of different genes, such as {some(odd)}")
    if len(known) < 2:
        raise InputError(f"{len(known)} known perturbations: two at least are needed to say which is nearer")
    genes = pd.Index(sorted(map(str, known.columns)))
    asked, table = effects.loc[:, genes], known.loc[:, genes]
    if not (np.isfinite(asked.to_numpy(float)).all() and np.isfinite(table.to_numpy(float)).all()):
        raise InputError("effects hold values that are not finite")
    q, r = asked.to_numpy(np.float64), table.to_numpy(np.float64)
    if centre == "mean":
        q, r = q - r.mean(axis=0), r - r.mean(axis=0)
    place = {gene: i for i, gene in enumerate(genes)}
    counts = np.ones(r.shape)
    for i, name in enumerate(table.index):
        counts[i, [place[g] for g in genes_of(str(name)) if g in place]] = 0.0
    weights = _draws(genes, groups, draws, seed)
    rows = []
    for i, state in enumerate(asked.index):
        mine = np.ones(len(genes))
        mine[[place[g] for g in genes_of(str(state)) if g in place]] = 0.0
        found = _similar(q[i], r, counts * mine, weights, measure == "correlation")
        if not own:
            found[:, np.asarray(table.index.astype(str)) == str(state)] = -np.inf
        rows.append(_ranked(str(state), found, table.index.astype(str), most))
    return pd.concat(rows, ignore_index=True)


def _draws(genes: pd.Index, groups: pd.Series | None, draws: int, seed: int) -> np.ndarray:
    """Weights of genes: 1 for each first, then a row for each draw."""
    rng = generator(seed, "nearest genes")
    if groups is None:
        number = np.arange(len(genes))
    else:
        number = np.unique(groups.reindex(genes).astype(str).to_numpy(), return_inverse=True)[1]
    n = int(number.max()) + 1
    drawn = rng.multinomial(n, np.full(n, 1.0 / n), size=draws)[:, number]
    return np.concatenate([np.ones((1, len(genes))), drawn]).astype(np.float64)


def _similar(q: np.ndarray, r: np.ndarray, counts: np.ndarray, weights: np.ndarray, centred: bool) -> np.ndarray:
    """Weighted cosines or correlations of one effect with every known one, ``[draws, known]``."""
    masked = r * counts
    product = (weights * q) @ masked.T
    of_q, of_r = (weights * q**2) @ counts.T, weights @ (masked * r).T
    if centred:
        total = weights @ counts.T
        mean_q, mean_r = (weights * q) @ counts.T, weights @ masked.T
        with np.errstate(invalid="ignore", divide="ignore"):
            product = product - mean_q * mean_r / total
            of_q, of_r = of_q - mean_q**2 / total, of_r - mean_r**2 / total
    with np.errstate(invalid="ignore", divide="ignore"):
        found = product / np.sqrt(np.maximum(of_q, 0) * np.maximum(of_r, 0))
    return np.nan_to_num(np.clip(found, -1.0, 1.0), nan=0.0)


def _ranked(state: str, found: np.ndarray, names: pd.Index, most: int) -> pd.DataFrame:
    """The neighbours of one state; the first row of ``found`` is without a draw."""
    order = [i for i in np.argsort(-found[0], kind="stable") if np.isfinite(found[0, i])]
    drawn = found[1:] if len(found) > 1 else found
    first = np.bincount(drawn.argmax(axis=1), minlength=len(names)) / len(drawn)
    rows = []
    for rank, i in enumerate(order[:most], 1):
        low, high = np.percentile(drawn[:, i], [2.5, 97.5])
        row: dict[str, Any] = {
            "state": state, "rank": rank, "neighbour": str(names[i]), "similarity": found[0, i], "low": low, "high": high,
            "stays_first": first[i], "margin": np.nan, "margin_low": np.nan, "margin_high": np.nan,
        }  # fmt: skip
        if rank < len(order):
            j = order[rank]
            row["margin"] = found[0, i] - found[0, j]
            row["margin_low"], row["margin_high"] = np.percentile(drawn[:, i] - drawn[:, j], [2.5, 97.5])
        rows.append(row)
    return pd.DataFrame(rows)


def effect_of_cells(cells: ad.AnnData, control: Float[np.ndarray, " genes"], genes: Sequence[str]) -> pd.DataFrame:
    """The mean effect of cells of one's own, such as sorted or diseased ones, in the units and genes of a run.

    Args:
        cells: log-expression in ``X`` on the scale of the run, with ``obs["condition"]`` (one state if absent). Control
            cells among them are what effects are taken to: they carry the batch that the others share.
        control: mean log-expression of the run's controls ``[genes]``; used where the cells have no control of their own.
        genes: of the run; matched by name.

    Raises:
        InputError: genes of the run that the cells lack, named.
    """
    at = {str(name): i for i, name in enumerate(cells.var_names)}
    if missing := [gene for gene in genes if gene not in at]:
        raise InputError(f"the cells lack {len(missing)} genes of the run: {some(missing)}; give all of them")
    x = cells.X[:, [at[gene] for gene in genes]]
    label = cells.obs["condition"].astype(str) if "condition" in cells.obs else pd.Series("cells", cells.obs.index)
    names, number = np.unique(label.to_numpy(str), return_inverse=True)
    means, _ = group_means(x, number, len(names))
    base = means[list(names).index(CONTROL)] if CONTROL in names else np.asarray(control, np.float64)
    kept = [i for i, name in enumerate(names) if name != CONTROL]
    return pd.DataFrame(means[kept] - base, index=[str(names[i]) for i in kept], columns=list(genes))


def references(view: View, context: str) -> pd.DataFrame:
    """Measured effects of the training conditions in a context, a row per condition and a column per gene."""
    genes = tuple(map(str, view.adata.var_names))
    data = baselines.training_data_from_rows(view.adata.X, view.obs, view.part, genes)
    rows = [i for i, where in enumerate(data.contexts) if where == context]
    return pd.DataFrame(data.effects[rows], index=[data.conditions[i] for i in rows], columns=list(genes))


def predicted_effects(view: View, chosen: Sequence[Chosen], n_cells: int, seed: int) -> pd.DataFrame:
    """Mean effects of sampled cells, against the controls that they started from."""
    predictor = view.predictor
    cells = predictor.sample(
        [one.condition for one in chosen], n_cells, context=[one.context for one in chosen], seed=seed
    )
    place = {name: i for i, name in enumerate(predictor.controls.index.astype(str))}
    source = np.array([place[name] for name in cells.obs["source_cell"].astype(str)])
    group = np.repeat(np.arange(len(chosen)), n_cells)
    effect = group_means(cells.X, group, len(chosen))[0] - group_means(predictor.x0[source], group, len(chosen))[0]
    return pd.DataFrame(effect, index=[one.condition for one in chosen], columns=list(map(str, cells.var_names)))


def report(view: View, ask: Ask) -> Section:
    """The nearest training conditions of each predicted one."""
    chosen = choose(view, ask, _MOST)
    groups = pd.Series(view.modules.module, index=list(view.modules.genes))
    if view.modules.n_modules < 8:
        groups = None
    tables, left = [], []
    for context in dict.fromkeys(one.context for one in chosen):
        mine = [one for one in chosen if one.context == context]
        known = references(view, context)
        if len(known) < 2:
            left.append(context)
            continue
        effects = predicted_effects(view, mine, ask.n_cells, ask.seed)
        for centre in _CENTRES:
            found = nearest(effects, known, centre=centre, groups=groups, draws=ask.draws, seed=ask.seed)
            tables.append(found.assign(context=context, centre=centre))
    if not tables:
        raise NotHere(f"fewer than two training conditions in {some(left)}: nothing to be near to")
    table = pd.concat(tables, ignore_index=True)
    table = table[["state", "context", "centre", *[c for c in table if c not in ("state", "context", "centre")]]]
    main = table[table["centre"] == "mean"]
    first = main[main["rank"] == 1]
    sure = first[(first["margin_low"] > 0) & (first["stays_first"] >= 0.95)]
    unit = "modules" if groups is not None else "genes"
    text = (
        f"Each predicted condition beside the training conditions whose measured effect is most like it, by the cosine of "
        f"effects taken to the mean of the training effects. Intervals are a bootstrap over {unit} ({ask.draws} draws); "
        f"the noise of the measured effects is not in them. For {len(sure)} of {len(first)} the first neighbour is clear "
        "(first in 95% of draws, margin above zero). "
        f"Median similarity to the first: {first['similarity'].median():.2f}. The table also has effects taken to control, "
        "where what all perturbations share makes most of them alike: do not read mechanism from those. A prediction is "
        "made of training effects, so a neighbour tells what it leans on before it tells what the perturbation does."
    )
    if left:
        text += f" Left out, with fewer than two training conditions: {some(left)}."
    figure = Figure(
        "neighbours",
        f"The {_SHOWN} nearest training conditions of each predicted one: cosine of effects taken to the mean of the "
        f"training effects, 95% bootstrap interval over {unit}; percentages: share of draws in which it is first.",
        lambda: _draw(main),
    )
    return Section("Nearest known perturbations", text, {"neighbours": table}, [figure])


def _draw(table: pd.DataFrame) -> Any:
    states = list(table.groupby(["state", "context"], sort=False))[:12]
    several = table["context"].nunique() > 1
    columns = min(2, len(states))
    rows = -(-len(states) // columns)
    figure, axes = style.new(3.6 * columns, 0.4 + 1.55 * rows, rows, columns, squeeze=False, sharex=True)
    for ax in axes.flat[len(states) :]:
        ax.set_axis_off()
    for number, ((state, context), part) in enumerate(states):
        ax, part = axes.flat[number], part.head(_SHOWN)
        style.forest(ax, list(part["neighbour"]), {"": (part["similarity"], part["low"], part["high"])}, "")
        ax.set_title(f"{state} in {context}" if several else state, loc="left")
        for y, (_, row) in enumerate(part.iterrows()):
            if row["stays_first"] >= 0.01:
                ax.annotate(f"{row['stays_first']:.0%}", (1.0, y), xycoords=("axes fraction", "data"), ha="right",
                            va="center", fontsize=7, color=style.GREY)  # fmt: skip
        if number + columns >= len(states):
            ax.set_xlabel("cosine of effects")
            ax.tick_params(labelbottom=True)
    for ax in axes.flat[: len(states)]:
        ax.set_xlim(min(-0.3, float(table["low"].min()) - 0.05), 1.3)
    return figure
