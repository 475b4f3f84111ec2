"""One comparison of any number of methods with the real test conditions."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import scbig
from scbig import baselines
from scbig.data.splits import Split
from scbig.errors import InputError, some
from scbig.evaluation import calibration, ceilings
from scbig.evaluation import metrics as m
from scbig.evaluation.distribution import Space
from scbig.evaluation.populations import Yardstick
from scbig.evaluation.predictions import Prediction, align, unused
from scbig.evaluation.profiles import WITH_TARGETS, report_undefined
from scbig.evaluation.scoring import Bench, Values, score
from scbig.evaluation.statistics import TESTS, paired_tests, summarize
from scbig.evaluation.truth import Exclusions, Truth, truth

__all__ = ["EFFECT_SIZES", "SEEDS", "WITH_TARGETS", "Scores", "evaluate"]

EFFECT_SIZES = ("weak effects", "medium effects", "strong effects")
"""Strata by the size of the observed effect, a third of the conditions each."""

_FEWEST_SIZED = 12  # conditions

SEEDS = ("method", "seed", "stratum", "metric", "mean")
"""Columns of ``Scores.seeds``."""


@dataclass(frozen=True)
class Scores:
    """The outcome of ``evaluate``.

    Attributes:
        per_condition: one row per method, condition, context and metric: method, condition, context,
            stratum, metric, value. Metrics come twice, without and (``_with_targets``) with the perturbed
            genes.
        summary: method, stratum, metric, mean, low, high, n: means over conditions with bootstrap 95%
            intervals. Stratum ``all`` holds every condition, ``common`` (where methods differ) those that
            all methods answered; with twelve conditions or more there is a stratum for each third of effect sizes.
            ``seed_sd`` is the standard deviation of the mean over the ``n_seeds`` predictions given for the method; the
            interval is that of their average.
        excluded: method, condition, context, metric, reason; an empty field means all of them.
        conditions: condition, context, stratum, n_real, n_used (cells compared per method), effect_size
            (Euclidean norm of the observed effect without the perturbed genes), chance_pds.
        provenance: split, normalisation, seeds, versions and numbers.
        genes: symbols of the effects below.
        observed: observed effects, ``[conditions, genes]``, float32.
        predicted: predicted effects by method, NaN where there is none; of several seeds, their mean.
        ceiling: what real cells reach when they predict other real cells; see ``ceilings.ceilings``.
        calibrated: scores between the naive answers and that ceiling; see ``calibration.calibrate``.
        tests: paired comparisons of methods; see ``statistics.paired_tests``.
        seeds: method, seed, stratum, metric, mean; of methods given several times.
    """

    per_condition: pd.DataFrame
    summary: pd.DataFrame
    excluded: pd.DataFrame
    conditions: pd.DataFrame
    provenance: dict[str, Any]
    genes: tuple[str, ...]
    observed: np.ndarray
    predicted: dict[str, np.ndarray] = field(default_factory=dict)
    ceiling: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(ceilings.COLUMNS)))
    calibrated: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(calibration.COLUMNS)))
    tests: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(TESTS)))
    seeds: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(SEEDS)))

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
    methods: Mapping[str, AnnData | Sequence[AnnData]],
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
    references: Sequence[str] = calibration.NEGATIVES,
    ceiling_draws: int = 5,
) -> Scores:
    """Scores predictions of the test part of a split.

    Every method is compared with the same real cells and the same controls, over the same genes, and with
    the same number of its own cells: the smallest of ``n_cells``, the real cells of the condition, and what
    any method gives for it. Its mean profile is that of all its cells. Perturbed genes do not count; metrics ending
    in ``_with_targets`` count them.

    Args:
        methods: predictions by name, cells or effects (``uns["scbig"]["kind"]``); rows tell their
            ``obs["condition"]`` and, where the data has several, ``obs["context"]``. A list holds the predictions of
            several seeds: their scores are averaged.
        data: canonical cells, or a table of effects; then metrics on cells are missing. ``var["module"]`` and
            ``obs["batch"]`` are used where they are.
        split: which conditions (or cells) are tested.
        n_cells: most cells per condition and method.
        seed: of every draw.
        space: where distances between populations are taken; by default 50 principal components of the real
            training cells.
        min_cells: fewest real or predicted cells of a condition.
        shifted: methods that give effects and whose populations are to be judged too: training controls
            moved by the effect. Their mean profile stays the effect itself.
        kinds: ``cells`` or ``effects`` by method, where ``uns`` does not say.
        reasons: why a method has no prediction for a (method, condition, context), for the table of what was
            left out.
        draws: bootstrap samples.
        references: naive answers to put beside the methods (baselines that need no options), where no method of that
            name is given.
        ceiling_draws: random splits of the real cells for the ceiling; 0 leaves it out.

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
    report_undefined(real, excluded)
    naive, missing = _naive([r for r in references if r not in methods], data, split, real)
    reasons = dict(reasons or {}) | missing
    given, of = [], {}
    for name, copies in (dict(methods) | naive).items():
        several = [copies] if isinstance(copies, AnnData) else list(copies)
        for i, adata in enumerate(several):
            own = name if len(several) == 1 else f"{name} (seed {i})"
            kind = (kinds or {}).get(name, "")
            told = {(own, c, k): why for (method, c, k), why in reasons.items() if method == name}
            given.append(align(own, adata, real, data, excluded, told, kind, min_cells))
            unused(own, adata, real, excluded)
            of[own] = name
    for (name, condition, context), why in reasons.items():
        if name not in of.values():
            excluded.add(name, why, condition, context)
    n_used = _n_used(given, real, n_cells)
    bench = Bench(data, real, _yardstick(data, real, space, seed) if real.cells else None, n_used, seed)
    moved = {own for own, name in of.items() if name in shifted or name in naive}
    values, means = score(bench, given, moved)
    if real.cells:
        _report_undefined_shares(values, real, excluded)
    groups = _strata(real, given)
    averaged = _average(values, of)
    per_condition = pd.concat([_frame(real, name, v) for name, v in averaged.items()], ignore_index=True)
    top, matched = pd.DataFrame(columns=list(ceilings.COLUMNS)), {}
    if real.cells and ceiling_draws:
        top, matched = ceilings.ceilings(bench, given, moved, min_cells, ceiling_draws, excluded)
    halved = [_frame(real, name, v) for name, v in _average(matched, of).items() if v] if matched else []
    known = [name for name in averaged if _is_baseline(name)]
    models = [name for name in averaged if name not in known] or [_best(per_condition)]
    seeds = _seeds(real, values, of, groups)
    effects = {own: mean - real.control for own, mean in means.items()}
    return Scores(
        per_condition=per_condition,
        summary=_with_seeds(summarize(per_condition, groups, draws, seed), seeds, of),
        excluded=excluded.table(),
        conditions=_conditions(real, n_used),
        provenance=_provenance(data, split, bench, n_cells, min_cells, draws, sorted(moved), ceiling_draws),
        genes=real.genes,
        observed=real.delta.astype(np.float32),
        predicted={
            k: v["effect"].astype(np.float32)
            for k, v in _average({o: {"effect": e} for o, e in effects.items()}, of).items()
        },
        ceiling=top,
        calibrated=calibration.calibrate(
            _replaced(per_condition, halved), top, groups, [b for b in known if b != "shuffled"], draws, seed
        ),
        tests=paired_tests(per_condition, groups, models, draws=draws, seed=seed),
        seeds=seeds,
    )


def _replaced(per_condition: pd.DataFrame, halved: list[pd.DataFrame]) -> pd.DataFrame:
    """Scores with those on half of the cells in place of the others, where there are any."""
    if not halved:
        return per_condition
    new = pd.concat(halved, ignore_index=True)
    return pd.concat([per_condition[~per_condition["metric"].isin(new["metric"].unique())], new], ignore_index=True)


def _is_baseline(name: str) -> bool:
    """Whether a method goes by the name of a baseline, such as ``knn`` or, on one source, ``knn-string``."""
    return name.split("-")[0] in baselines.REGISTRY


def _best(per_condition: pd.DataFrame) -> str:
    """The method of highest mean correlation."""
    rows = per_condition[per_condition["metric"] == "pearson_delta"]
    return str(rows.groupby("method", sort=False)["value"].mean().idxmax())


def _naive(
    names: Sequence[str], data: AnnData, split: Split, real: Truth
) -> tuple[dict[str, AnnData], dict[tuple[str, str, str], str]]:
    """The naive answers as effects, and why some are missing."""
    if np.isnan(real.reference).all():
        names = [name for name in names if name == "control"]
    if not names:
        return {}, {}
    if np.isnan(real.reference).all():
        effects = pd.DataFrame(real.keys[["condition", "context"]])
        effects.index = effects.index.astype(str)
        zero = np.zeros((len(effects), len(real.genes)), np.float32)
        table = AnnData(zero, obs=effects, var=pd.DataFrame(index=list(real.genes)))
        table.uns["scbig"] = {"kind": "effects"}
        return {"control": table}, {}
    make = baselines.training_data if real.cells else baselines.training_data_from_effects
    keys = list(real.keys["condition"]), list(real.keys["context"])
    effects, skipped, _ = baselines.predictions(names, make(data, split), *keys)
    reasons = {(name, s.condition, s.context): s.reason for name, each in skipped.items() for s in each}
    return {name: table for name, table in effects.items() if table.n_obs}, reasons


def _yardstick(data: AnnData, real: Truth, space: Space | None, seed: int) -> Yardstick:
    modules = None
    if "module" in data.var:
        modules = data.var["module"].astype("category").cat.codes.to_numpy().astype(np.int64)
    space = space.aligned(real.genes) if space else None
    return Yardstick.fit(data.X[real.train], real.genes, space=space, modules=modules, seed=seed)


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


def _average(values: Mapping[str, Values], of: Mapping[str, str]) -> dict[str, Values]:
    """Means over the seeds of each method; a condition that one seed lacks is taken from the others."""
    out: dict[str, Values] = {}
    for name in dict.fromkeys(of.values()):
        copies = [values[own] for own in of if of[own] == name]
        if len(copies) == 1:
            out[name] = copies[0]
            continue
        out[name] = {}
        for metric in dict.fromkeys(key for copy in copies for key in copy):
            every = np.stack([copy[metric] for copy in copies if metric in copy])
            count = (~np.isnan(every)).sum(axis=0)
            out[name][metric] = np.where(count > 0, np.nansum(every, axis=0) / np.maximum(count, 1), np.nan)
    return out


def _seeds(
    real: Truth, values: Mapping[str, Values], of: Mapping[str, str], groups: Mapping[str, pd.Index]
) -> pd.DataFrame:
    """Means of every seed of the methods that have several."""
    names = list(of.values())
    several = {own: name for own, name in of.items() if names.count(name) > 1}
    if not several:
        return pd.DataFrame(columns=list(SEEDS))
    table = pd.concat([_frame(real, own, values[own]) for own in several], ignore_index=True)
    means = summarize(table, groups, 1)
    number = {own: [o for o in several if several[o] == name].index(own) for own, name in several.items()}
    means["seed"] = means["method"].map(number)
    means["method"] = means["method"].map(several)
    return means[list(SEEDS)]


def _with_seeds(summary: pd.DataFrame, seeds: pd.DataFrame, of: Mapping[str, str]) -> pd.DataFrame:
    names = list(of.values())
    summary = summary.assign(n_seeds=summary["method"].map({name: names.count(name) for name in names}))
    if not len(seeds):
        return summary.assign(seed_sd=np.nan)
    spread = seeds.groupby(["method", "stratum", "metric"])["mean"].std(ddof=1).rename("seed_sd").reset_index()
    return summary.merge(spread, how="left", on=["method", "stratum", "metric"])


def _report_undefined_shares(values: Mapping[str, Values], real: Truth, excluded: Exclusions) -> None:
    control = [v["e_distance_control"] for v in values.values() if "e_distance_control" in v]
    for i in range(len(real.keys)):
        if any(c[i] <= 0 for c in control):
            condition, context = real.keys.loc[i, ["condition", "context"]]
            reason = "control cells are no farther from the real cells than these from each other"
            excluded.add("", reason, condition, context, "e_distance_share")


def _frame(real: Truth, method: str, values: Values) -> pd.DataFrame:
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
    if len(index) >= _FEWEST_SIZED:
        # A mean over all conditions is mostly about weak ones.
        third = np.argsort(np.argsort(_effect_size(real), kind="stable"), kind="stable") * 3 // len(index)
        groups |= {name: index[third == i] for i, name in enumerate(EFFECT_SIZES)}
    return groups


def _effect_size(real: Truth) -> np.ndarray:
    """Euclidean norms of the observed effects without the perturbed genes."""
    return np.sqrt((np.where(real.keep, real.delta, 0.0) ** 2).sum(axis=1))


def _conditions(real: Truth, n_used: np.ndarray) -> pd.DataFrame:
    per_context = real.keys.groupby("context")["condition"].transform("size")
    return real.keys.assign(
        n_used=n_used,
        effect_size=_effect_size(real),
        chance_pds=[m.chance_pds(int(n)) for n in per_context],
    )


def _provenance(
    data: AnnData, split: Split, bench: Bench, n_cells: int, min_cells: int, draws: int, moved: list[str], halves: int
) -> dict[str, Any]:
    real, yardstick = bench.real, bench.yardstick
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
        "seed": bench.seed,
        "bootstrap_draws": draws,
        "scbig": scbig.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    if real.cells:
        out |= {
            "control_cells": {k: len(v) for k, v in real.controls.items()},
            "training_cells": len(real.train),
            "space_components": len(yardstick.space.components),
            "space_explained": round(float(yardstick.space.explained.sum()), 4),
            "kernel_bandwidths": [round(float(b), 4) for b in yardstick.bandwidths],
            "sinkhorn_epsilon": round(float(yardstick.epsilon), 4),
            "batches": int(data.obs["batch"].nunique()) if "batch" in data.obs else 1,
            "shifted_controls": moved,
            "ceiling_draws": halves,
        }
    if real.recorded is not None:
        out |= {"censored_below": real.censored, "recorded_share": round(float(real.recorded.mean()), 4)}
    return out
