"""A trained GCAE with what belongs to it: the genes, their training mean and the scale of its latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx
from jaxtyping import Array, Float

from scbig import rng
from scbig.data.store import Rows
from scbig.nn.gcae import GCAE, GCAEConfig, ModuleLayout
from scbig.training.checkpoint import load_params, save_params

__all__ = ["Autoencoder", "decode_all", "encode_all", "encode_blocks", "load", "new", "save"]

_BATCH = 512


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "buffers", "gene_mean", "latent_mean", "latent_scale"],
    meta_fields=["graph"],
)
@dataclass(frozen=True)
class Autoencoder:
    """Expression to standardised latents and back; a pytree, so it travels through ``jit`` as an argument.

    Attributes:
        graph: the network's structure.
        params: its trained parameters.
        buffers: its fixed arrays (module layout, module priors).
        gene_mean: mean log-expression of the training cells, ``[genes]``.
        latent_mean: mean raw latent of the training cells, ``[latent]``.
        latent_scale: one global scale of the centred latents. Not one per dimension: whitening would make the
            dimensions that hold noise count as much as those that hold signal.
    """

    graph: Any
    params: Any
    buffers: Any
    gene_mean: Float[Array, " genes"]
    latent_mean: Float[Array, " latent"]
    latent_scale: Float[Array, ""]

    def network(self) -> GCAE:
        """The network with its parameters."""
        return nnx.merge(self.graph, self.params, self.buffers)

    def encode(self, x: Float[Array, "cells genes"]) -> Float[Array, "cells latent"]:
        """Standardised latents of log-expression."""
        raw, _ = self.network().encode(x - self.gene_mean[None])
        return (raw - self.latent_mean[None]) / self.latent_scale

    def decode(self, z: Float[Array, "cells latent"]) -> Float[Array, "cells genes"]:
        """Log-expression of standardised latents."""
        return self.network().decode(z * self.latent_scale + self.latent_mean[None]) + self.gene_mean[None]


def new(
    config: GCAEConfig,
    layout: ModuleLayout,
    seed: int,
    summary: Float[np.ndarray, "modules dims"] | None = None,
    known: np.ndarray | None = None,
) -> Autoencoder:
    """An untrained autoencoder with unit scales."""
    network = GCAE(config, layout, summary, known, rngs=nnx.Rngs(params=rng.key(seed, "gcae init")))
    graph, params, buffers = nnx.split(network, nnx.Param, ...)
    return Autoencoder(graph, params, buffers, jnp.zeros(layout.n_genes), jnp.zeros(config.latent), jnp.ones(()))


def _tree(auto: Autoencoder) -> dict[str, Any]:
    return {
        "params": auto.params,
        "gene_mean": auto.gene_mean,
        "latent_mean": auto.latent_mean,
        "latent_scale": auto.latent_scale,
    }


def save(auto: Autoencoder, folder: Path) -> None:
    """Writes parameters, means and scale."""
    save_params(folder, _tree(auto))


def load(like: Autoencoder, folder: Path) -> Autoencoder:
    """Reads what :func:`save` wrote into an untrained autoencoder of the same architecture."""
    return replace(like, **load_params(folder, _tree(like)))


@jax.jit
def _encode(auto, x):
    return auto.encode(x)


@jax.jit
def _decode(auto, z):
    return auto.decode(z)


def _in_batches(function, auto, rows, width):
    """Applies a compiled function in batches of one fixed shape, so that it compiles once for any number of rows."""
    out = np.empty((rows.shape[0], width), np.float32)
    for start in range(0, rows.shape[0], _BATCH):
        part = rows[start : start + _BATCH]
        dense = np.asarray(part.toarray() if sp.issparse(part) else part, np.float32)
        if len(dense) < _BATCH:
            dense = np.concatenate([dense, np.zeros((_BATCH - len(dense), dense.shape[1]), np.float32)])
        out[start : start + _BATCH] = np.asarray(function(auto, dense))[: len(out) - start]
    return out


def encode_blocks(auto: Autoencoder, rows: Rows, size: int = 8 * _BATCH) -> Iterator[Float[np.ndarray, "block latent"]]:
    """Standardised latents of consecutive blocks of ``size`` cells; only one block is ever in memory."""
    for block in rows.blocks(size):
        yield _in_batches(_encode, auto, block, auto.latent_mean.shape[0])


def encode_all(auto: Autoencoder, x: Any) -> Float[np.ndarray, "cells latent"]:
    """Standardised latents of any number of cells, dense, CSR or rows on disk ``[cells, genes]``, in host memory."""
    if isinstance(x, Rows):
        return np.concatenate([np.empty((0, auto.latent_mean.shape[0]), np.float32), *encode_blocks(auto, x)])
    return _in_batches(_encode, auto, x, auto.latent_mean.shape[0])


def decode_all(auto: Autoencoder, z: Float[np.ndarray, "cells latent"]) -> Float[np.ndarray, "cells genes"]:
    """Log-expression of any number of standardised latents, in host memory."""
    return _in_batches(_decode, auto, z, auto.gene_mean.shape[0])
