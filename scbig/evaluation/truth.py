"""The real side of an evaluation: test conditions, their cells, their controls, and what training saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scbig.baselines import group_means
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.splits import Split, check
from scbig.errors import InputError, some
from scbig.evaluation.ate import batch_effects

__all__ = ["Exclusions", "Truth", "batch_aware", "dense", "kind_of", "truth"]


class Exclusions:
    """What was left out of an evaluation and why, row by row."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, str, str]] = []

    def add(self, method: str, reason: str, condition: str = "", context: str = "", metric: str = "") -> None:
        """One row; an empty field means all of them."""
        self._rows.append((method, condition, context, metric, reason))

    def table(self) -> pd.DataFrame:
        """Columns method, condition, context, metric, reason."""
        return pd.DataFrame(self._rows, columns=["method", "condition", "context", "metric", "reason"])


@dataclass(frozen=True)
class Truth:
    """Real profiles of the test conditions; n of them, G genes.

    Attributes:
        genes: symbols.
        cells: whether the data holds cells; otherwise it holds effects and every control mean is zero.
        keys: one row per test condition and context: condition, context, stratum, n_real.
        rows: the places of its cells in the data, by test condition.
        controls: the places of the control cells that effects are measured from, by context.
        mean: observed mean log-expression, ``[n, G]``.
        control: mean log-expression of those controls, ``[n, G]``.
        train_controls: the places of the training controls, by context: what a predicted effect is added to
            where it is judged as a population. The same cells as ``controls`` unless the split holds out
            controls.
        reference: mean over training perturbations of their mean log-expression, ``[n, G]``; NaN without any.
        others: profiles of real perturbations that are not tested, by context.
        keep: whether a gene counts for a condition: false for those it perturbs, ``[n, G]``.
        unperturbed: genes that no condition of the data perturbs, ``[G]``: what rankings of conditions may look at.
        train: places of all training cells.
        recorded: of a censored table of effects, which entries were recorded, ``[n, G]``; None otherwise.
        censored: the size below which effects were not recorded; 0 where all were.
        ate: batch-aware average treatment effects from each batch's own controls, ``[n, G]``, NaN for a condition none
            of whose batches has any; None where the data holds effects.
        ate_global: the same from the controls of all batches.
    """

    genes: tuple[str, ...]
    cells: bool
    keys: pd.DataFrame
    rows: tuple[np.ndarray, ...]
    controls: Mapping[str, np.ndarray]
    mean: np.ndarray
    control: np.ndarray
    train_controls: Mapping[str, np.ndarray]
    reference: np.ndarray
    others: Mapping[str, np.ndarray]
    keep: np.ndarray
    unperturbed: np.ndarray
    train: np.ndarray
    recorded: np.ndarray | None = None
    censored: float = 0.0
    ate: np.ndarray | None = None
    ate_global: np.ndarray | None = None

    @property
    def delta(self) -> np.ndarray:
        """Observed effects, ``[n, G]``."""
        return self.mean - self.control


def kind_of(adata: AnnData) -> str:
    """What ``uns["scbig"]["kind"]`` says, or an empty string."""
    return str(adata.uns.get("scbig", {}).get("kind", ""))


def dense(x: Any) -> np.ndarray:
    """A matrix as an array, float64."""
    return np.asarray(x if isinstance(x, np.ndarray) else x.toarray(), dtype=np.float64)


def _groups(obs: pd.DataFrame, part: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """The group number of every row, and part, context and condition of every group."""
    keys = pd.DataFrame(
        {
            "part": part,
            "context": obs["context"].astype(str).to_numpy() if "context" in obs else "all",
            "condition": obs["condition"].astype(str).to_numpy(),
        }
    )
    number = keys.groupby(["part", "context", "condition"], sort=True).ngroup().to_numpy()
    table = keys.assign(number=number).drop_duplicates("number").sort_values("number")
    return number, table.drop(columns="number").reset_index(drop=True)


def truth(data: AnnData, split: Split, excluded: Exclusions, min_cells: int) -> Truth:
    """Gathers the real side.

    Controls are those of the test part where the split holds some out (a split of cells), else those of
    training.

    Args:
        data: canonical cells, or a table of effects (``uns["scbig"]["kind"] == "effects"``).
        split: parts of conditions or cells.
        excluded: receives the test conditions that have too few real cells.
        min_cells: fewest real cells of a test condition.

    Raises:
        InputError: a split that leaks, a condition both trained on and tested, no test condition, or no
            control cells in a context that is tested.
    """
    check(split)
    cells = kind_of(data) != "effects"
    number, table = _groups(data.obs, np.asarray(split.assign(data.obs)))
    perturbed = (table["condition"] != CONTROL).to_numpy()
    part = table["part"].to_numpy()
    _refuse_leak(table[perturbed], split)
    means, count = group_means(data.X, number, len(table))
    names = np.unique(data.obs_names.astype(str), return_inverse=True)[1]
    test = np.flatnonzero(perturbed & (part == "test"))
    if not len(test):
        raise InputError(f"split '{split.name}' has no test condition among the data's")
    if cells:
        test = np.array([i for i in test if _enough(table.loc[i], int(count[i]), min_cells, excluded)], int)
        if not len(test):
            raise InputError(f"no test condition has {min_cells} real cells: nothing can be judged")
    context = table["context"].to_numpy()
    # Held-out controls anywhere mean that the split holds out cells: training controls must not stand in.
    held_out = bool((~perturbed & (part == "test")).any())
    tested_contexts = sorted(set(context[test])) if cells else []
    sides = {k: _controls(table, number, names, k, held_out) for k in tested_contexts}
    base = {k: _controls(table, number, names, k, False) for k in tested_contexts} if held_out else sides
    condition = table["condition"].to_numpy()
    genes = tuple(map(str, data.var_names))
    place = {gene: i for i, gene in enumerate(genes)}
    keep = np.ones((len(test), len(genes)), bool)
    for row, i in enumerate(test):
        keep[row, [place[g] for g in genes_of(condition[i]) if g in place]] = False
    own = _profiles(data, sides)
    none = np.full(len(genes), np.nan)
    trained = {k: means[np.flatnonzero(perturbed & (part == "train") & (context == k))] for k in set(context[test])}
    average = {k: m.mean(axis=0) if len(m) else none for k, m in trained.items()}
    tested = set(zip(condition[test], context[test], strict=True))
    fresh = np.array([(c, k) not in tested for c, k in zip(condition, context, strict=True)])
    keys = table.loc[test, ["condition", "context"]].reset_index(drop=True)
    keys["stratum"] = _strata(keys, split)
    keys["n_real"] = count[test] if cells else 0
    rows = _places(number, names, test) if cells else ()
    recorded, censored = _censoring(data, number, test)
    return Truth(
        genes=genes,
        cells=cells,
        keys=keys,
        rows=rows,
        controls=sides,
        mean=means[test],
        control=np.stack([own[context[i]] if cells else np.zeros(len(genes)) for i in test]),
        train_controls=base,
        reference=np.stack([average[context[i]] for i in test]),
        others={k: means[np.flatnonzero(perturbed & fresh & (context == k))] for k in set(context[test])},
        keep=keep,
        unperturbed=~np.isin(np.array(genes, object), [g for c in condition for g in genes_of(c)]),
        train=np.flatnonzero(part[number] == "train"),
        recorded=recorded,
        censored=censored,
        ate=batch_aware(data, keys, rows, sides, True) if cells else None,
        ate_global=batch_aware(data, keys, rows, sides, False) if cells else None,
    )


def batch_aware(
    data: AnnData,
    keys: pd.DataFrame,
    rows: tuple[np.ndarray, ...],
    controls: Mapping[str, np.ndarray],
    per_batch: bool,
) -> np.ndarray:
    """Batch-aware average treatment effects of groups of cells, ``[n, G]``.

    Args:
        data: canonical cells; ``obs["batch"]`` where there are several.
        keys: one row per group, with its context.
        rows: places of the cells of each group.
        controls: places of the control cells by context.
        per_batch: whether each batch has its own controls.
    """
    out = np.full((len(keys), data.n_vars), np.nan)
    batch = data.obs["batch"].astype("category").cat.codes.to_numpy() if "batch" in data.obs else np.zeros(data.n_obs)
    context = keys["context"].to_numpy()
    for k in sorted(set(context)):
        at = np.flatnonzero(context == k)
        places = np.concatenate([*(rows[i] for i in at), controls[k]])
        group = np.concatenate([np.repeat(np.arange(len(at)), [len(rows[i]) for i in at]), -np.ones(len(controls[k]))])
        out[at] = batch_effects(
            data.X[places], group.astype(np.int64), len(at), batch[places].astype(np.int64), group < 0, per_batch
        )
    return out


def _censoring(data: AnnData, number: np.ndarray, test: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Which entries of the tested effects were recorded, and the size below which none was."""
    if kind_of(data) != "effects" or "recorded" not in data.layers:
        return None, 0.0
    recorded = np.asarray(data.layers["recorded"], bool)
    first = np.array([int(np.flatnonzero(number == i)[0]) for i in test])
    return recorded[first], float(np.abs(dense(data.X))[recorded].min(initial=np.inf)) if recorded.any() else 0.0


def _places(number: np.ndarray, names: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, ...]:
    """The places of every group's rows, by cell name: draws must not depend on the order of a file."""
    order = np.lexsort((names, number))
    edges = np.searchsorted(number[order], [groups, groups + 1])
    return tuple(order[a:b] for a, b in edges.T)


def _controls(table: pd.DataFrame, number: np.ndarray, names: np.ndarray, context: str, held_out: bool) -> np.ndarray:
    wanted = "test" if held_out else "train"
    here = (table["condition"] == CONTROL) & (table["part"] == wanted) & (table["context"] == context)
    rows = np.flatnonzero(np.isin(number, np.flatnonzero(here)))
    if len(rows) < 2:
        raise InputError(f"{len(rows)} {wanted} control cells in context '{context}': effects cannot be measured there")
    return rows[np.argsort(names[rows], kind="stable")]


def _profiles(data: AnnData, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean log-expression of the cells at these places, by context."""
    return {k: group_means(data.X[v], np.zeros(len(v), np.int64), 1)[0][0] for k, v in rows.items()}


def _enough(row: pd.Series, count: int, least: int, excluded: Exclusions) -> bool:
    if count < least:
        reason = f"{count} real test cells, at least {least} are needed"
        excluded.add("", reason, row["condition"], row["context"])
    return count >= least


def _refuse_leak(table: pd.DataFrame, split: Split) -> None:
    """No condition may be on both sides, unless the split holds out cells."""
    if "cell" in split.table:
        return
    sides = table.groupby(["condition", "context"])["part"].agg(set)
    both = [" in ".join(key) for key, parts in sides.items() if {"train", "test"} <= parts]
    if both:
        raise InputError(f"split '{split.name}' leaks: {some(both)} are trained on and tested")


def _strata(keys: pd.DataFrame, split: Split) -> list[str]:
    """The stratum of every test condition; an empty string where the split has none."""
    table = split.table[split.table["part"] == "test"]
    on = [c for c in ("condition", "context") if c in table]
    strata = table.drop_duplicates(on)[[*on, "stratum"]]
    return keys.merge(strata, how="left", on=on)["stratum"].fillna("").astype(str).tolist()
