"""All metrics of any number of predictions, on the same cells."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from anndata import AnnData

from scbig.baselines import group_means
from scbig.data.conditions import genes_of
from scbig.evaluation import expression as de
from scbig.evaluation.populations import Population, Reference, Yardstick
from scbig.evaluation.predictions import Prediction, draw
from scbig.evaluation.profiles import WITH_TARGETS, profile_metrics
from scbig.evaluation.truth import Truth, dense
from scbig.rng import generator

__all__ = ["Bench", "Values", "score"]

Values = dict[str, np.ndarray]
"""One number per test condition, by metric; NaN where there is none."""


@dataclass(frozen=True)
class Bench:
    """What predictions are scored on.

    Attributes:
        data: the screen.
        real: its test conditions.
        yardstick: what distances between populations are measured with; None where the data holds effects.
        n_used: cells compared per method, by test condition.
        seed: of every draw.
    """

    data: AnnData
    real: Truth
    yardstick: Yardstick | None
    n_used: np.ndarray
    seed: int

    def drawn(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As many of these rows as are compared, by test condition."""
        keys = zip(self.real.keys["condition"], self.real.keys["context"], strict=True)
        return [draw(r, int(k), self.seed, c, x) for r, k, (c, x) in zip(rows, self.n_used, keys, strict=True)]


def score(
    bench: Bench,
    given: Sequence[Prediction],
    shifted: Collection[str] = (),
    responses: bool = True,
    targets: bool = True,
) -> tuple[dict[str, Values], dict[str, np.ndarray]]:
    """Scores predictions.

    Args:
        bench: what they are scored on.
        given: the predictions, each under a name of its own.
        shifted: those that give effects and whose populations are scored too, as training controls moved by the
            effect.
        responses: whether to test for differential expression.
        targets: whether to score populations with the perturbed genes as well.

    Returns:
        Values by name, and predicted mean profiles (``[n, G]``) by name.
    """
    real = bench.real
    rows = {p.name: bench.drawn(p.rows) if p.cells else [] for p in given}
    # An effect is taken as it is: added to training controls it would share the noise of the held-out controls with the
    # observation where both are seen from those, and even "no effect" would then correlate with what is observed.
    # And a mean profile is that of all cells a method gives, however many are compared as a population: cells are draws
    # from a prediction, and their sampling noise would count against it beside effects, which have none.
    means = {p.name: p.means(list(p.rows), real.control) for p in given}
    out = {p.name: profile_metrics(means[p.name], real, bench.seed) for p in given}
    if not real.cells:
        return out, means
    if responses:
        for name, values in _responses(bench, given, rows, means, shifted).items():
            out[name] |= values
    judged = [p for p in given if p.cells or p.name in shifted]
    for name, values in _populations(bench, judged, rows, targets).items():
        out[name] |= values
    return out, means


def _responses(
    bench: Bench,
    given: Sequence[Prediction],
    rows: dict[str, list[np.ndarray]],
    means: dict[str, np.ndarray],
    shifted: Collection[str],
) -> dict[str, Values]:
    """Metrics on genes that respond. Tests need cells: of effects only fold changes are compared."""
    real = bench.real
    real_rows = bench.drawn(real.rows)
    fdr, classes, weights = _tested(bench, bench.data.X, real_rows, bench.data.obs)
    observed = de.Tested(fdr, de.log_fold_change(_means(bench.data.X, real_rows), real.control))
    out: dict[str, Values] = {}
    for p in given:
        lfc = de.log_fold_change(means[p.name], real.control)
        own_fdr = own_classes = None
        if p.cells:
            own_fdr, own_classes, _ = _tested(bench, p.x, rows[p.name])
        elif p.name in shifted:
            own_fdr, own_classes = _tested_once(bench, p.effect)
        predicted = de.Tested(own_fdr, lfc)
        answered = ~np.isnan(means[p.name]).any(axis=1)
        out[p.name] = {}
        for suffix, keep in (("", real.keep), (WITH_TARGETS, np.ones_like(real.keep))):
            values = de.de_metrics(predicted, observed, keep)
            values["wmse"] = de.wmse(np.nan_to_num(means[p.name]), real.mean, weights, keep)
            count = ((fdr < de.FDR) & keep).sum(axis=1).astype(np.float64)
            for metric in ("de_overlap_n", "de_precision"):
                if metric in values:
                    # Where nothing responds there is nothing to find, and a perfect copy must not score 0.
                    values[metric] = np.where(count > 0, values[metric], np.nan)
            values["n_de_observed"] = count
            if own_classes is not None:
                values["deg_macro_f1"] = de.macro_f1(own_classes, classes, keep)
            out[p.name] |= {f"{k}{suffix}": np.where(answered, v, np.nan) for k, v in values.items()}
    return out


def _means(x, rows: Sequence[np.ndarray]) -> np.ndarray:
    return group_means(x, _group(x.shape[0], rows), len(rows))[0]


def _group(n: int, rows: Sequence[np.ndarray]) -> np.ndarray:
    group = np.full(n, -1, np.int64)
    for i, r in enumerate(rows):
        group[r] = i
    return group


def _tested(bench: Bench, x, rows: Sequence[np.ndarray], obs=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False discovery rates, up/unchanged/down, and weights of genes, ``[n, G]``; by context, against its controls."""
    real = bench.real
    n, width = len(rows), len(real.genes)
    fdr, classes, weights = np.full((n, width), np.nan), np.zeros((n, width), np.int8), np.zeros((n, width))
    context = real.keys["context"].to_numpy()
    for k in sorted(set(context)):
        at = np.flatnonzero((context == k) & [len(r) > 0 for r in rows])
        if not len(at):
            continue
        places = np.concatenate([rows[i] for i in at])
        group = np.repeat(np.arange(len(at)), [len(rows[i]) for i in at])
        cells, pool = x[places], real.controls[k]
        control = bench.data.X[pool]
        batches: dict[str, np.ndarray] = {}
        if obs is not None and "batch" in obs:
            codes = obs["batch"].astype("category").cat.codes.to_numpy().astype(np.int64)
            batches = {"batch": codes[places], "control_batch": codes[pool]}
        fdr[at] = de.benjamini_hochberg(de.rank_sum(cells, group, len(at), control).p)
        classes[at] = de.deg_classes(cells, group, len(at), control, **batches)
        if obs is not None:
            weights[at] = de.de_weights(cells, group, len(at), control)
    return fdr, classes, weights


def _tested_once(bench: Bench, effect: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Tests of the naive answers, which say the same of every condition: controls moved by it, once for each context.

    With the median number of cells compared there. A method that tells conditions apart has to give cells.
    """
    real = bench.real
    fdr, classes = np.full(effect.shape, np.nan), np.zeros(effect.shape, np.int8)
    context = real.keys["context"].to_numpy()
    for k in sorted(set(context)):
        at = np.flatnonzero((context == k) & ~np.isnan(effect).any(axis=1))
        if not len(at):
            continue
        if (effect[at] != effect[at[0]]).any():
            return None, None
        pool = real.train_controls[k]
        n = min(int(np.median(bench.n_used[at])), len(pool))
        picks = generator(bench.seed, f"controls moved in {k}").choice(len(pool), n, replace=False)
        cells = dense(bench.data.X[np.sort(pool[picks])]) + effect[at[0]]
        group, control = np.zeros(n, np.int64), bench.data.X[real.controls[k]]
        fdr[at] = de.benjamini_hochberg(de.rank_sum(cells, group, 1, control).p)
        classes[at] = de.deg_classes(cells, group, 1, control)
    return fdr, classes


def _populations(
    bench: Bench, judged: Sequence[Prediction], rows: dict[str, list[np.ndarray]], targets: bool
) -> dict[str, Values]:
    """Distances between populations, condition by condition."""
    n = len(bench.real.keys)
    out: dict[str, Values] = {p.name: {} for p in judged}

    def put(name: str, metric: str, i: int, value: float) -> None:
        out[name].setdefault(metric, np.full(n, np.nan))[i] = value

    for i in range(n):
        genes = genes_of(bench.real.keys["condition"].iloc[i])
        both = {"": genes, WITH_TARGETS: ()} if targets else {"": genes}
        for name, by_suffix in _one(bench, judged, rows, i, both).items():
            for suffix, values in by_suffix.items():
                for metric, value in values.items():
                    put(name, f"{metric}{suffix}", i, value)
    return out


def _one(
    bench: Bench,
    judged: Sequence[Prediction],
    rows: dict[str, list[np.ndarray]],
    i: int,
    left_out: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, dict[str, float]]]:
    """The distances of one condition, by name, suffix and metric."""
    data, real, yardstick, n = bench.data, bench.real, bench.yardstick, int(bench.n_used[i])
    condition, context = real.keys.loc[i, ["condition", "context"]]
    target = Reference(data.X[draw(real.rows[i], n, bench.seed, condition, context)], yardstick)
    pool = real.controls[context]
    # A draw of their own: a method that hands in control cells is not compared with a copy of itself.
    rng = generator(bench.seed, f"control for {condition}@{context}")
    picks = np.sort(pool[rng.choice(len(pool), min(n, len(pool)), replace=False)])
    control = Population(data.X[picks], yardstick)
    origin = control
    if real.train_controls[context] is not pool:
        # Held-out controls are what effects are seen from; what is moved comes from training.
        moved = draw(real.train_controls[context], n, bench.seed, condition, context)
        origin = Population(data.X[moved], yardstick)
    given = {p.name: _population(p, rows[p.name], i, origin, yardstick) for p in judged}
    out: dict[str, dict[str, dict[str, float]]] = {name: {} for name, each in given.items() if each is not None}
    for suffix, genes in left_out.items():
        if suffix and real.keep[i].all():
            # Nothing that is perturbed was measured: the two are the same.
            for by_suffix in out.values():
                by_suffix[suffix] = by_suffix[""]
            continue
        truth, bases = target.without(genes), {id(origin): origin.without(genes)}
        own = truth.score(control.without(genes))["e_distance"]
        for name, (base, shift) in ((name, each) for name, each in given.items() if each is not None):
            # What does not move with the cells is computed once for all methods that move the same.
            population = bases.setdefault(id(base), base.without(genes))
            values = truth.score(population if shift is None else population.shifted(shift))
            share = values["e_distance"] / own if own > 0 else np.nan
            out[name][suffix] = values | {"e_distance_control": own, "e_distance_share": share}
    return out


def _population(
    p: Prediction, rows: Sequence[np.ndarray], i: int, origin: Population, yardstick: Yardstick
) -> tuple[Population, np.ndarray | None] | None:
    """The cells of a prediction and by how much they are to be moved; None where there are none."""
    if p.cells:
        if not len(rows[i]):
            return None
        return Population(p.x[rows[i]], yardstick), None
    return None if np.isnan(p.effect[i]).any() else (origin, p.effect[i])
