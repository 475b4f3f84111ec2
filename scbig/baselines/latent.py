"""A latent space of cells, and what training perturbations do in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scbig.baselines.means import group_means
from scbig.data.conditions import CONTROL
from scbig.data.splits import Split
from scbig.errors import InputError, some
from scbig.rng import generator

__all__ = ["Latent", "fit_latent", "latent_of"]

_BLOCK = 2_048  # cells encoded at once
_DENSE = 1_000  # genes up to which all components are computed and the leading ones kept


@dataclass(frozen=True)
class Latent:
    """An encoder and decoder of cells, fitted or trained on training cells only.

    Attributes:
        name: what made it, for reports.
        genes: symbols, one per column of the expression.
        encode: log-expression, cells × genes, to latents, cells × dims.
        decode: latents back to log-expression.
        controls: a draw of training control cells by context, log-expression, cells × genes.
        shifts: mean latent of training cells minus that of training controls of the same context, by condition
            and context.
    """

    name: str
    genes: tuple[str, ...]
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    controls: Mapping[str, np.ndarray]
    shifts: Mapping[tuple[str, str], np.ndarray]

    def table(self, context: str) -> dict[str, np.ndarray]:
        """Shifts by condition: of this context, else the mean over the contexts that have one."""
        rows: dict[str, list[np.ndarray]] = {}
        for (condition, _), shift in self.shifts.items():
            rows.setdefault(condition, []).append(shift)
        return {c: np.mean(shifts, axis=0) for c, shifts in rows.items()} | {
            c: shift for (c, k), shift in self.shifts.items() if k == context
        }


def latent_of(
    adata: AnnData,
    split: Split,
    encode: Callable[[np.ndarray], np.ndarray],
    decode: Callable[[np.ndarray], np.ndarray],
    *,
    name: str = "autoencoder",
    n_controls: int = 500,
    seed: int = 0,
) -> Latent:
    """What training perturbations do in the latent of any encoder, such as a trained autoencoder.

    Args:
        adata: canonical cells; X is log-expression.
        split: which cells are for training; no other cell is encoded.
        encode: log-expression, float32 cells × genes, to latents, cells × dims.
        decode: latents back to log-expression.
        name: what made the encoder, for reports.
        n_controls: control cells kept per context; fewer where there are fewer.
        seed: of their draw.

    Raises:
        InputError: no perturbed training cell, or a context with such cells but no training control.
    """
    keys, group, rows = _training_groups(adata, split)
    latents = [np.asarray(encode(_dense(adata.X[rows[i : i + _BLOCK]]))) for i in range(0, len(rows), _BLOCK)]
    means, _ = group_means(np.concatenate(latents), group, len(keys))
    base = {context: means[i] for i, (condition, context) in enumerate(keys) if condition == CONTROL}
    controls = {}
    for i, (condition, context) in enumerate(keys):
        if condition == CONTROL:
            pool = rows[group == i]
            draw = generator(seed, f"controls of {context}").choice(pool, min(n_controls, len(pool)), replace=False)
            controls[context] = _dense(adata.X[np.sort(draw)])
    shifts = {(c, k): means[i] - base[k] for i, (c, k) in enumerate(keys) if c != CONTROL}
    return Latent(name, tuple(map(str, adata.var_names)), encode, decode, controls, shifts)


def fit_latent(adata: AnnData, split: Split, *, n_components: int = 50, seed: int = 0) -> Latent:
    """The leading principal components of the training cells as encoder: a latent that needs no network.

    Args:
        adata: canonical cells; X is log-expression.
        split: which cells are for training.
        n_components: dims of the latent; never more than genes or training cells.
        seed: of the draw of control cells that the latent keeps.

    Raises:
        InputError: no perturbed training cell, or a context with such cells but no training control.
    """
    _, _, rows = _training_groups(adata, split)
    mean, axes = _components(adata.X[rows], n_components)

    def encode(x: np.ndarray) -> np.ndarray:
        return (x - mean) @ axes

    def decode(z: np.ndarray) -> np.ndarray:
        return z @ axes.T + mean

    return latent_of(adata, split, encode, decode, name=f"{axes.shape[1]} principal components", seed=seed)


def _training_groups(adata: AnnData, split: Split) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Condition and context of each group of training cells, the group of each such cell, and their rows."""
    rows = np.flatnonzero(np.asarray(split.assign(adata.obs)) == "train")
    obs = adata.obs.iloc[rows]
    condition = obs["condition"].astype(str)
    context = obs["context"].astype(str) if "context" in obs else ["all"] * len(obs)
    label = list(zip(condition, context, strict=True))
    keys = sorted(set(label))
    perturbed = {k for c, k in keys if c != CONTROL}
    if not perturbed:
        raise InputError("the split leaves no perturbed cell for training: a latent shows no shift without one")
    bare = sorted(perturbed - {k for c, k in keys if c == CONTROL})
    if bare:
        raise InputError(f"no training control cells in context {some(bare)}: shifts cannot be measured there")
    number = {key: i for i, key in enumerate(keys)}
    return keys, np.array([number[key] for key in label]), rows


def _dense(x: np.ndarray | sp.spmatrix | sp.sparray) -> np.ndarray:
    return np.asarray(x.toarray() if sp.issparse(x) else x, np.float32)


def _components(x: np.ndarray | sp.spmatrix | sp.sparray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the cells and their leading principal axes, genes × components, without a dense copy of sparse cells."""
    n_cells, n_genes = x.shape
    n_components = min(n_components, n_genes, n_cells)
    mean = np.asarray(x.mean(axis=0, dtype=np.float64)).ravel()
    if n_genes <= _DENSE or n_components > n_genes // 2:
        second = np.zeros((n_genes, n_genes))
        for start in range(0, n_cells, _BLOCK):
            # Blocks bound the copy in double precision.
            block = x[start : start + _BLOCK].astype(np.float64)
            product = block.T @ block
            second += product.toarray() if sp.issparse(product) else product
        axes = np.linalg.eigh(second - n_cells * np.outer(mean, mean))[1][:, ::-1][:, :n_components]
    else:
        from scipy.sparse.linalg import LinearOperator, eigsh

        operator = LinearOperator(
            (n_genes, n_genes), dtype=np.float64, matvec=lambda v: x.T @ (x @ v) - n_cells * mean * (mean @ v)
        )
        # A fixed start makes the iteration repeatable.
        axes = eigsh(operator, n_components, v0=np.ones(n_genes))[1][:, ::-1]
    # The sign of an axis is arbitrary: its largest entry is made positive.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return mean, axes * np.where(largest < 0, -1.0, 1.0)
