"""From a screen as read to one ready for training: quality control, normalisation, choice of genes, split."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from scbig.data.conditions import CONTROL, genes_of
from scbig.data.read import read
from scbig.data.scan import enough_cells, kept_genes
from scbig.data.splits import Split, make
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
    enough_cells(adata.obs["condition"][cells], adata.obs["condition"].astype(str).unique(), 1)
    seen = np.bincount(rows.indices[expressed & np.repeat(cells, np.diff(rows.indptr))], minlength=adata.n_vars)
    genes = kept_genes(seen, adata.var_names, _targets(adata, targets), min_cells_per_gene)
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
    column = size_factor or ("size_factor" if "size_factor" in adata.obs else "")
    if column and column not in adata.obs:
        raise InputError(f"obs has no column '{column}' for the size factor: pass --config.data.size_factor=COLUMN")
    size = adata.obs[column].to_numpy(dtype=np.float64, na_value=np.nan) if column else _row_sums(counts, counts.data)
    bad = ~(np.isfinite(size) & (size > 0))
    if bad.any():
        raise InputError(
            f"{bad.sum()} cells have no counts or no size factor: {some(adata.obs_names[bad])}: drop them "
            "with --config.data.min_genes=1"
        )
    target = float(np.median(size)) if target_sum == "median" else _number(target_sum)
    values = np.empty(counts.nnz, dtype=np.float32)
    for start in range(0, counts.shape[0], _ROWS):
        ends = counts.indptr[start : start + _ROWS + 1]
        scale = np.repeat(target / size[start : start + _ROWS], np.diff(ends))
        values[ends[0] : ends[-1]] = np.log1p(counts.data[ends[0] : ends[-1]] * scale)
    obs = adata.obs.copy()
    obs["size_factor"] = size
    marks |= {
        "normalization": "median" if target_sum == "median" else _power(target),
        "target_sum": target,
        "size_factor": size_factor or marks.get("size_factor", "total"),
    }
    # The positions are shared with the counts: only the values are new.
    matrix = sp.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)
    return _with(adata, matrix, obs, adata.var.copy(), marks)


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
    if not train.any():
        raise InputError("there are no training cells to choose genes on: use another split")
    wanted = _targets(adata, targets)
    is_target = adata.var_names.isin(sorted(wanted))
    missing = sorted(wanted - set(adata.var_names))
    if missing and not allow_missing_targets:
        raise InputError(
            f"{len(missing)} of {len(wanted)} perturbed genes are not among the genes measured: "
            f"{some(missing)}: rename them to the symbols of the panel, or pass "
            "--config.data.allow_missing_targets=True (for drugs and stimuli --config.data.targets=none)"
        )
    var = adata.var.copy()
    variable = np.ones(adata.n_vars, dtype=bool)
    if n_top_genes and n_top_genes < adata.n_vars:
        score = np.nan_to_num(dispersion_score(sp.csr_matrix(adata.X), train), nan=-np.inf)
        top = np.argsort(-score, kind="stable")[:n_top_genes]
        variable = np.zeros(adata.n_vars, dtype=bool)
        variable[top[score[top] > -np.inf]] = True
    var["highly_variable"], var["is_target"] = variable, is_target
    marks = dict(adata.uns.get("scbig", {}))
    marks |= {
        "n_top_genes": int(n_top_genes or 0),
        "genes_chosen_on": f"{int(train.sum())} training cells",
        "missing_targets": np.array(missing, dtype=str),
    }
    chosen = _with(adata, adata.X, adata.obs.copy(), var, marks)
    keep = variable | is_target
    return chosen if keep.all() else chosen[:, keep].copy()


def dispersion_score(expression: sp.csr_matrix, train: Bool[np.ndarray, " cells"]) -> Float[np.ndarray, " genes"]:
    """Normalised dispersion of every gene over training cells (Satija et al. 2015; scanpy's "seurat").

    The log of variance over mean of exp(x) − 1, standardised within 20 bins of genes of similar mean; the
    only gene of a bin gets 1.

    Args:
        expression: log1p-normalised, cells × genes.
        train: which cells to use.

    Returns:
        One value per gene, higher for more variable genes; NaN for genes that do not vary.
    """
    rows = np.flatnonzero(train)
    total, squares = np.zeros(expression.shape[1]), np.zeros(expression.shape[1])
    for start in range(0, len(rows), _ROWS):
        block = expression[rows[start : start + _ROWS]]
        values = np.expm1(block.data.astype(np.float64))
        total += np.bincount(block.indices, weights=values, minlength=len(total))
        squares += np.bincount(block.indices, weights=values * values, minlength=len(total))
    mean = total / len(rows)
    variance = (squares / len(rows) - mean**2) * len(rows) / max(1, len(rows) - 1)
    varies = (variance > 1e-12) & (mean > 0)
    score = np.full(len(mean), np.nan)
    score[varies] = np.log(variance[varies] / mean[varies])
    frame = pd.DataFrame({"score": score, "bin": pd.cut(np.log1p(np.maximum(mean, 1e-12)), bins=20)})
    groups = frame.groupby("bin", observed=True)["score"]
    centre, spread = groups.transform("mean").to_numpy(), groups.transform("std").to_numpy()
    alone = np.isnan(spread)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(alone & varies, 1.0, (score - centre) / np.where(alone, 1.0, spread))


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
    if direction not in ("down", "up"):
        raise InputError(f"--config.data.knockdown={direction} is neither 'down' nor 'up'")
    sign = 1.0 if direction == "up" else -1.0
    rows_of = defaultdict(list)
    for name, rows in adata.obs.groupby("condition", observed=True).indices.items():
        for gene in genes_of(name):
            rows_of[gene].append(rows)
    contexts, place = np.unique(adata.obs["context"].astype(str), return_inverse=True)
    condition = adata.obs["condition"].astype(str).to_numpy()
    control = condition == CONTROL
    n_controls = np.bincount(place[control], minlength=len(contexts))
    if not n_controls.all():
        raise InputError(
            f"no control cells in the context {some(contexts[n_controls == 0])} to compare perturbed genes "
            "to: leave out --config.data.knockdown"
        )
    columns, keep = sp.csc_matrix(adata.X), np.ones(adata.n_obs, dtype=bool)
    for gene in sorted(set(rows_of) & set(adata.var_names)):
        values = columns[:, adata.var_names.get_loc(gene)].toarray().ravel().astype(np.float64)
        means = np.bincount(place[control], weights=values[control], minlength=len(contexts)) / n_controls
        moved = sign * (values - means[place]) > min_change
        for rows in rows_of[gene]:
            keep[rows] &= moved[rows]
    before = pd.Series(condition).value_counts()
    enough_cells(pd.Series(condition[keep], dtype=object), before.index, 1)
    lost = (before - pd.Series(condition[keep]).value_counts()).sort_index()
    lost = lost[lost > 0]
    marks = dict(adata.uns.get("scbig", {}))
    marks["knockdown"] = {
        "direction": direction,
        "min_change": float(min_change),
        "cells_before": int(adata.n_obs),
        "cells_after": int(keep.sum()),
        "conditions": np.array(lost.index, dtype=str),
        "cells_dropped": lost.to_numpy(dtype=np.int64),
    }
    return _with(adata, adata.X, adata.obs.copy(), adata.var.copy(), marks)[keep].copy()


def read_as_told(source: str | os.PathLike | ad.AnnData, data: ConfigDict, **floors: int) -> ad.AnnData:
    """Reads a screen with the settings of ``config.data``; ``floors`` are passed on to `read`."""
    control = _given(data, "control")
    columns = ("condition", "separator", "context", "batch", "dose", "size_factor", "layer")
    return read(
        source,
        **{k: _given(data, k) for k in columns},
        control=[c.strip() for c in control.split(",")] if isinstance(control, str) else control,
        normalized=bool(_given(data, "normalized", False)),
        make_unique=bool(_given(data, "make_unique", False)),
        **floors,
    )


def prepare(path_or_adata: str | os.PathLike | ad.AnnData | None, config: ConfigDict) -> tuple[ad.AnnData, Split]:
    """Reads, checks, normalises and splits a screen and chooses its genes, as a configuration says.

    Args:
        path_or_adata: what to read; ``config.data.path`` when None.
        config: groups ``data`` and ``split`` and a ``seed``, as ``scbig.config.default`` has them; fields
            that are absent, None or "" are not given.

    Returns:
        The canonical screen, ready for training, and the split; its name and sha256 are in ``uns["scbig"]``.

    Raises:
        InputError: anything wrong with the file, the settings or their match.
    """
    data, split_settings = config.data, config.split
    source = path_or_adata if path_or_adata is not None else _given(data, "path")
    if source is None:
        raise InputError("no screen is named: pass --config.data.path=FILE.h5ad or FILE.zarr")
    targets = _given(data, "targets", "genes")
    if targets not in ("genes", "none"):
        raise InputError(f"--config.data.targets={targets} is neither 'genes' nor 'none'")
    floors = {k: int(_given(data, k, 0)) for k in ("min_genes", "min_cells_per_gene")}
    min_cells = int(_given(data, "min_cells", 1))
    adata = read_as_told(source, data, min_cells=min_cells, **floors)
    if "genes_chosen_on" in adata.uns["scbig"]:
        raise InputError(
            f"{source if isinstance(source, str | os.PathLike) else 'the AnnData'} is already prepared, for "
            f"the split '{adata.uns['scbig'].get('split', '')}': give what it was made from, so that genes "
            "are chosen on the training cells of this split"
        )
    if any(adata.uns["scbig"].get("read", {}).get(k, 0) != floor for k, floor in floors.items()):
        # Canonical input comes back from read as it is; what was read here has been through this already.
        adata = qc(adata, **floors, targets=targets)
    depth = _given(data, "size_factor")
    depth = None if depth == adata.uns["scbig"]["size_factor"] else depth
    adata = normalize(adata, depth, _given(data, "target_sum", "median"))
    conditions = adata.obs["condition"].astype(str).unique()
    if knockdown := _given(data, "knockdown"):
        adata = filter_knockdown(adata, knockdown, float(_given(data, "knockdown_min_change", 0.0)))
    enough_cells(adata.obs["condition"], conditions, min_cells)
    rule = _given(split_settings, "rule", "")
    split = make(rule, adata.obs, split_settings, int(_given(config, "seed", 0)))
    train = split.assign(adata.obs) == "train"
    adata = select_genes(
        adata,
        train,
        int(_given(data, "n_top_genes", 0)),
        bool(_given(data, "allow_missing_targets", False)),
        "none" if _given(data, "dose") else targets,
    )
    adata.uns["scbig"] |= {"split": split.name, "split_sha256": split.sha256}
    return adata, split


def _given(settings: Mapping[str, Any] | ConfigDict, name: str, default: Any = None) -> Any:
    value = settings.get(name)
    return default if value is None or (isinstance(value, str) and not value) else value


def _targets(adata: ad.AnnData, targets: str) -> set[str]:
    if targets == "none":
        return set()
    return {gene for condition in adata.obs["condition"].astype(str).unique() for gene in genes_of(condition)}


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
    layers = {name: adata.layers[name] for name in adata.layers}
    return ad.AnnData(matrix, obs=obs, var=var, uns=dict(adata.uns) | {"scbig": marks}, layers=layers)
