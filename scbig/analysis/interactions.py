"""Genetic interactions of pairs: scores, calibrated calls, and what is predicted of pairs not measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float

from scbig.analysis.interaction_null import judge, own_noise
from scbig.analysis.interaction_predicted import expected, left_out
from scbig.analysis.interaction_scores import score
from scbig.analysis.permutation import false_discovery
from scbig.analysis.section import Ask, Section
from scbig.data.conditions import CONTROL, genes_of, join
from scbig.errors import InputError, some
from scbig.rng import generator

if TYPE_CHECKING:
    from scbig.analysis.view import View
    from scbig.predict import Predictor

__all__ = ["UNTOLD", "pairs_of", "predicted", "report", "residual_noise", "score", "score_cells", "score_effects"]

UNTOLD = "additive or too weak to tell"
"""The kind of a pair whose departure from the sum was not called."""
_FEWEST = 10  # cells of each group
_ROBUST = ("c1", "c2", "magnitude", "dominance")  # of the robust fit, which has no noise taken off
_DISTANCE = ("fit", "similarity", "joint", "equality")


def pairs_of(conditions: Iterable[str]) -> list[str]:
    """Conditions of two genes that were both measured alone, sorted."""
    names = set(conditions)
    return sorted(c for c in names if len(genes_of(c)) == 2 and all(join([g]) in names for g in genes_of(c)))


def _named(pairs: Sequence[str] | None, known: Iterable[str], where: str) -> list[str]:
    """The pairs asked for, in canonical order of their genes; all that can be scored when None."""
    able = pairs_of(known)
    if pairs is None:
        if not able:
            raise InputError(f"{where} holds no pair of which both genes were measured alone: nothing to score")
        return able
    wanted = [join(genes_of(p)) for p in pairs]
    missing = [p for p in wanted if p not in set(able)]
    if missing:
        raise InputError(
            f"{where} lacks {some(missing)}, or one of the genes alone: name pairs measured with both singles"
        )
    return wanted


def score_cells(
    adata: ad.AnnData,
    pairs: Sequence[str] | None = None,
    *,
    draws: int = 200,
    alpha: float = 0.05,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores pairs from cells, and calls those that depart from the sum of their singles.

    The null is exact additivity of mean effects with the noise of these very cells: whole cells are drawn within each
    of the four groups (A, B, both, control of the same context). Batches are not balanced: where conditions differ in
    batch, that difference counts as departure.

    Args:
        adata: log-expression, with ``obs["condition"]`` and, where there are several, ``obs["context"]``.
        pairs: canonical pairs; None: all with both singles measured.
        draws: bootstrap draws of each group.
        alpha: false discovery rate of the calls.
        seed: of the draws.

    Returns:
        One row per pair and context: numbers of cells; scores corrected for noise, with 95% bootstrap intervals; the
        scores of Norman et al. (``robust_*``, ``fit``, ``similarity``, ``joint``, ``equality``); ``p``, ``q`` over all
        rows, ``departs``; ``kind``, that of ``nearest`` where the pair departs; and ``could_tell``. Pairs with fewer
        than 10 cells in a group have no scores.

    Raises:
        InputError: pairs that cannot be scored, fewer than 20 draws, or no controls.
    """
    if draws < 20:
        raise InputError(f"draws={draws}: 20 at least are needed to see the noise")
    condition = adata.obs["condition"].astype(str).to_numpy()
    context = adata.obs["context"].astype(str).to_numpy() if "context" in adata.obs else np.full(len(condition), "all")
    wanted = set(_named(pairs, condition, "the screen"))
    genes = np.array(adata.var_names, str)
    rows = []
    for where in sorted(set(context)):
        here = context == where
        able = [p for p in pairs_of(condition[here]) if p in wanted]
        if able and not (here & (condition == CONTROL)).any():
            raise InputError(f"no control cells in context {where}: effects cannot be measured there")
        rows += _judged(adata.X, genes, np.where(here, condition, ""), where, able, draws, seed)
    return _called(pd.DataFrame(rows), alpha)


def _judged(x, genes, condition, where, pairs, draws, seed) -> Iterator[dict]:
    @lru_cache(512)
    def group(name: str):
        cells = x[np.flatnonzero(condition == name)]
        cells = cells.toarray() if sp.issparse(cells) else np.asarray(cells)
        if len(cells) < _FEWEST:
            return len(cells), None
        # By name, so that a pair's draws do not depend on what else is scored.
        rng = generator(seed, f"interactions {name}@{where}")
        return len(cells), own_noise(cells.astype(np.float32), draws, rng)

    for pair in pairs:
        names = [join([g]) for g in sorted(genes_of(pair))] + [pair, CONTROL]
        groups = [group(name) for name in names]
        counts = {n: g[0] for n, g in zip(("cells_a", "cells_b", "cells_ab", "cells_control"), groups, strict=True)}
        row = {"condition": pair, "context": where, "a": names[0], "b": names[1], **counts}
        if any(found is None for _, found in groups):
            yield row
            continue
        keep = ~np.isin(genes, genes_of(pair))
        mean, variance, away = ([found[part] for _, found in groups] for part in range(3))
        effects = np.stack([each - mean[3] for each in mean[:3]])[:, keep]
        own = np.stack(away[:3])[:, :, keep]
        yield row | judge(effects, own, away[3][:, keep], np.stack(variance)[:, keep]) | _norman(effects)


def _norman(effects: np.ndarray) -> dict[str, float]:
    told = score(*effects)
    robust = {f"robust_{name}": float(told[name]) for name in _ROBUST}
    return robust | {name: float(told[name]) for name in _DISTANCE}


def _called(table: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """Adds q, the call and the kind."""
    if "p" not in table:
        table["p"] = np.nan
    table["q"] = false_discovery(table["p"].to_numpy(np.float64))
    table["departs"] = table["q"].to_numpy() <= alpha
    if "nearest" in table:
        table["kind"] = np.where(table["departs"], table["nearest"], UNTOLD)
        table["kind"] = table["kind"].where(table["p"].notna(), "not judged")
    else:
        table["kind"] = "not judged"
    return table


def residual_noise(
    effects: Float[np.ndarray, "conditions genes"], rank: int = 20
) -> Float[np.ndarray, "conditions genes"]:
    """Standard errors of a table of effects that says nothing of its noise: what leading components leave over.

    A variance by condition times one by gene. What is particular to a condition counts as noise, so it is too large
    rather than too small, and calls on it are cautious.

    Args:
        effects: one row per condition.
        rank: components taken for signal; a third of the conditions at most.
    """
    x = np.asarray(effects, np.float64)
    rank = max(min(rank, len(x) // 3), 1)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    free = np.maximum(1 - np.square(u[:, :rank]).sum(axis=1), 0.05)
    rest = np.square(x - (u[:, :rank] * s[:rank]) @ v[:rank]) / free[:, None]
    by_row, by_gene = rest.mean(axis=1), rest.mean(axis=0)
    return np.sqrt(np.outer(by_row, by_gene) / max(float(rest.mean()), 1e-30))


def score_effects(
    effects: ad.AnnData,
    pairs: Sequence[str] | None = None,
    noise: Float[np.ndarray, "conditions genes"] | None = None,
    *,
    draws: int = 200,
    alpha: float = 0.05,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores pairs from a table of effects.

    Args:
        effects: one row per condition, ``X`` the difference of mean log-expression to control.
        pairs: canonical pairs; None: all with both singles in the table.
        noise: standard errors of the effects, taken as independent normal over genes and conditions; such as
            :func:`residual_noise`. None: scores without calls.
        draws: of the noise.
        alpha: false discovery rate of the calls.
        seed: of the draws.

    Returns:
        As :func:`score_cells`; without noise no p, no intervals, and the kind ``not judged``.

    Raises:
        InputError: pairs that cannot be scored, a condition in several rows, or noise of another shape.
    """
    names = effects.obs["condition"].astype(str).to_numpy()
    if len(set(names)) < len(names):
        raise InputError("the table has a condition in several rows; score one context at a time")
    wanted = _named(pairs, names, "the table")
    x = effects.X.toarray() if sp.issparse(effects.X) else np.asarray(effects.X)
    x, genes, at = x.astype(np.float64), np.array(effects.var_names, str), {c: i for i, c in enumerate(names)}
    if noise is not None and np.asarray(noise).shape != x.shape:
        raise InputError(f"noise of shape {np.asarray(noise).shape} for effects of shape {x.shape}")
    rows = []
    for pair in wanted:
        first, second = (join([g]) for g in sorted(genes_of(pair)))
        places = [at[first], at[second], at[pair]]
        keep = ~np.isin(genes, genes_of(pair))
        three = x[places][:, keep]
        row = {"condition": pair, "a": first, "b": second}
        if noise is None:
            told = score(*three)
            row |= {n: told[n] for n in ("slope", "explained", "departure", "relative", "nearest")}
            rows.append(row | {f"robust_{n}": told[n] for n in _ROBUST} | {n: told[n] for n in _DISTANCE})
            continue
        error = np.asarray(noise, np.float64)[places][:, keep]
        rng = generator(seed, f"interactions {pair}")
        own = rng.standard_normal((3, draws, keep.sum()), np.float32) * error[:, None].astype(np.float32)
        still = np.zeros((draws, int(keep.sum())), np.float32)
        variance = np.vstack([np.square(error), np.zeros((1, error.shape[1]))])
        rows.append(row | judge(three, own, still, variance) | _norman(three))
    return _called(pd.DataFrame(rows), alpha)


def predicted(source: View | Predictor, pairs: Sequence[str], context: str = "") -> pd.DataFrame:
    """Scores of pairs as the anchor of a run predicts them, with the errors it made on pairs left out.

    Args:
        source: a run as :func:`scbig.analysis.load` or :func:`scbig.predict.load` gives it.
        pairs: canonical pairs, measured or not.
        context: where; may be left out where the run has one.

    Returns:
        One row per pair: what is known of it (``rests_on``), the scores of :func:`score`, and ``relative_raw``: the
        relative departure *as it would be measured*, noise and all, with its 90% interval ``relative_low`` …
        ``relative_high`` from the errors made on training pairs left out and predicted in the same way. NaN with fewer
        than nine of them.

    Raises:
        InputError: a run without an anchor, an unknown context, or a condition that is no pair.
    """
    predictor = getattr(source, "predictor", source)
    anchor = predictor.anchor
    if anchor is None:
        raise InputError("this run has no anchor: predicted interactions need one (--config.anchor.method=auto)")
    known = predictor.vocabulary.contexts
    if context and context not in known:
        raise InputError(f"no context '{context}' in this run; there are: {some(known)}")
    if not context and len(known) > 1:
        raise InputError(f"this run has several contexts; choose one of: {some(known)}")
    wanted = [join(genes_of(p)) for p in pairs]
    odd = [p for p in wanted if len(genes_of(p)) != 2]
    if odd:
        raise InputError(f"{some(odd)}: interactions are scored for pairs of two genes")
    where = context or known[0]
    found = expected(anchor, wanted, where, left_out(anchor))
    genes = np.array(anchor.data.genes)
    rows = []
    for i, pair in enumerate(wanted):
        keep = ~np.isin(genes, genes_of(pair))
        a, b = (anchor.effect(join([g]), where)[keep] for g in sorted(genes_of(pair)))
        told = score(a, b, found.effects[i][keep])
        told |= {"relative_raw": float(found.middle[i]), "relative_low": float(found.low[i])}
        told["relative_high"] = float(found.high[i])
        rows.append({"condition": pair, "context": where, "rests_on": anchor.kind(pair, where), **told})
    return pd.DataFrame(rows)


def report(view: View, ask: Ask) -> Section:
    """Observed interactions of all measured pairs, predicted ones of the test pairs beside them."""
    from scbig.analysis.interaction_report import section

    return section(view, ask)
