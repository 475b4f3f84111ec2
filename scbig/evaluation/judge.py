"""One comparison of any number of methods with the real test conditions."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import scbig
from scbig.data.conditions import genes_of
from scbig.data.splits import Split
from scbig.errors import InputError, some
from scbig.evaluation import metrics as m
from scbig.evaluation.distribution import Space, e_distance, mean_distance
from scbig.evaluation.predictions import Prediction, align, draw, unused
from scbig.evaluation.statistics import summarize
from scbig.evaluation.truth import Exclusions, Truth, truth
from scbig.rng import generator

__all__ = ["Scores", "evaluate"]

WITH_TARGETS = "_with_targets"
"""Suffix of a metric that counts the perturbed genes too."""

_FEWEST_RANKED = 20  # genes


@dataclass(frozen=True)
class Scores:
    """The outcome of ``evaluate``.

    Attributes:
        per_condition: one row per method, condition, context and metric: method, condition, context,
            stratum, metric, value. Metrics come twice, without and (``_with_targets``) with the perturbed
            genes.
        summary: method, stratum, metric, mean, low, high, n: means over conditions with bootstrap 95%
            intervals. Stratum ``all`` holds every condition, ``common`` (where methods differ) those that
            all methods answered.
        excluded: method, condition, context, metric, reason; an empty field means all of them.
        conditions: condition, context, stratum, n_real, n_used (cells compared per method), effect_size
            (Euclidean norm of the observed effect without the perturbed genes), chance_pds.
        provenance: split, normalisation, seeds, versions and numbers.
        genes: symbols of the effects below.
        observed: observed effects, ``[conditions, genes]``, float32.
        predicted: predicted effects by method, NaN where there is none.
    """

    per_condition: pd.DataFrame
    summary: pd.DataFrame
    excluded: pd.DataFrame
    conditions: pd.DataFrame
    provenance: dict[str, Any]
    genes: tuple[str, ...]
    observed: np.ndarray
    predicted: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Methods in the order given."""
        return list(self.predicted)

    def value(self, method: str, metric: str, stratum: str = "all") -> float:
        """A mean of the summary; NaN where there is none."""
        s = self.summary
        hit = s[(s["method"] == method) & (s["metric"] == metric) & (s["stratum"] == stratum)]["mean"]
        return float(hit.iloc[0]) if len(hit) else float("nan")


def evaluate(
    methods: Mapping[str, AnnData],
    data: AnnData,
    split: Split,
    *,
    n_cells: int = 500,
    seed: int = 0,
    space: Space | None = None,
    min_cells: int = 10,
    shifted: Collection[str] = (),
    kinds: Mapping[str, str] | None = None,
    reasons: Mapping[tuple[str, str, str], str] | None = None,
    draws: int = 1000,
) -> Scores:
    """Scores predictions of the test part of a split.

    Every method is compared with the same real cells and the same controls, over the same genes, and with
    the same number of its own cells: the smallest of ``n_cells``, the real cells of the condition, and what
    any method gives for it. Perturbed genes do not count; metrics ending in ``_with_targets`` count them.

    Args:
        methods: predictions by name, cells or effects (``uns["scbig"]["kind"]``); rows tell their
            ``obs["condition"]`` and, where the data has several, ``obs["context"]``.
        data: canonical cells, or a table of effects; then metrics on cells are missing.
        split: which conditions (or cells) are tested.
        n_cells: most cells per condition and method.
        seed: of every draw.
        space: where energy distances are taken; by default 50 principal components of the real training
            cells.
        min_cells: fewest real or predicted cells of a condition.
        shifted: methods that give effects and whose populations are to be judged too: training controls
            moved by the effect. Their mean profile stays the effect itself.
        kinds: ``cells`` or ``effects`` by method, where ``uns`` does not say.
        reasons: why a method has no prediction for a (method, condition, context), for the table of what was
            left out.
        draws: bootstrap samples.

    Raises:
        InputError: a split that leaks, predictions that cannot be judged, or no method.
    """
    if not methods:
        raise InputError("no predictions to judge")
    odd = sorted(set(shifted) - set(methods))
    if odd:
        raise InputError(f"no predictions named {some(odd)} whose cells could be shifted controls")
    excluded = Exclusions()
    real = truth(data, split, excluded, min_cells)
    given = []
    for name, adata in methods.items():
        kind = (kinds or {}).get(name, "")
        given.append(align(name, adata, real, data, excluded, reasons or {}, kind, min_cells))
        unused(name, adata, real, excluded)
    n_used = _n_used(given, real, n_cells)
    drawn = {p.name: _drawn(p.rows, n_used, real, seed) for p in given}
    # An effect is taken as it is: added to training controls it would share the noise of the held-out controls with the
    # observation where both are seen from those, and even "no effect" would then correlate with what is observed.
    means = {p.name: p.means(drawn[p.name], real.control) for p in given}
    rows = [_frame(real, p.name, _profile_metrics(means[p.name], real, seed, excluded, p.name)) for p in given]
    if real.cells:
        if space is None:
            space = Space.fit(data.X[real.train], seed=seed, genes=real.genes)
        distance = _cell_metrics(given, data, real, space.aligned(real.genes), drawn, n_used, shifted, seed)
        rows += [_frame(real, name, values) for name, values in distance.items()]
        _report_undefined_shares(distance, real, excluded)
    per_condition = pd.concat(rows, ignore_index=True)
    conditions = _conditions(real, n_used)
    return Scores(
        per_condition=per_condition,
        summary=summarize(per_condition, _strata(real, given), draws, seed),
        excluded=excluded.table(),
        conditions=conditions,
        provenance=_provenance(data, split, real, space, n_cells, min_cells, seed, draws, shifted),
        genes=real.genes,
        observed=real.delta.astype(np.float32),
        predicted={p.name: (means[p.name] - real.control).astype(np.float32) for p in given},
    )


def _n_used(given: list[Prediction], real: Truth, n_cells: int) -> np.ndarray:
    """Cells compared per method, by test condition; 0 where the data holds effects."""
    if not real.cells:
        return np.zeros(len(real.keys), np.int64)
    n = np.minimum(real.keys["n_real"].to_numpy(), n_cells)
    for p in given:
        if p.cells:
            have = np.array([len(r) for r in p.rows])
            n = np.where(have > 0, np.minimum(n, have), n)
    return n


def _drawn(rows: tuple[np.ndarray, ...], n: np.ndarray, real: Truth, seed: int) -> list[np.ndarray]:
    keys = zip(real.keys["condition"], real.keys["context"], strict=True)
    return [draw(r, int(k), seed, c, x) for r, k, (c, x) in zip(rows, n, keys, strict=False)]


def _profile_metrics(
    mean: np.ndarray, real: Truth, seed: int, excluded: Exclusions, method: str
) -> dict[str, np.ndarray]:
    """Every metric on mean profiles, without and with the perturbed genes."""
    out = {}
    answered = ~np.isnan(mean).any(axis=1)
    filled = np.where(answered[:, None], mean, 0.0)
    for suffix, keep in (("", real.keep), (WITH_TARGETS, np.ones_like(real.keep))):
        x, y = filled - real.control, real.delta
        best = m.top(y, keep)
        reference = np.nan_to_num(real.reference)
        values = {
            "pearson_delta": m.pearson(x, y, keep),
            "pearson_delta_top20": m.pearson(x, y, best),
            "pearson_delta_ref_perturbed": _to_reference(filled - reference, real.mean - reference, keep),
            "direction_acc": m.direction_acc(x, y, keep),
            "direction_acc_top20": m.direction_acc(x, y, best),
            "r2_delta": m.r2(x, y, keep),
            "cosine_delta": m.cosine(x, y, keep),
            "l2": m.l2(x, y, keep),
            "mse": m.mse(x, y, keep),
            "mae": m.mae(x, y, keep),
        }
        unknown = np.isnan(real.reference).any(axis=1)
        values["pearson_delta_ref_perturbed"][unknown] = np.nan
        # Rankings leave out what any condition perturbs: without its own perturbed genes alone, the true condition
        # would be told apart from the others, which keep theirs, by a prediction that says nothing.
        ranked = keep if suffix else np.broadcast_to(real.unperturbed, keep.shape)
        if ranked[0].sum() >= _FEWEST_RANKED:
            values |= _rank_metrics(filled, real, ranked, seed)
        else:
            excluded.add(method, f"only {ranked[0].sum()} genes are not perturbed", "", "", "pds")
        out |= {f"{k}{suffix}": np.where(answered, v, np.nan) for k, v in values.items()}
    for context in sorted(set(real.keys["context"][np.isnan(real.reference).any(axis=1)])):
        reason = "no training perturbation in this context to take as reference"
        excluded.add(method, reason, "", context, "pearson_delta_ref_perturbed")
    flat = np.isnan(out["pearson_delta"]) & answered
    for i in np.flatnonzero(flat):
        c, k = real.keys.loc[i, ["condition", "context"]]
        excluded.add(method, "the observed effect is the same for every gene", c, k, "pearson_delta")
    return out


def _to_reference(x: np.ndarray, y: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Pearson correlation; a prediction that is the reference but for rounding counts as constant."""
    rounding = np.abs(x).max(axis=1) < 1e-5 * np.abs(y).max(axis=1)
    return m.pearson(np.where(rounding[:, None], 0.0, x), y, keep)


def _rank_metrics(mean: np.ndarray, real: Truth, keep: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Discrimination among the test conditions of the same context."""
    names = ("pds_l1", "pds_l2", "pds_cosine", "centroid_acc")
    out = {name: np.full(len(mean), np.nan) for name in names}
    context = real.keys["context"].to_numpy()
    for k in sorted(set(context)):
        at = np.flatnonzero(context == k)
        if len(at) > 1:  # a single condition cannot be mistaken for another
            for kind in ("l1", "l2", "cosine"):
                x = mean[at] - real.control[at]
                out[f"pds_{kind}"][at] = m.pds(x, real.delta[at], keep[at], kind, seed)
        centroids = np.concatenate([real.mean[at], real.others[k]])
        out["centroid_acc"][at] = m.centroid_acc(mean[at], centroids, keep[at])
    return out


def _cell_metrics(
    given: list[Prediction],
    data: AnnData,
    real: Truth,
    space: Space,
    drawn: dict[str, list[np.ndarray]],
    n_used: np.ndarray,
    shifted: Collection[str],
    seed: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Energy distances of every method and of control, by method, metric and condition."""
    base_names = ("e_distance", "e_distance_share", "e_distance_control")
    names = [f"{name}{suffix}" for suffix in ("", WITH_TARGETS) for name in base_names]
    judged = [p for p in given if p.cells or p.name in shifted]
    out = {p.name: {name: np.full(len(real.keys), np.nan) for name in names} for p in judged}
    for i, (condition, context) in enumerate(zip(real.keys["condition"], real.keys["context"], strict=True)):
        n = int(n_used[i])
        target = data.X[draw(real.rows[i], n, seed, condition, context)]
        pool = real.controls[context]
        # A draw of their own: a method that hands in control cells is not compared with a copy of itself.
        picks = generator(seed, f"control for {condition}@{context}").choice(
            len(pool), min(n, len(pool)), replace=False
        )
        base = data.X[np.sort(pool[picks])]
        origin = base
        if real.train_controls[context] is not pool:
            origin = data.X[draw(real.train_controls[context], n, seed, condition, context)]
        left_out = {"": genes_of(condition), WITH_TARGETS: ()}
        for suffix, without in left_out.items():
            if suffix and real.keep[i].all():
                for values in out.values():
                    for name in base_names:
                        values[f"{name}{suffix}"][i] = values[name][i]
                continue
            y, control = space.project(target, without), space.project(base, without)
            within_y = mean_distance(y)
            own = e_distance(control, y, None, within_y)
            moved = control if origin is base else space.project(origin, without)
            within_moved = mean_distance(moved)
            for p in judged:
                value = np.nan
                if p.cells and len(drawn[p.name][i]):
                    value = e_distance(space.project(p.x[drawn[p.name][i]], without), y, None, within_y)
                elif not p.cells and not np.isnan(p.effect[i]).any():
                    move = space.project((space.mean + p.effect[i])[None], without)
                    value = e_distance(moved + move, y, within_moved, within_y)
                out[p.name][f"e_distance{suffix}"][i] = value
                if not np.isnan(value):
                    out[p.name][f"e_distance_control{suffix}"][i] = own
                    out[p.name][f"e_distance_share{suffix}"][i] = value / own if own > 0 else np.nan
    return out


def _report_undefined_shares(distance: dict[str, dict[str, np.ndarray]], real: Truth, excluded: Exclusions) -> None:
    control = [v["e_distance_control"] for v in distance.values()]
    for i in range(len(real.keys)):
        if any(c[i] <= 0 for c in control):
            condition, context = real.keys.loc[i, ["condition", "context"]]
            reason = "control cells are no farther from the real cells than these from each other"
            excluded.add("", reason, condition, context, "e_distance_share")


def _frame(real: Truth, method: str, values: dict[str, np.ndarray]) -> pd.DataFrame:
    keys = real.keys[["condition", "context", "stratum"]]
    parts = [keys.assign(metric=name, value=v) for name, v in values.items()]
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "method", method)
    return table.dropna(subset=["value"]).astype({"value": np.float64})


def _strata(real: Truth, given: list[Prediction]) -> dict[str, pd.Index]:
    """The groups that averages are taken over."""
    index = pd.MultiIndex.from_frame(real.keys[["condition", "context"]])
    groups = {"all": index}
    answered = np.stack([p.answered() for p in given])
    useful = answered[answered.any(axis=1)]
    common = useful.all(axis=0)
    if len(useful) > 1 and common.any() and not common.all():
        groups["common"] = index[common]
    strata = real.keys["stratum"].to_numpy()
    if len(set(strata)) > 1:
        groups |= {s or "(none)": index[strata == s] for s in sorted(set(strata))}
    contexts = real.keys["context"].to_numpy()
    if len(set(contexts)) > 1:
        groups |= {f"context {k}": index[contexts == k] for k in sorted(set(contexts))}
    return groups


def _conditions(real: Truth, n_used: np.ndarray) -> pd.DataFrame:
    per_context = real.keys.groupby("context")["condition"].transform("size")
    return real.keys.assign(
        n_used=n_used,
        effect_size=np.sqrt((np.where(real.keep, real.delta, 0.0) ** 2).sum(axis=1)),
        chance_pds=[m.chance_pds(int(n)) for n in per_context],
    )


def _provenance(data, split, real, space, n_cells, min_cells, seed, draws, shifted) -> dict[str, Any]:
    told = data.uns.get("scbig", {})
    out = {
        "split": split.name,
        "split_rule": split.rule,
        "split_seed": int(split.seed),
        "split_sha256": split.sha256,
        "test_conditions": len(real.keys),
        "genes": len(real.genes),
        "data": "cells" if real.cells else "effects",
        "normalization": str(told.get("normalization", "not stated")),
        "target_sum": str(told.get("target_sum", "not stated")),
        "n_cells": n_cells,
        "min_cells": min_cells,
        "seed": seed,
        "bootstrap_draws": draws,
        "scbig": scbig.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    if real.cells:
        out |= {
            "control_cells": {k: len(v) for k, v in real.controls.items()},
            "training_cells": len(real.train),
            "space_components": len(space.components),
            "space_explained": round(float(space.explained.sum()), 4),
            "shifted_controls": sorted(shifted),
        }
    return out
