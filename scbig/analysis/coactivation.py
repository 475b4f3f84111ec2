"""Which modules come to vary together, or cease to, when a gene is perturbed (table 5 of the paper).

In each condition the scores of two modules are correlated over cells, among perturbed cells and among controls of the
same context and batches, and the change is tested. A perturbation whose strength varies between cells makes all that it
moves vary together; so do depth and batch, which are taken out, and what was moved by counting alone, which is tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from jaxtyping import Float

from scbig.analysis import permutation
from scbig.analysis.moves import module_scores
from scbig.analysis.permutation import Contrast
from scbig.analysis.section import Ask, Figure, Section
from scbig.data.conditions import genes_of
from scbig.errors import InputError
from scbig.modules import Modules
from scbig.rng import generator

if TYPE_CHECKING:
    from scbig.analysis.view import View

__all__ = ["RATE_AT", "coactivation", "correlations", "report", "scores_without"]

RATE_AT = 0.1
"""Change on Fisher's z scale, in the direction found, that a bootstrap draw must reach to count towards the rate."""

_COLUMNS = [
    "condition", "context", "module_a", "module_b", "r_control", "r_perturbed", "change", "low", "high", "rate", "z",
    "n_cells", "n_control",
]  # fmt: skip


def scores_without(
    adata: ad.AnnData, modules: Modules, genes: Sequence[str] = (), rows: np.ndarray | None = None
) -> Float[np.ndarray, "cells modules"]:
    """Mean log-expression of the genes of each module, the named genes left out.

    A perturbed gene moves because it was perturbed, and with it the module that it stands in; that is no finding.

    Args:
        adata: ``X`` log-expression, genes in the order of ``modules.genes``.
        modules: the partition.
        genes: those left out.
        rows: cells wanted; all where None.

    Returns:
        Scores; NaN for a module that has no other genes.

    Raises:
        InputError: where the genes are not those of the modules.
    """
    if list(adata.var_names) != list(modules.genes):
        raise InputError("the genes of the cells are not those of the modules; use the prepared screen of the same run")
    return module_scores(adata.X if rows is None else adata.X[rows], modules, genes)


def correlations(
    scores: Float[np.ndarray, "cells modules"],
    design: Float[np.ndarray, "cells columns"],
    weight: Float[np.ndarray, " cells"],
) -> Float[np.ndarray, "modules modules"]:
    """Correlations over cells of what a design (batches, depth) does not explain.

    Args:
        scores: of modules.
        design: what is regressed out; indicators of batches take the place of an intercept.
        weight: of cells.

    Returns:
        Correlations; NaN with a module that does not vary.
    """
    root = np.sqrt(weight)[:, None]
    basis, _ = np.linalg.qr(root * design)
    left = root * scores
    size = np.sqrt((left**2).sum(axis=0))
    left = left - basis @ (basis.T @ left)
    gram = left.T @ left
    spread = np.sqrt(np.diag(gram))
    spread = np.where(spread > 1e-6 * size, spread, np.nan)
    return gram / spread[:, None] / spread


def coactivation(
    adata: ad.AnnData,
    modules: Modules,
    conditions: Sequence[str] = (),
    *,
    nuisance: str = "depth+median",
    least: int = permutation.LEAST,
    rate_at: float = RATE_AT,
    draws: int = 200,
    permutations: int = 200,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Change of the correlation between modules, for every pair of them in every condition.

    Args:
        adata: a prepared screen: ``X`` log-expression, ``obs`` with condition, context and batch.
        modules: of its genes, in its order.
        conditions: canonical; all perturbed ones where empty.
        nuisance: what is regressed out of scores beside batches, see :func:`~scbig.analysis.permutation.nuisance_of`.
        least: cells below which a condition is not tested.
        rate_at: see ``rate``.
        draws: of the bootstrap over cells within kind and batch.
        permutations: of labels within context and batch. Cells are first put in units of their kind's mean and spread,
            so that a change of these is not read as one of correlation.
        seed: of both.

    Returns:
        A row per condition, context and pair: ``module_a`` < ``module_b`` (numbers), ``r_control`` and ``r_perturbed``
        (correlations over cells within batch), ``change`` (of arctanh r), ``low`` and ``high`` (95%), ``rate`` (share of
        draws whose change has the sign found and is at least ``rate_at`` in size), ``z`` (in units of the null), ``p``,
        ``q`` (Benjamini–Hochberg over the whole table), ``n_cells`` and ``n_control``. And a table of what was not
        tested: ``condition``, ``context``, ``n_cells``, ``reason``.

    Raises:
        InputError: for a screen without controls, batches or contexts, or genes that are not those of the modules.
    """
    found, left_out = permutation.contrasts(adata.obs, conditions, least, seed=seed)
    columns, _ = permutation.nuisance_of(adata.obs, scores_without(adata, modules), nuisance)
    tables, reasons, null = [], [], permutation.new_tally()
    for contrast in found:
        own = scores_without(adata, modules, genes_of(contrast.condition), contrast.rows)
        table, drawn = _tested(contrast, own, columns, draws, permutations, rate_at, seed)
        null += permutation.tally(drawn)
        dead = table["z"].isna()
        if dead.any():
            parts = f"{int(dead.sum())} pairs with a module that does not vary or has no gene but the perturbed"
            reasons.append((contrast.condition, contrast.context, contrast.n_perturbed, parts))
        tables.append(table[~dead])
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=_COLUMNS)
    p = permutation.p_values(table["z"].to_numpy(float), null)
    place = table.columns.get_loc("z") + 1
    table.insert(place, "p", p)
    table.insert(place + 1, "q", permutation.false_discovery(p))
    if reasons:
        left_out = pd.concat([left_out, pd.DataFrame(reasons, columns=left_out.columns)], ignore_index=True)
    return table, left_out


def _tested(contrast, scores, nuisance, draws, permutations, rate_at, seed) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows of one contrast without p, and the null in its own units, ``[permutations, pairs]``."""
    design = permutation.design_of(contrast, nuisance)
    name = f"{contrast.condition}@{contrast.context}@{contrast.dose:g}"
    a, b = np.triu_indices(scores.shape[1], 1)
    control, perturbed = (r[a, b] for r in _both(contrast, scores, design))
    change = _z(perturbed) - _z(control)
    drawn = permutation.bootstrapped(contrast, draws, generator(seed, f"coactivation bootstrap {name}"))
    boot = np.stack([z[a, b] for z in _changes(contrast, scores, design, drawn)])
    labels = permutation.permuted(contrast, permutations, generator(seed, f"coactivation labels {name}"))
    alike = _alike(contrast, scores, design)
    null = np.stack([z[a, b] for z in _changes(contrast, alike, design, labels)])
    z, null = permutation.standardized(change, null)
    low, high = _ends(boot)
    table = pd.DataFrame(
        {
            "condition": contrast.condition,
            "context": contrast.context,
            "module_a": a,
            "module_b": b,
            "r_control": control,
            "r_perturbed": perturbed,
            "change": change,
            "low": low,
            "high": high,
            "rate": (boot * np.sign(change) >= rate_at).mean(axis=0),
            "z": z,
            "n_cells": contrast.n_perturbed,
            "n_control": contrast.n_control,
        }
    )
    if contrast.dose:
        table.insert(2, "dose", contrast.dose)
    return table, null


def _ends(boot: np.ndarray) -> np.ndarray:
    """95% percentile intervals of the columns; NaN where a draw has none."""
    known = np.isfinite(boot).all(axis=0)
    ends = np.full((2, boot.shape[1]), np.nan)
    if known.any():
        ends[:, known] = np.percentile(boot[:, known], [2.5, 97.5], axis=0)
    return ends


def _z(r: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(r, -0.9999, 0.9999))


def _both(contrast: Contrast, scores: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlations among controls and among perturbed cells."""
    n, weight = contrast.n_control, contrast.weight
    return (
        correlations(scores[:n], design[:n], weight[:n]),
        correlations(scores[n:], design[n:], weight[n:]),
    )


def _changes(
    contrast: Contrast, scores: np.ndarray, design: np.ndarray, drawn: np.ndarray
) -> Iterator[Float[np.ndarray, "modules modules"]]:
    """The change of Fisher's z with other cells in the places of the contrast's, draw by draw."""
    for rows in drawn:
        control, perturbed = _both(contrast, scores[rows], design[rows])
        yield _z(perturbed) - _z(control)


def _alike(contrast: Contrast, scores: np.ndarray, design: np.ndarray) -> np.ndarray:
    """Scores of either kind less what the design explains, in units of their spread: what is left is how they covary."""
    n, out = contrast.n_control, np.empty_like(scores)
    for part in (slice(0, n), slice(n, None)):
        basis, _ = np.linalg.qr(design[part])
        left = scores[part] - basis @ (basis.T @ scores[part])
        spread = left.std(axis=0)
        out[part] = left / np.where(spread > 1e-9, spread, np.nan)
    return out


def report(view: View, ask: Ask) -> Section:
    """Co-activation of modules in the conditions asked for, or in those of the test part."""
    from scbig.analysis.modules import labels

    names = labels(view)
    wanted = ask.conditions or tuple(view.conditions("test"))
    table, left_out = coactivation(
        view.adata, view.modules, wanted, draws=ask.draws, permutations=ask.permutations, seed=ask.seed
    )
    _, handled = permutation.nuisance_of(view.obs, view.scores)
    table["called"] = table["q"] < ask.alpha
    for place, side in enumerate("ab"):
        at = table.columns.get_loc("module_b") + 1 + place
        table.insert(at, f"label_{side}", [names[k] for k in table[f"module_{side}"]])
    table = table.sort_values(["p", "condition", "module_a", "module_b"], ignore_index=True)
    tables = {"coactivation": table, "coactivation_untested": left_out}
    return Section(
        "Co-activation of modules", _told(table, left_out, handled, ask), tables, _figures(table, names, ask)
    )


def _told(table: pd.DataFrame, left_out: pd.DataFrame, handled: str, ask: Ask) -> str:
    """What was found, in sentences."""
    said = []
    if len(table):
        called = table[table["called"]]
        n_conditions = table.groupby(["condition", "context"]).ngroups
        said.append(
            f"In {n_conditions} condition{'s' * (n_conditions != 1)}, {len(table)} pairs of modules were tested for a "
            f"change of their correlation over cells; {len(called)} changed at a false discovery rate of {ask.alpha:g}"
            + (f", {int((called['change'] > 0).sum())} of them towards varying together." if len(called) else ".")
        )
        said += [_example(row) for row in called.head(3).to_dict("records")]
        said.append(
            f"Correlations are within context and batch, less {handled}; perturbed genes are left out of the scores. The "
            f"rate is the share of {ask.draws} bootstrap draws in which the change has the sign found and is at least "
            f"{RATE_AT:g} on Fisher's z scale; p is from {ask.permutations} permutations of labels within batches, pooled "
            "over pairs and conditions."
        )
        said.append(
            "Modules vary together where one drives the other, but also where both answer to a perturbation that works "
            "better in some cells than in others: this is co-activation, not a wire."
        )
    else:
        said.append("No pair of modules could be tested.")
    if len(left_out):
        each = [
            f"{row['condition']}{' in ' + row['context'] if row['context'] else ''} ({row['reason']})"
            for row in left_out.head(6).to_dict("records")
        ]
        more = f" and {len(left_out) - 6} more, see the table" if len(left_out) > 6 else ""
        said.append(f"Not tested: {'; '.join(each)}{more}.")
    return " ".join(said)


def _example(row: dict) -> str:
    return (
        f"In {row['condition']}, {row['label_a']} and {row['label_b']} went from r = {row['r_control']:.2f} to "
        f"{row['r_perturbed']:.2f} (q = {row['q']:.2g}, rate {row['rate']:.0%})."
    )


def _figures(table: pd.DataFrame, names: tuple[str, ...], ask: Ask) -> list[Figure]:
    if table.empty:
        return []
    from scbig.analysis import mechanism_figures as drawn

    return [
        Figure(
            "coactivation_maps",
            "Change of the correlation between modules over cells, perturbed less control, on Fisher's z scale, in the "
            f"conditions with most changes. Outlined with a dot: changed at a false discovery rate of {ask.alpha:g}.",
            lambda: drawn.maps(table, names),
        ),
        Figure(
            "coactivation_pairs",
            "The pairs with the least p: change of their correlation on Fisher's z scale with bootstrap 95% intervals "
            f"over cells. Filled: changed at a false discovery rate of {ask.alpha:g}; hollow: not. Right: the bootstrap "
            "rate.",
            lambda: drawn.forest(table),
        ),
    ]
