"""The predicted side of an evaluation: reading, checking and aligning what methods hand in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scbig.baselines import group_means
from scbig.data.conditions import CONTROL, genes_of, join
from scbig.errors import InputError, some
from scbig.evaluation.truth import Exclusions, Truth, dense, kind_of
from scbig.rng import generator

__all__ = ["Prediction", "align", "draw"]

_MOST = 15.0  # log1p of some three million counts per cell: no log-expression is as large
_SAMPLE = 2000  # cells looked at to see how they were transformed
_LEAST = -5.0  # shifted control cells fall somewhat below zero; nothing on this scale falls farther
_CENTRED = 0.3  # of the controls' means is left where genes were centred; a shifted control keeps nearly all of them


@dataclass(frozen=True)
class Prediction:
    """One method's answer, aligned to the test conditions and genes of the truth.

    Attributes:
        name: of the method.
        cells: whether it gives cells; otherwise effects.
        x: cells by genes where it gives cells.
        rows: places of its cells by test condition, sorted by cell name; empty where it gives none.
        effect: its effects by test condition where it gives effects, NaN where it gives none; ``[n, G]``.
        offset: what its mean profiles are to be corrected by, ``[n, G]``, where its effect is seen from other controls
            than the truth's.
    """

    name: str
    cells: bool
    x: Any
    rows: tuple[np.ndarray, ...]
    effect: np.ndarray | None
    offset: np.ndarray | None = None

    def answered(self) -> np.ndarray:
        """Whether each test condition has a prediction."""
        if self.cells:
            return np.array([len(r) > 0 for r in self.rows])
        return ~np.any(np.isnan(self.effect), axis=1)

    def means(self, drawn: list[np.ndarray], control: np.ndarray) -> np.ndarray:
        """Predicted mean profiles from the drawn cells (or effect plus control), ``[n, G]``; NaN without."""
        if not self.cells:
            return self.effect + control
        group = np.full(self.x.shape[0], -1, np.int64)
        for i, rows in enumerate(drawn):
            group[rows] = i
        mean = group_means(self.x, group, len(drawn))[0]
        return mean if self.offset is None else mean + self.offset


def align(
    name: str,
    adata: AnnData,
    real: Truth,
    data: AnnData,
    excluded: Exclusions,
    reasons: Mapping[tuple[str, str, str], str],
    kind: str = "",
    min_cells: int = 10,
) -> Prediction:
    """Checks one method's predictions and lines them up with the test conditions.

    Args:
        name: of the method.
        adata: its predictions.
        real: the real side.
        data: the real data, for how it was normalised.
        excluded: receives what is left out.
        reasons: why a method has no prediction for a condition in a context, where that is known.
        kind: ``cells`` or ``effects``; what ``uns["scbig"]["kind"]`` says when empty.
        min_cells: fewest predicted cells of a condition.

    Raises:
        InputError: unknown kind, missing or repeated genes, no or doubled conditions, another normalisation,
            or nothing that can be judged.
    """
    kind = kind or kind_of(adata)
    if kind not in ("cells", "effects"):
        raise InputError(f"predictions '{name}' do not say whether they are cells or effects: set uns['scbig']['kind']")
    if kind == "cells" and not real.cells:
        raise InputError(f"predictions '{name}' are cells but the data holds effects: give their effects instead")
    columns = _columns(name, adata, real, excluded)
    _refuse_normalization(name, adata, data)
    _refuse_scale(name, adata, kind, data)
    x = adata.X if columns is None else adata.X[:, columns]
    at = _groups(name, adata, real)
    numbers = np.arange(len(real.keys))
    order = np.argsort(np.asarray(adata.obs_names.astype(str)), kind="stable")
    group = at[order]
    by_group = [order[rows] for rows in _split(group, len(numbers))]
    twice = [c for c, r in zip(real.keys["condition"], by_group, strict=True) if len(r) > 1]
    if kind == "effects" and twice:
        raise InputError(f"predictions '{name}' hold more than one effect of {some(twice)}: give one row of each")
    finite = _finite(x, at, len(numbers))
    rows = []
    for i, (condition, context) in enumerate(zip(real.keys["condition"], real.keys["context"], strict=True)):
        reason = _why_not(by_group[i], bool(finite[i]), kind, min_cells)
        if reason:
            reason = reasons.get((name, condition, context), reason) if not len(by_group[i]) else reason
            excluded.add(name, reason, condition, context)
        rows.append(by_group[i][:0] if reason else by_group[i])
    known = any(method == name for method, _, _ in reasons)
    if not any(len(r) for r in rows) and not known:
        labels = adata.obs["condition"].astype(str).unique()
        raise InputError(
            f"predictions '{name}' answer no test condition; those are "
            f"{some(real.keys['condition'])}; predicted are {some(labels)}"
        )
    if kind == "cells":
        _compare_with_controls(name, x, rows, real, data, excluded)
        return Prediction(name, True, x, tuple(rows), None)
    effect = np.full((len(rows), len(real.genes)), np.nan)
    for i, r in enumerate(rows):
        if len(r):
            effect[i] = dense(x[r])[0]
    return Prediction(name, False, None, (), effect)


def draw(rows: np.ndarray, n: int, seed: int, condition: str, context: str) -> np.ndarray:
    """``n`` of the rows without replacement, or all: the same for every method with as many rows."""
    if n >= len(rows):
        return rows
    return rows[np.sort(generator(seed, f"{condition}@{context}").choice(len(rows), n, replace=False))]


def _why_not(rows: np.ndarray, finite: bool, kind: str, min_cells: int) -> str:
    if not len(rows):
        return "not predicted"
    if not finite:
        return "the prediction contains NaN or infinity"
    if kind == "cells" and len(rows) < min_cells:
        return f"{len(rows)} predicted cell{'s' if len(rows) > 1 else ''}, at least {min_cells} are needed"
    return ""


def _split(group: np.ndarray, n: int) -> list[np.ndarray]:
    order = np.argsort(group, kind="stable")
    edges = np.searchsorted(group[order], np.arange(n + 1))
    return [order[edges[i] : edges[i + 1]] for i in range(n)]


def _finite(x, group: np.ndarray, n: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinities of both signs meet in a sum
        return np.isfinite(group_means(x, group, n)[0]).all(axis=1)


def _columns(name: str, adata: AnnData, real: Truth, excluded: Exclusions) -> np.ndarray | None:
    """Where each gene of the data stands among the predictions; None where they are the same in order."""
    genes = pd.Index(adata.var_names.astype(str))
    twice = genes[genes.duplicated()].unique()
    if len(twice):
        raise InputError(f"predictions '{name}' name genes more than once: {some(twice)}")
    at = genes.get_indexer(pd.Index(real.genes))
    missing = [g for g, i in zip(real.genes, at, strict=True) if i < 0]
    if missing:
        raise InputError(
            f"predictions '{name}' lack {len(missing)} of the data's {len(real.genes)} genes: {some(missing)}"
        )
    extra = genes.difference(pd.Index(real.genes), sort=False)
    if len(extra):
        excluded.add(name, f"{len(extra)} genes that the data does not have were left out: {some(extra)}")
    return None if len(extra) == 0 and (at == np.arange(len(at))).all() else at


def _groups(name: str, adata: AnnData, real: Truth) -> np.ndarray:
    """The test condition of every row, −1 for none."""
    if "condition" not in adata.obs:
        raise InputError(f"predictions '{name}' have no obs['condition']")
    contexts = sorted(set(real.keys["context"]))
    if "context" not in adata.obs and len(contexts) > 1:
        raise InputError(f"predictions '{name}' have no obs['context'], but the data several: {some(contexts)}")
    labels = adata.obs["condition"].astype(str)
    spelled = {label: join(genes_of(label)) for label in labels.unique()}
    frame = pd.DataFrame({"condition": labels.map(spelled).to_numpy()})
    # A single context needs no name, and methods that leave it out write "all".
    given = adata.obs["context"].astype(str).to_numpy() if "context" in adata.obs else np.array(["all"])
    single = len(contexts) == 1 and set(given) <= {"all", contexts[0]}
    frame["context"] = contexts[0] if single else given
    number = real.keys[["condition", "context"]].assign(number=np.arange(len(real.keys)))
    return frame.merge(number, how="left", on=["condition", "context"])["number"].fillna(-1).to_numpy(np.int64)


def unused(name: str, adata: AnnData, real: Truth, excluded: Exclusions) -> None:
    """Reports predicted conditions that are not judged."""
    spelled = {join(genes_of(c)) for c in adata.obs["condition"].astype(str).unique()}
    extra = sorted(spelled - set(real.keys["condition"]) - {CONTROL})
    if extra:
        excluded.add(name, f"{len(extra)} predicted conditions are not judged in this split: {some(extra)}")


def _refuse_normalization(name: str, adata: AnnData, data: AnnData) -> None:
    """Where both sides state how they were normalised, the statements must agree."""
    told, real = adata.uns.get("scbig", {}), data.uns.get("scbig", {})
    for field in ("normalization", "target_sum"):
        if field in told and field in real:
            a, b = told[field], real[field]
            same = np.isclose(float(a), float(b), rtol=1e-3) if field == "target_sum" else str(a) == str(b)
            if not same:
                raise InputError(f"predictions '{name}' state {field} {a}, the data {b}: normalise both alike")


def _compare_with_controls(
    name: str, x, rows: list[np.ndarray], real: Truth, data: AnnData, excluded: Exclusions
) -> None:
    """Refuses cells whose genes were centred, and reports those that lie by log1p of the controls' log-expression."""
    given = np.concatenate(rows)[:_SAMPLE]
    control = dense(data.X[np.concatenate(list(real.controls.values()))[:_SAMPLE]])
    if not len(given) or control.min() <= -1.0:
        return
    cells = dense(x[given])
    mean, usual = cells.mean(axis=0), control.mean(axis=0)
    left = float(mean @ usual) / max(float(usual @ usual), 1e-12)
    if cells.min() < 0 and left < _CENTRED:
        raise InputError(
            f"predictions '{name}' hold negative values, and of the controls' mean expression {left:.0%} is left in "
            "them: this is not log-expression; do not centre or scale genes"
        )
    once, twice = (float(np.linalg.norm(mean - c.mean(axis=0))) for c in (control, np.log1p(control)))
    if twice < 0.5 * once:
        excluded.add(name, "its cells look log-transformed twice, beside the controls; they were judged as given")


def _refuse_scale(name: str, adata: AnnData, kind: str, data: AnnData) -> None:
    """Values that cannot be log-expression (or its differences) on the data's scale."""
    x = adata.X if isinstance(adata.X, np.ndarray) else adata.X.data
    if not x.size or np.isnan(x).all():
        return
    high, low = float(np.nanmax(x)), float(np.nanmin(x))
    if kind == "effects":
        limit = _MOST
        if kind_of(data) == "effects":
            # Normalised effects may be larger than any difference of logarithms: the data sets the scale.
            real = data.X if isinstance(data.X, np.ndarray) else data.X.data
            limit = max(limit, 2.0 * float(np.nanmax(np.abs(real), initial=0.0)))
        size = max(high, -low)
        if np.isfinite(size) and size >= limit:
            raise InputError(f"predictions '{name}' hold effects as large as {size:.3g}: not on the data's scale")
        return
    if np.isfinite(high) and high >= _MOST:
        raise InputError(
            f"predictions '{name}' hold values up to {high:.4g}, which is not log-expression: apply the "
            "data's normalisation and log1p"
        )
    if np.isfinite(low) and low < _LEAST:
        raise InputError(
            f"predictions '{name}' hold values down to {low:.4g}, which is not log-expression: do not centre "
            "or scale genes"
        )
    sample = x.ravel()[: 1 << 20] if x.ndim == 1 else x[: max(1, (1 << 20) // x.shape[1])].ravel()
    sample = sample[np.isfinite(sample) & (sample != 0)]
    if len(sample) and high > 1 and (sample == np.round(sample)).all():
        raise InputError(
            f"predictions '{name}' hold integers up to {high:.4g}: these are counts; apply the data's "
            "normalisation and log1p"
        )
