"""A trained GCAE with what belongs to it: the genes, their training mean and the scale of its latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

from scbig import losses, rng
from scbig.data.store import Rows
from scbig.nn.gcae import GCAE, GCAEConfig, ModuleLayout
from scbig.training.checkpoint import load_params, save_params

__all__ = [
    "Autoencoder", "Counts", "decode_all", "depths", "encode_all", "encode_blocks", "load", "new", "sample_all", "save",
    "tree_of",
]  # fmt: skip

_BATCH = 512
_STRIDE = 10.0  # of dispersions: as large as rates in number, they have further to go
_DISPERSIONS = -4.0, 6.0  # least and largest log inverse dispersion


@partial(jax.tree_util.register_dataclass, data_fields=["log_rate", "log_dispersion", "depth"], meta_fields=[])
@dataclass(frozen=True)
class Counts:
    """What an autoencoder of counts knows of the training cells beside its network.

    Attributes:
        log_rate: log of the mean count per unit of depth, ``[genes]``; the decoder gives departures from it.
        log_dispersion: log inverse dispersion around that mean, where training begins, ``[genes]``.
        depth: the median depth, in units of the sum that counts are scaled to; that of expected log-expression.
    """

    log_rate: Float[Array, " genes"]
    log_dispersion: Float[Array, " genes"]
    depth: Float[Array, ""]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "buffers", "gene_mean", "latent_mean", "latent_scale", "counts"],
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
        counts: with the negative binomial likelihood; None where expression itself is decoded.
    """

    graph: Any
    params: Any
    buffers: Any
    gene_mean: Float[Array, " genes"]
    latent_mean: Float[Array, " latent"]
    latent_scale: Float[Array, ""]
    counts: Counts | None = None

    def network(self) -> GCAE:
        """The network with its parameters."""
        return nnx.merge(self.graph, self.params, self.buffers)

    def encode(self, x: Float[Array, "cells genes"]) -> Float[Array, "cells latent"]:
        """Standardised latents of log-expression."""
        raw, _ = self.network().encode(x - self.gene_mean[None])
        return (raw - self.latent_mean[None]) / self.latent_scale

    def decode(self, z: Float[Array, "cells latent"]) -> Float[Array, "cells genes"]:
        """Log-expression of standardised latents; of counts, that to be expected of a cell of median depth."""
        if self.counts is None:
            return self._decoded(z) + self.gene_mean[None]
        depth = jnp.broadcast_to(self.counts.depth, z.shape[:1])
        return losses.expected_log(self.log_rates(z), self.inverse_dispersion(), depth)

    def log_rates(self, z: Float[Array, "cells latent"]) -> Float[Array, "cells genes"]:
        """Log of the counts to be expected of standardised latents per unit of depth."""
        return self._decoded(z) + self.counts.log_rate[None]

    def inverse_dispersion(self) -> Float[Array, " genes"]:
        """Inverse dispersion of the counts of each gene around their rates."""
        return dispersion_of(self.params, self.counts)

    def _decoded(self, z):
        return self.network().decode(z * self.latent_scale + self.latent_mean[None])


def dispersion_of(params: Any, counts: Counts) -> Float[Array, " genes"]:
    """Inverse dispersion of each gene, by parameters of the network."""
    return jnp.exp(jnp.clip(counts.log_dispersion + _STRIDE * params["dispersion"][...], *_DISPERSIONS))


def depths(size: Float[np.ndarray, " cells"], about: Mapping[str, Any]) -> Float[np.ndarray, " cells"]:
    """Depth of cells in units of the sum that counts are scaled to: log-expression is ``log(1 + count / depth)``.

    Args:
        size: ``obs["size_factor"]`` of a prepared screen.
        about: its ``uns["scbig"]``.
    """
    return (size / float(about["target_sum"])).astype(np.float32)


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
    zeros, counts = jnp.zeros(layout.n_genes), None
    if config.likelihood == "negative_binomial":
        counts = Counts(zeros, zeros, jnp.ones(()))
    return Autoencoder(graph, params, buffers, zeros, jnp.zeros(config.latent), jnp.ones(()), counts)


def tree_of(auto: Autoencoder) -> dict[str, Any]:
    """What is kept of an autoencoder: parameters, means and scale."""
    tree = {
        "params": auto.params,
        "gene_mean": auto.gene_mean,
        "latent_mean": auto.latent_mean,
        "latent_scale": auto.latent_scale,
    }
    # A dictionary: Orbax knows no classes of ours.
    return tree if auto.counts is None else tree | {"counts": vars(auto.counts)}


def save(auto: Autoencoder, folder: Path) -> None:
    """Writes parameters, means and scale."""
    save_params(folder, tree_of(auto))


def load(like: Autoencoder, folder: Path) -> Autoencoder:
    """Reads what :func:`save` wrote into an untrained autoencoder of the same architecture."""
    found = load_params(folder, tree_of(like))
    if like.counts is not None:
        found["counts"] = Counts(**found["counts"])
    return replace(like, **found)


@jax.jit
def _encode(auto, x):
    return auto.encode(x)


@jax.jit
def _decode(auto, z):
    return auto.decode(z)


@jax.jit
def _log_rates(auto, z):
    return auto.log_rates(z)


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


def sample_all(
    auto: Autoencoder,
    z: Float[np.ndarray, "cells latent"],
    depth: Float[np.ndarray, " cells"],
    generators: Sequence[np.random.Generator],
) -> Float[np.ndarray, "cells genes"]:
    """Log-expression of counts drawn for any number of standardised latents, in host memory.

    Args:
        auto: an autoencoder of counts.
        z: the latents.
        depth: of each cell, in units of the sum that counts are scaled to.
        generators: of each cell, so that its draws do not depend on its company.
    """
    rates = np.exp(_in_batches(_log_rates, auto, z, auto.gene_mean.shape[0]))
    return losses.drawn(rates, np.asarray(auto.inverse_dispersion()), depth, generators)
