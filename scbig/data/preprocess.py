"""From a screen as read to one ready for training: quality control, normalisation, choice of genes, split."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from scbig.data.blocks import Knockdown, dispersions, log_scaled, moments
from scbig.data.conditions import as_text, genes_of
from scbig.data.read import read
from scbig.data.scan import enough_cells, kept_genes
from scbig.data.splits import Split
from scbig.data.wishes import Wishes, reading, split_of
from scbig.errors import InputError, some

__all__ = ["dispersion_score", "filter_knockdown", "normalize", "prepare", "qc", "select_genes"]

_ROWS = 8192  # rows expanded to float64 at a time


def qc(
    adata: ad.AnnData,
    min_genes: int = 0,
    min_cells_per_gene: int = 0,
    targets: Literal["genes", "none"] = "genes",
) -> ad.AnnData:
    """Drops cells that express few genes, then genes expressed in few of the cells left.

    Perturbed genes stay however few cells express them. ``read`` does the same while it reads.

    Args:
        adata: a canonical screen, cells × genes.
        min_genes: fewest genes a cell must express.
        min_cells_per_gene: fewest cells that must express a gene.
        targets: whether conditions name genes, or (drugs, stimuli) do not.

    Returns:
        The cells and genes left; the input is left as it is.

    Raises:
        InputError: a condition loses all its cells, or nothing is left.
    """
    rows = sp.csr_matrix(adata.X)
    expressed = rows.data != 0
    cells = _row_sums(rows, expressed) >= min_genes
    enough_cells(adata.obs["condition"][cells], as_text(adata.obs["condition"]).unique(), 1)
    seen = np.bincount(rows.indices[expressed & np.repeat(cells, np.diff(rows.indptr))], minlength=adata.n_vars)
    genes = kept_genes(seen, adata.var_names, _targets(adata.obs, targets), min_cells_per_gene)
    return adata.copy() if cells.all() and genes.all() else adata[cells, genes].copy()


def normalize(
    adata: ad.AnnData, size_factor: str | None = None, target_sum: float | int | str = "median"
) -> ad.AnnData:
    """Sets X to log(1 + counts / size × target); data read as log-normalised comes back as it is.

    Args:
        adata: a canonical screen with ``layers["counts"]``.
        size_factor: column of ``obs`` with the depth of each cell; without it ``obs["size_factor"]``, which
            ``read`` sets to the column it was given or to the total over all genes of the file, or else the
            total here.
        target_sum: the sum that counts are scaled to, or ``"median"`` for the median size.

    Returns:
        A new AnnData with float32 CSR X, ``obs["size_factor"]`` and, in ``uns["scbig"]``, ``normalization``,
        ``target_sum`` and ``size_factor``. The input is left as it is.

    Raises:
        InputError: no counts, a size that is not above 0 (the cells are named), or a target that is not.
    """
    marks = dict(adata.uns.get("scbig", {}))
    if marks.get("normalization") == "given":
        return adata
    if "counts" not in adata.layers:
        raise InputError("normalize needs layers['counts'], which is not there: read the file with scbig.data.read")
    counts = sp.csr_matrix(adata.layers["counts"])
    size, target, told = depth(adata.obs, marks, size_factor, target_sum, lambda: _row_sums(counts, counts.data))
    values = np.empty(counts.nnz, dtype=np.float32)
    for start in range(0, counts.shape[0], _ROWS):
        block = counts[start : start + _ROWS]
        here = slice(counts.indptr[start], counts.indptr[start + block.shape[0]])
        values[here] = log_scaled(block, target / size[start : start + _ROWS])
    obs = adata.obs.copy()
    obs["size_factor"] = size
    # The positions are shared with the counts: only the values are new.
    matrix = sp.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)
    return _with(adata, matrix, obs, adata.var.copy(), marks | told)


def depth(
    obs: pd.DataFrame,
    marks: Mapping[str, Any],
    size_factor: str | None,
    target_sum: float | int | str,
    totals: Callable[[], Float[np.ndarray, " cells"]],
) -> tuple[Float[np.ndarray, " cells"], float, dict[str, Any]]:
    """The depth of every cell, the sum that counts are scaled to, and what ``uns["scbig"]`` says of them.

    Args:
        obs: the cells' table.
        marks: ``uns["scbig"]``.
        size_factor: column of ``obs``; see ``normalize``.
        target_sum: the sum, or ``"median"``.
        totals: gives the totals of the cells, where there is no column.

    Raises:
        InputError: no such column, a size that is not above 0 (the cells are named), or a target that is not.
    """
    column = size_factor or ("size_factor" if "size_factor" in obs else "")
    if column and column not in obs:
        raise InputError(f"obs has no column '{column}' for the size factor: pass --config.data.size_factor=COLUMN")
    size = obs[column].to_numpy(dtype=np.float64, na_value=np.nan) if column else totals()
    bad = ~(np.isfinite(size) & (size > 0))
    if bad.any():
        raise InputError(
            f"{bad.sum()} cells have no counts or no size factor: {some(obs.index[bad])}: drop them "
            "with --config.data.min_genes=1"
        )
    target = float(np.median(size)) if target_sum == "median" else _number(target_sum)
    return (
        size,
        target,
        {
            "normalization": "median" if target_sum == "median" else _power(target),
            "target_sum": target,
            "size_factor": size_factor or marks.get("size_factor", "total"),
        },
    )


def select_genes(
    adata: ad.AnnData,
    train: Bool[np.ndarray, " cells"],
    n_top_genes: int | None,
    allow_missing_targets: bool = False,
    targets: Literal["genes", "none"] = "genes",
) -> ad.AnnData:
    """Keeps the most variable genes, chosen on training cells only, and all perturbed genes.

    Args:
        adata: a canonical, normalised screen, cells × genes.
        train: which cells may be looked at.
        n_top_genes: how many variable genes (``dispersion_score``); all genes stay when None or 0.
        allow_missing_targets: go on when perturbed genes are not measured, and list them in
            ``uns["scbig"]["missing_targets"]``.
        targets: whether conditions name genes, or (drugs, stimuli) do not.

    Returns:
        A new AnnData, genes in their old order, with ``var["highly_variable"]`` and ``var["is_target"]``.

    Raises:
        InputError: no training cells, or perturbed genes that are not measured.
    """
    var, keep, told = choose_genes(
        adata.obs, adata.var, train, n_top_genes, allow_missing_targets, targets,
        lambda: dispersion_score(sp.csr_matrix(adata.X), train),
    )  # fmt: skip
    chosen = _with(adata, adata.X, adata.obs.copy(), var, dict(adata.uns.get("scbig", {})) | told)
    return chosen if keep.all() else chosen[:, keep].copy()


def choose_genes(
    obs: pd.DataFrame,
    var: pd.DataFrame,
    train: Bool[np.ndarray, " cells"],
    n_top_genes: int | None,
    allow_missing_targets: bool,
    targets: Literal["genes", "none"],
    score: Callable[[], Float[np.ndarray, " genes"]],
) -> tuple[pd.DataFrame, Bool[np.ndarray, " genes"], dict[str, Any]]:
    """The decision of ``select_genes``, from tables; ``score`` gives the genes' dispersion if it is needed.

    Returns:
        ``var`` of all genes with the two columns, which genes stay, and what ``uns["scbig"]`` says of it.

    Raises:
        InputError: no training cells, or perturbed genes that are not measured.
    """
    if not train.any():
        raise InputError("there are no training cells to choose genes on: use another split")
    wanted = _targets(obs, targets)
    is_target = var.index.isin(sorted(wanted))
    missing = sorted(wanted - set(var.index))
    if missing and not allow_missing_targets:
        raise InputError(
            f"{len(missing)} of {len(wanted)} perturbed genes are not among the genes measured: "
            f"{some(missing)}: rename them to the symbols of the panel, or pass "
            "--config.data.allow_missing_targets=True (for drugs and stimuli --config.data.targets=none)"
        )
    variable = np.ones(len(var), dtype=bool)
    if n_top_genes and n_top_genes < len(var):
        # Rounded, because two genes alone in a bin tie but for the order in which sums were made.
        scores = np.round(np.nan_to_num(score(), nan=-np.inf), 9)
        top = np.argsort(-scores, kind="stable")[:n_top_genes]
        variable = np.zeros(len(var), dtype=bool)
        variable[top[scores[top] > -np.inf]] = True
    var = var.copy()
    var["highly_variable"], var["is_target"] = variable, is_target
    told = {
        "n_top_genes": int(n_top_genes or 0),
        "genes_chosen_on": f"{int(train.sum())} training cells",
        "missing_targets": np.array(missing, dtype=str),
    }
    return var, variable | is_target, told


def dispersion_score(expression: sp.csr_matrix, train: Bool[np.ndarray, " cells"]) -> Float[np.ndarray, " genes"]:
    """Normalised dispersion of every gene over training cells; see ``blocks.dispersions``.

    Args:
        expression: log1p-normalised, cells × genes.
        train: which cells to use.

    Returns:
        One value per gene, higher for more variable genes; NaN for genes that do not vary.
    """
    rows = np.flatnonzero(train)
    total, squares = np.zeros(expression.shape[1]), np.zeros(expression.shape[1])
    for start in range(0, len(rows), _ROWS):
        more = moments(expression[rows[start : start + _ROWS]])
        total, squares = total + more[0], squares + more[1]
    return dispersions(total, squares, len(rows))


def filter_knockdown(adata: ad.AnnData, direction: str = "down", min_change: float = 0.0) -> ad.AnnData:
    """Drops cells in which a perturbed gene did not move the right way; off unless asked for.

    A cell stays if each of its perturbed genes that is measured lies below (above) the mean of the controls
    of its context by more than ``min_change``. Controls stay, and so do cells with no gene measured.

    Args:
        adata: a canonical, normalised screen.
        direction: where the perturbation should push its gene: ``"down"`` or ``"up"``.
        min_change: least difference to the controls' mean log-expression.

    Returns:
        The cells left, with ``uns["scbig"]["knockdown"]``: direction, min_change, the cells before and
        after and the conditions that lost any, with how many. The input is left as it is.

    Raises:
        InputError: a condition loses all its cells, or a direction that is neither.
    """

    def measure(plan: Knockdown) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows = sp.csr_matrix(adata.X)
        for start in range(0, adata.n_obs, _ROWS):
            yield plan.rows(start, start + _ROWS).measure(rows[start : start + _ROWS])

    keep, told = moved_cells(adata.obs, adata.var_names, direction, min_change, measure)
    marks = dict(adata.uns.get("scbig", {})) | {"knockdown": told}
    return _with(adata, adata.X, adata.obs.copy(), adata.var.copy(), marks)[keep].copy()


def moved_cells(
    obs: pd.DataFrame,
    genes: pd.Index,
    direction: str,
    min_change: float,
    measure: Callable[[Knockdown], Iterator[tuple[np.ndarray, np.ndarray]]],
) -> tuple[Bool[np.ndarray, " cells"], dict[str, Any]]:
    """The decision of ``filter_knockdown``; ``measure`` gives ``Knockdown.measure`` of consecutive blocks.

    Returns:
        Which cells stay, and what ``uns["scbig"]["knockdown"]`` says of it.

    Raises:
        InputError: a condition loses all its cells, or a direction that is neither.
    """
    if direction not in ("down", "up"):
        raise InputError(f"--config.data.knockdown={direction} is neither 'down' nor 'up'")
    plan = Knockdown.plan(obs, genes)
    sums, own = np.zeros((len(plan.n_controls), len(plan.columns))), []
    for more, values in measure(plan):
        sums += more
        own.append(values)
    keep = plan.moved(sums, np.concatenate(own), 1.0 if direction == "up" else -1.0, min_change)
    condition = as_text(obs["condition"])
    before = condition.value_counts()
    enough_cells(condition[keep], before.index, 1)
    lost = (before - condition[keep].value_counts()).sort_index()
    lost = lost[lost > 0]
    return keep, {
        "direction": direction,
        "min_change": float(min_change),
        "cells_before": len(obs),
        "cells_after": int(keep.sum()),
        "conditions": np.array(lost.index, dtype=str),
        "cells_dropped": lost.to_numpy(dtype=np.int64),
    }


def read_as_told(source: str | os.PathLike | ad.AnnData, data: ConfigDict, **floors: int) -> ad.AnnData:
    """Reads a screen with the settings of ``config.data``; ``floors`` are passed on to `read`."""
    return read(source, **reading(data), **floors)


def prepare(path_or_adata: str | os.PathLike | ad.AnnData | None, config: ConfigDict) -> tuple[ad.AnnData, Split]:
    """Reads, checks, normalises and splits a screen and chooses its genes, as a configuration says; in memory.

    Args:
        path_or_adata: what to read; ``config.data.path`` when None.
        config: groups ``data`` and ``split`` and a ``seed``, as ``scbig.config.default`` has them; fields
            that are absent, None or "" are not given. ``data.backend`` is not looked at: ``large.prepare``
            does the same by blocks.

    Returns:
        The canonical screen, ready for training, and the split; its name and sha256 are in ``uns["scbig"]``.

    Raises:
        InputError: anything wrong with the file, the settings or their match.
    """
    wish = Wishes.of(path_or_adata, config.data)
    adata = read_as_told(wish.source, config.data, min_cells=wish.min_cells, **wish.floors)
    wish.refuse_prepared(adata.uns["scbig"])
    if wish.needs_qc(adata.uns["scbig"]):
        adata = qc(adata, **wish.floors, targets=wish.targets)
    adata = normalize(adata, wish.depth_column(adata.uns["scbig"]), wish.target_sum)
    conditions = as_text(adata.obs["condition"]).unique()
    if wish.knockdown:
        adata = filter_knockdown(adata, wish.knockdown, wish.min_change)
    enough_cells(adata.obs["condition"], conditions, wish.min_cells)
    split = split_of(adata.obs, config)
    train = split.assign(adata.obs) == "train"
    adata = select_genes(adata, train, wish.n_top_genes, wish.allow_missing_targets, wish.gene_targets)
    adata.uns["scbig"] |= {"split": split.name, "split_sha256": split.sha256}
    return adata, split


def _targets(obs: pd.DataFrame, targets: str) -> set[str]:
    if targets == "none":
        return set()
    return {gene for condition in as_text(obs["condition"]).unique() for gene in genes_of(condition)}


def _row_sums(rows: sp.csr_matrix, values: np.ndarray) -> np.ndarray:
    """Sums of the stored values of every row, in float64."""
    ends = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return ends[rows.indptr[1:]] - ends[rows.indptr[:-1]]


def _number(value: float | int | str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"--config.data.target_sum={value} is neither 'median' nor a number above 0")
    return number


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    return f"1e{exponent}" if math.isclose(value, 10.0**exponent) else f"{value:g}"


def _with(adata: ad.AnnData, matrix: Any, obs: pd.DataFrame, var: pd.DataFrame, marks: dict[str, Any]) -> ad.AnnData:
    """The same screen with other parts; matrices are shared, tables are not."""
    # From anndata 0.13, X is also the layer None.
    layers = {name: adata.layers[name] for name in adata.layers if name is not None}
    return ad.AnnData(matrix, obs=obs, var=var, uns=dict(adata.uns) | {"scbig": marks}, layers=layers)
