"""Genes that respond: tests of predicted and of real cells against controls, and how well the two agree.

Names and definitions follow cell-eval 0.8.2, whose numbers these are to 1e-5 where every gene counts; what differs on
purpose is said where it does. ``keep`` says which genes count in each row. Tests themselves, and their correction for
multiple testing, are over all genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from scbig.baselines import group_means
from scbig.evaluation.rank_sum import RankSum, benjamini_hochberg, rank_sum
from scbig.evaluation.t_test import FDR, de_weights, deg_classes, macro_f1, wmse

__all__ = [
    "FDR",
    "RankSum",
    "Tested",
    "benjamini_hochberg",
    "de_metrics",
    "de_weights",
    "deg_classes",
    "des",
    "log_fold_change",
    "macro_f1",
    "rank_sum",
    "tested",
    "wmse",
]

Rows = Float[np.ndarray, "conditions genes"]
Keep = Bool[np.ndarray, "conditions genes"]
Values = Float[np.ndarray, " conditions"]

_FEWEST = 5  # genes that a rank correlation needs


@dataclass(frozen=True)
class Tested:
    """Outcome of differential expression tests of every condition against control.

    Attributes:
        fdr: false discovery rates of rank-sum tests; None where a method gives effects, which cannot be tested.
        lfc: log2 fold changes.
    """

    fdr: Float[np.ndarray, "conditions genes"] | None
    lfc: Float[np.ndarray, "conditions genes"]


def log_fold_change(
    mean: Float[np.ndarray, "rows genes"], control: Float[np.ndarray, "#rows genes"]
) -> Float[np.ndarray, "rows genes"]:
    """Log2 fold changes of pseudobulk profiles, ``log2(expm1(mean) / expm1(control))``.

    ``expm1`` of mean log-expression is the geometric mean of ``1 + counts``, less one: what pdex takes, without
    pseudocount, as cell-eval 0.8.2 pins it. Where both are zero the change is 0; where one is, it is infinite, which
    is in order for ranks. A fold change that does not exist because one mean is negative is 0, as there.

    Args:
        mean: mean log1p-expression, one row per condition.
        control: that of control: a row for each condition, or one for all.

    Returns:
        Fold changes, float64, the shape of ``mean``; NaN only where an input is.
    """
    mean, control = mean.astype(np.float64), control.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log2(np.expm1(mean) / np.expm1(control))
    missing = np.isnan(mean) | np.isnan(control)
    return np.where(np.isnan(change) & ~missing, 0.0, change)


def tested(
    cells: np.ndarray | sp.spmatrix | sp.sparray,
    group: Int[np.ndarray, " cells"],
    n_groups: int,
    control: np.ndarray | sp.spmatrix | sp.sparray,
) -> Tested:
    """Tests every group of cells against the controls: rank-sum p corrected over genes, and fold changes.

    Args:
        cells: log1p-expression, cells by genes.
        group: the group of each cell, 0 to ``n_groups - 1``; a negative number leaves the cell out.
        n_groups: how many groups there are.
        control: log1p-expression of the control cells.

    Raises:
        InputError: no control cells, or values that are not finite.
    """
    fdr = benjamini_hochberg(rank_sum(cells, group, n_groups, control).p)
    base = group_means(control, np.zeros(control.shape[0], np.int64), 1)[0]
    return Tested(fdr, log_fold_change(group_means(cells, group, n_groups)[0], base))


def des(predicted: Rows, observed: Rows, significant: Keep, keep: Keep) -> Values:
    """Spearman correlation of predicted and observed log fold change over the genes that respond.

    cell-eval's ``de_spearman_lfc_sig``, except that fewer than five genes give no number, and that a prediction which
    is the same for all of them scores 0: it says nothing, and must not vanish from an average.

    Args:
        predicted: log fold changes.
        observed: log fold changes.
        significant: whether a gene responds in the real cells.
        keep: genes that count.

    Returns:
        One value per condition; NaN with fewer than five genes, a missing prediction, or equal observed changes.
    """
    row, gene = np.nonzero(significant & keep)
    n = np.bincount(row, minlength=len(keep)).astype(np.float64)
    x, y = _midranks(predicted[row, gene], row, n), _midranks(observed[row, gene], row, n)
    # Ranks of n values have mean (n + 1) / 2 exactly, ties or not.
    x, y = x - (n[row] + 1) / 2, y - (n[row] + 1) / 2
    xy, xx, yy = (_total(row, product, n) for product in (x * y, x * x, y * y))
    out = np.divide(xy, np.sqrt(xx * yy), out=np.zeros(len(n)), where=xx * yy > 0)
    missing = _total(row, np.isnan(predicted[row, gene]), n) > 0
    return np.where((n < _FEWEST) | (yy == 0) | missing, np.nan, np.clip(out, -1.0, 1.0))


def de_metrics(predicted: Tested, observed: Tested, keep: Keep) -> dict[str, Values]:
    """Agreement on the genes that respond (FDR below 0.05), by metric.

    In cell-eval's terms, with R the genes that respond in real cells and P those predicted to, both by decreasing
    size of log fold change, and n(R) and n(P) how many they are:

    - ``des``: see there.
    - ``de_direction_match``: share of R with the observed sign of change; NaN where R is empty.
    - ``de_overlap_n`` (``overlap_at_N``): share of R among the first n(R) of P; 0 where R is empty.
    - ``de_precision`` (``precision_at_N``): share of P among the first n(P) of R; 0 where P is empty.
    - ``de_recall`` (``de_sig_genes_recall``): share of R in P; NaN where R is empty.
    - ``n_de`` (``de_nsig_counts_pred``): n(P).
    - ``roc_auc``, ``pr_auc``: how well predicted FDR ranks R before the other genes; NaN where R is empty or all.

    Here genes that do not count are in neither R nor P; cell-eval keeps the perturbed genes in. Without predicted FDR,
    a method of effects, only the first two are there.

    Args:
        predicted: tests of predicted cells.
        observed: tests of real cells; their FDR is needed.
        keep: genes that count.

    Returns:
        One value per condition; NaN for a condition without predicted or without real cells.
    """
    if observed.fdr is None:
        raise ValueError("observed tests need false discovery rates")
    real = keep & (observed.fdr < FDR)
    n_real = real.sum(axis=1).astype(np.float64)
    right = (np.sign(predicted.lfc) == np.sign(observed.lfc)) & real
    out = {
        "des": des(predicted.lfc, observed.lfc, real, keep),
        "de_direction_match": _share(right.sum(axis=1), n_real, np.nan),
    }
    if predicted.fdr is not None:
        found = keep & (predicted.fdr < FDR)
        n_found, both = found.sum(axis=1).astype(np.float64), real & found
        first_found = _place(predicted.lfc, found) < n_real[:, None]
        first_real = _place(observed.lfc, real) < n_found[:, None]
        out |= {
            "de_overlap_n": _share((both & first_found).sum(axis=1), n_real, 0.0),
            "de_precision": _share((both & first_real).sum(axis=1), n_found, 0.0),
            "de_recall": _share(both.sum(axis=1), n_real, np.nan),
            "n_de": n_found,
        }
        out["roc_auc"], out["pr_auc"] = _areas(predicted.fdr, real, keep)
    known = _known(observed.fdr, keep) & _known(predicted.lfc if predicted.fdr is None else predicted.fdr, keep)
    return {name: np.where(known, value, np.nan) for name, value in out.items()}


def _known(x: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return ~(np.isnan(x) & keep).any(axis=1)


def _share(part: np.ndarray, whole: np.ndarray, fill: float) -> np.ndarray:
    return np.divide(part, whole, out=np.full(whole.shape, fill), where=whole > 0)


def _total(row: np.ndarray, values: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.bincount(row, weights=values, minlength=len(n))


def _place(lfc: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The place of each chosen gene of a row by decreasing absolute change, from 0; ties in the order of genes."""
    row, gene = np.nonzero(chosen)
    order = np.lexsort((-np.abs(lfc[row, gene]), row))
    n = np.bincount(row, minlength=len(chosen))
    out = np.full(chosen.shape, chosen.shape[1])
    out[row[order], gene[order]] = np.arange(len(row)) - (np.cumsum(n) - n)[row]
    return out


def _runs(value: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Number of the run of equal values of a row that each entry belongs to; both in order."""
    return np.cumsum(np.concatenate([[False], (value[1:] != value[:-1]) | (row[1:] != row[:-1])]))


def _midranks(value: np.ndarray, row: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Ranks from 1 within rows, ties at their mean; ``row`` is in order, with ``n`` entries each."""
    if not len(row):
        return np.zeros(0)
    order = np.lexsort((value, row))
    run = _runs(value[order], row)
    length = np.bincount(run)
    middle = np.cumsum(length) - (length - 1) / 2.0
    out = np.empty(len(row))
    out[order] = middle[run] - (np.cumsum(n) - n)[row]
    return out


def _areas(fdr: np.ndarray, real: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the ROC curve and under precision and recall (average precision) of ``-log10(fdr)``.

    As scikit-learn, and with cell-eval's floor of 1e-10 below which rates are equal.
    """
    row, gene = np.nonzero(keep)
    n = keep.sum(axis=1).astype(np.float64)
    floor = np.clip(fdr[row, gene].astype(np.float32), np.float32(1e-10), np.float32(1.0))
    label = real[row, gene]
    n_real = _total(row, label, n)
    n_other = n - n_real
    # Small rates come first: a rank among rates counts what comes before.
    before = _total(row, np.where(label, _midranks(floor, row, n), 0.0), n) - n_real * (n_real + 1) / 2
    able = (n_real > 0) & (n_other > 0)
    roc = np.where(able, 1.0 - _share(before, n_real * n_other, np.nan), np.nan)
    order = np.lexsort((floor, row))
    run, hit = _runs(floor[order], row), label[order]
    last = np.cumsum(np.bincount(run))[run]  # entries up to the end of each one's run, rows before it included
    hits = np.concatenate([[0], np.cumsum(hit)])
    start = (np.cumsum(n) - n).astype(np.int64)[row]
    precision = (hits[last] - hits[start]) / (last - start)
    average = _share(_total(row, np.where(hit, precision, 0.0), n), n_real, np.nan)
    return roc, np.where(able, average, np.nan)
