"""Reading a perturbation screen of any spelling into the one form that everything else reads."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float

from scbig.data.conditions import CONTROL, as_text, canonical, find_condition_column, genes_of
from scbig.data.scan import enough_cells, gather, refuse_values, scan
from scbig.data.source import Source, open_source
from scbig.errors import InputError, some

__all__ = ["SCHEMA", "Told", "effects_table", "interpret", "is_canonical", "is_effects", "read", "report_lines"]

SCHEMA = 1
"""Version of the canonical form."""

_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?")
_SYMBOLS = ("gene_name", "gene_names", "gene_symbol", "gene_symbols", "feature_name", "symbol", "name")
_IDS = ("ensembl", "ensembl_id", "ensemble_id", "gene_id", "gene_ids", "feature_id")


def read(
    path: str | os.PathLike | ad.AnnData,
    *,
    condition: str | None = None,
    separator: str | None = None,
    control: Sequence[str] | str | None = None,
    context: str | None = None,
    batch: str | None = None,
    dose: str | None = None,
    size_factor: str | None = None,
    normalized: bool = False,
    make_unique: bool = False,
    min_cells: int = 1,
    backed: bool | Literal["auto"] = "auto",
    layer: str | None = None,
    min_genes: int = 0,
    min_cells_per_gene: int = 0,
) -> ad.AnnData:
    """Reads a screen and checks it; what is already canonical comes back as it is.

    Columns not given are found: the condition by its usual names, ``context`` and ``batch`` by just these;
    a context or batch that is not there is ``"all"``. What was found is in ``uns["scbig"]["read"]``;
    ``report_lines`` puts it in words. Columns of ``obs`` are kept, one whose name is needed under
    ``NAME_given``. Layers, embeddings and graphs are left behind.

    Args:
        path: an ``.h5ad`` or ``.zarr`` file, dense or sparse, or an AnnData (left as it is; the result may
            share its matrix).
        condition: column of ``obs`` with the perturbation.
        separator: what joins the parts of a combination; found when not given.
        control: labels of controls, with wildcards; usual spellings when not given.
        context: column with the cell line or type.
        batch: column with the batch.
        dose: column with the dose, a number; conditions are then drugs, not genes. Controls without one
            get 0.
        size_factor: column with each cell's depth; the total over all genes of the file when not given.
        normalized: X is already log-normalised. Without it X must hold counts.
        make_unique: number repeated gene and cell names instead of refusing them.
        min_cells: fewest cells that every condition must have.
        backed: read rows in blocks, twice, and load only what is kept; ``"auto"`` does so above 2 GB on disk.
        layer: a layer to read instead of X.
        min_genes: drop cells with fewer expressed genes.
        min_cells_per_gene: drop genes expressed in fewer of the cells kept, perturbed genes excepted.

    Returns:
        cells × genes, float32 CSR in X and, for counts, in ``layers["counts"]`` (not normalised yet: see
        ``preprocess.normalize``); ``obs`` with condition, context, batch, dose if given, and
        ``size_factor``; ``var`` by symbol, with ``ensembl`` where known; ``uns["scbig"]``.

    Raises:
        InputError: whatever section 6 of the design refuses, in one line that names the offender.
    """
    with open_source(path, layer, backed) as source:
        if is_canonical(source):
            return _as_it_is(path)
        told = interpret(
            source, condition=condition, separator=separator, control=control, context=context, batch=batch, dose=dose,
            size_factor=size_factor, normalized=normalized, make_unique=make_unique, min_cells=min_cells, layer=layer,
            min_genes=min_genes, min_cells_per_gene=min_cells_per_gene,
        )  # fmt: skip
        cells, genes, totals = scan(source, **told.limits)
        matrix = gather(source, cells, genes)
    obs, var, uns = told.tables(cells, genes, totals)
    result = ad.AnnData(matrix, obs=obs, var=var, uns=uns)
    if not normalized:
        result.layers["counts"] = matrix
    return result


@dataclass(frozen=True)
class Told:
    """What the tables of a screen say, before its values are looked at.

    Attributes:
        source: the screen, its tables in canonical form.
        report: what was found.
        limits: what ``scan`` needs to know.
        sizes: depth of every cell, where a column was named.
        size_factor: that column.
        min_cells: fewest cells of every condition.
    """

    source: Source
    report: dict[str, Any]
    limits: dict[str, Any]
    sizes: np.ndarray | None
    size_factor: str | None
    min_cells: int

    def tables(
        self, cells: Bool[np.ndarray, " cells"], genes: Bool[np.ndarray, " genes"], totals: Float[np.ndarray, " cells"]
    ) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
        """``obs``, ``var`` and ``uns`` of the cells and genes that stay (from ``scan``).

        Raises:
            InputError: a condition keeps too few cells.
        """
        obs, var, limits = self.source.obs, self.source.var, self.limits
        expected = obs["condition"].cat.categories
        if self.sizes is not None or not limits["normalized"]:
            _put(obs, "size_factor", totals if self.sizes is None else self.sizes)
        kept = obs[cells].copy()
        enough_cells(kept["condition"], expected, self.min_cells)
        counts = kept["condition"].value_counts(sort=False)
        report = self.report | {
            "n_cells_read": len(obs),
            "n_genes_read": len(var),
            "n_cells_kept": len(kept),
            "n_genes_kept": int(genes.sum()),
            "min_genes": limits["min_genes"],
            "min_cells_per_gene": limits["min_cells_per_gene"],
            "conditions": np.array(counts.index, dtype=str),
            "cells_of_condition": counts.to_numpy(),
        }
        marks = {
            "schema": SCHEMA,
            "kind": "screen",
            "normalization": "given" if limits["normalized"] else "counts",
            "size_factor": self.size_factor or ("" if limits["normalized"] else "total"),
            "read": report,
        }
        uns = self.source.uns | {"scbig": dict(self.source.uns.get("scbig", {})) | marks}
        return kept, var[genes].copy(), uns


def interpret(
    source: Source,
    *,
    condition: str | None,
    separator: str | None,
    control: Sequence[str] | str | None,
    context: str | None,
    batch: str | None,
    dose: str | None,
    size_factor: str | None,
    normalized: bool,
    make_unique: bool,
    min_cells: int,
    layer: str | None,
    min_genes: int,
    min_cells_per_gene: int,
) -> Told:
    """Brings the tables of a screen to canonical form; the arguments are those of ``read``.

    Raises:
        InputError: names given twice, columns that are absent or hold what they must not, no controls.
    """
    obs, var, report = source.obs, source.var, {"file": source.name, "layer": layer or "X"}
    obs.index, var.index = obs.index.astype(str), var.index.astype(str)
    _name_genes(source, report)
    _unique(obs, "cell", source.name, make_unique)
    _unique(var, "gene", source.name, make_unique)
    known = () if dose else tuple(var.index)
    _put_conditions(source, condition, separator, control, known, report)
    _put_columns(obs, {"context": context, "batch": batch}, dose, report)
    sizes = _sizes(obs, size_factor) if size_factor else None
    expected = obs["condition"].cat.categories
    limits = {
        "normalized": normalized,
        "layer": layer,
        "targets": set() if dose else {gene for name in expected for gene in genes_of(name)},
        "min_genes": min_genes,
        "min_cells_per_gene": min_cells_per_gene,
    }
    return Told(source, report, limits, sizes, size_factor, min_cells)


def report_lines(adata: ad.AnnData) -> list[str]:
    """What ``read`` found, in words: one short line each, for the screen and the report."""
    found = adata.uns.get("scbig", {}).get("read", {})
    if not found:
        return []
    joined = f"joined by '{found['separator']}' ({found['separator_source']})"
    lines = [
        f"cells: {found['n_cells_kept']:,} of {found['n_cells_read']:,}; genes: {found['n_genes_kept']:,} of "
        f"{found['n_genes_read']:,}",
        f"condition: column '{found['condition_column']}' ({found['condition_source']}), "
        f"{found['n_conditions']} conditions, combinations {joined if found['separator'] else 'none'}",
        f"control: {(adata.obs['condition'] == CONTROL).sum():,} cells, labels {some(found['control_labels'])}",
    ]
    lines += [f"{n}: column '{found[f'{n}_column']}'" for n in ("context", "batch", "dose") if found.get(f"{n}_column")]
    if found.get("gene_column"):
        lines.append(f"genes: symbols from var['{found['gene_column']}']")
    if len(found["left_whole"]):
        lines.append(f"not split: {some(found['left_whole'])}")
    return lines


def effects_table(
    path: str | os.PathLike | ad.AnnData, *, condition: str | None = None, separator: str | None = None
) -> ad.AnnData:
    """Reads a table of effects: one row per condition, differences of mean log-expression to control.

    Args:
        path: an ``.h5ad`` or ``.zarr`` file, or an AnnData.
        condition: column of ``obs`` with the condition; found when not given.
        separator: what joins the parts of a combination; found when not given.

    Returns:
        conditions × genes, dense float32 X, ``obs["condition"]`` canonical and ``obs_names`` the same, and
        ``uns["scbig"]["kind"] = "effects"``. Of a sparse table, where an absent entry may be censored
        rather than zero, ``layers["recorded"]`` (bool) says which entries are there. A
        row of controls (Replogle's non-targeting guides against themselves) stays, as condition ``control``.

    Raises:
        InputError: repeated conditions or genes, no rows, or values that are not finite.
    """
    with open_source(path, None, False) as source:
        obs, var, report = source.obs, source.var, {"file": source.name}
        obs.index, var.index = obs.index.astype(str), var.index.astype(str)
        sparse = sp.issparse(source.matrix)
        _name_genes(source, report)
        _unique(var, "gene", source.name, False)
        column = condition or find_condition_column(obs)
        conditions, spelling = canonical(_column(obs, column, "condition"), separator, None, tuple(var.index))
        ((_, rows),) = source.blocks()
    _put(obs, "condition", conditions.astype(str))
    twice = sorted(set(obs["condition"][obs["condition"].duplicated()]))
    if twice or not len(obs):
        problem = f"name conditions more than once: {some(twice)}" if twice else "have no rows"
        raise InputError(f"the effects {source.name} {problem}: one row per condition is needed")
    obs.index = pd.Index(obs["condition"].to_numpy(dtype=object), name=None)
    refuse_values(rows, source)
    uns = {k: v for k, v in source.uns.items() if k != "scbig"}
    old = source.uns.get("scbig", {})
    uns["scbig"] = dict(old) | {"schema": SCHEMA, "kind": "effects", "separator": spelling["separator"]}
    result = ad.AnnData(rows.toarray().astype(np.float32), obs=obs, var=var, uns=uns)
    if sparse:
        result.layers["recorded"] = rows.toarray() != 0
    return result


def is_effects(path: str | os.PathLike) -> bool:
    """Whether a file says of itself that it is a table of effects (``uns["scbig"]["kind"]``)."""
    with open_source(path, None, False) as source:
        return str(source.uns.get("scbig", {}).get("kind", "")) == "effects"


def is_canonical(source: Source) -> bool:
    """Whether a screen is in the form that ``read`` gives."""
    marks = source.uns.get("scbig", {})
    return (
        isinstance(marks, dict)
        and marks.get("kind") == "screen"
        and int(marks.get("schema", 0)) == SCHEMA
        and "normalization" in marks
        and {"condition", "context", "batch"} <= set(source.obs.columns)
    )


def _as_it_is(path: str | os.PathLike | ad.AnnData) -> ad.AnnData:
    if isinstance(path, ad.AnnData):
        return path
    return ad.read_zarr(path) if os.path.isdir(path) else ad.read_h5ad(path)


def _put_conditions(
    source: Source,
    column: str | None,
    separator: str | None,
    control: Sequence[str] | str | None,
    known: Sequence[str],
    report: dict[str, Any],
) -> None:
    used = column or find_condition_column(source.obs)
    raw = _column(source.obs, used, "condition")
    conditions, spelling = canonical(raw, separator, control, known)
    if not (conditions == CONTROL).any():
        raise InputError(
            f"{source.name} has no control cells: obs['{used}'] holds {some(sorted(set(as_text(raw))))}: "
            "name the controls with --config.data.control=LABEL"
        )
    _put(source.obs, "condition", conditions)
    report |= {"condition_column": used, "condition_source": "given" if column else "found"}
    report |= {k: np.array(v, dtype=str) if isinstance(v, list) else v for k, v in spelling.items()}


def _put_columns(obs: pd.DataFrame, labels: dict[str, str | None], dose: str | None, report: dict[str, Any]) -> None:
    for name, given in labels.items():
        used = given or (name if name in obs else "")
        _put(
            obs,
            name,
            _labels(obs, used, name) if used else pd.Categorical.from_codes(np.zeros(len(obs), dtype=np.int8), ["all"]),
        )
        report[f"{name}_column"] = used
    if dose:
        _put(obs, "dose", _doses(obs, dose))
        report["dose_column"] = dose


def _name_genes(source: Source, report: dict[str, Any]) -> None:
    """Puts symbols into the index of ``var`` and Ensembl identifiers, where known, into a column."""
    var = source.var
    names = var.index.to_series()
    lower = {str(c).lower(): c for c in reversed(var.columns)}
    if names.str.fullmatch(_ENSEMBL).mean() > 0.5:
        column = next((lower[c] for c in _SYMBOLS if c in lower), None)
        if column is None:
            raise InputError(
                f"the genes of {source.name} are named by Ensembl identifiers ({some(names[:3])}) and "
                "var has no column of "
                f"symbols ({', '.join(_SYMBOLS)}): add one, since priors and conditions go by symbol"
            )
        symbols = var[column].astype(object)
        absent = symbols.isna() | symbols.astype(str).isin(["", "nan"])
        var["ensembl"] = names.to_numpy(dtype=object)
        var.index = pd.Index(np.where(absent, names, symbols.astype(str)).astype(object))
        report["gene_column"] = str(column)
        return
    column = next((lower[c] for c in _IDS if c in lower), None)
    if column is not None and var[column].astype(str).str.fullmatch(_ENSEMBL).mean() > 0.5:
        var["ensembl"] = var[column].astype(str).to_numpy(dtype=object)


def _unique(table: pd.DataFrame, what: str, name: str, make_unique: bool) -> None:
    # Not index.duplicated(), which keeps a hash table of all names.
    twice = table.index[pd.Series(table.index).duplicated()].unique()
    if len(twice) and not make_unique:
        raise InputError(
            f"{name} has {len(twice)} {what} names more than once: {some(twice)}: correct them, or pass "
            "--config.data.make_unique=True to number them"
        )
    if len(twice):
        table.index = ad.utils.make_index_unique(table.index)


def _column(obs: pd.DataFrame, column: str, what: str) -> pd.Series:
    if column not in obs:
        raise InputError(
            f"obs has no column '{column}' for the {what}; its columns are {some(obs.columns, 20)}: pass "
            f"--config.data.{what}=COLUMN"
        )
    return obs[column]


def _labels(obs: pd.DataFrame, column: str, what: str) -> pd.Series:
    labels = _column(obs, column, what)
    if labels.isna().any():
        raise InputError(f"{int(labels.isna().sum())} cells have no {what} in obs['{column}']: fill or drop them first")
    return as_text(labels).astype("category")


def _numbers(obs: pd.DataFrame, column: str, what: str) -> np.ndarray:
    raw = _column(obs, column, what)
    raw = raw.astype(object) if isinstance(raw.dtype, pd.CategoricalDtype) else raw
    values = pd.to_numeric(raw, errors="coerce")
    odd = sorted(set(raw[values.isna() & raw.notna()].astype(str)))
    if odd:
        raise InputError(f"obs['{column}'] must hold numbers for the {what}, not {some(odd)}: convert them first")
    return values.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)


def _doses(obs: pd.DataFrame, column: str) -> np.ndarray:
    values = _numbers(obs, column, "dose")
    values[np.isnan(values) & (obs["condition"] == CONTROL).to_numpy()] = 0.0
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        who = sorted(set(obs["condition"].astype(str)[bad]))
        raise InputError(
            f"{bad.sum()} cells have no dose or a negative one in obs['{column}']: {some(who)}: correct them"
        )
    return values


def _sizes(obs: pd.DataFrame, column: str) -> np.ndarray:
    values = _numbers(obs, column, "size_factor")
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise InputError(
            f"the size factor obs['{column}'] is missing or not above 0 in {bad.sum()} cells: "
            f"{some(obs.index[bad])}: "
            "drop them or choose another column"
        )
    return values


def _put(obs: pd.DataFrame, name: str, values: Any) -> None:
    """Sets a column, keeping another one of that name aside."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "US":
        values = pd.Categorical(values)
    if name in obs and not _same(obs[name], pd.Series(values)):
        obs[f"{name}_given"] = obs[name]
    obs[name] = values.to_numpy() if isinstance(values, pd.Series) and values.dtype == object else values


def _same(old: pd.Series, new: pd.Series) -> bool:
    if pd.api.types.is_numeric_dtype(old) and pd.api.types.is_numeric_dtype(new):
        numbers = (each.to_numpy(dtype=np.float64, na_value=np.nan) for each in (old, new))
        return np.array_equal(*numbers, equal_nan=True)
    return np.array_equal(*(as_text(each).to_numpy(dtype=object) for each in (old, new)))
