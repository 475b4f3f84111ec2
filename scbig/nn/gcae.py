"""The Gene-Cluster-Aware Encoder: an autoencoder whose tokens are the gene modules (paper Eqs. 2-5)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from scbig.modules.module import Modules
from scbig.nn.attention import Attention, InducedBlock, Mlp, TransformerBlock

__all__ = ["GCAE", "Buffer", "GCAEConfig", "ModuleLayout"]


class Buffer(nnx.Variable):
    """An array that belongs to the network but is not trained."""


@dataclass(frozen=True)
class GCAEConfig:
    """The autoencoder's architecture."""

    width: int = 256  # D
    depth: int = 3  # L, blocks in the encoder and again in the decoder
    heads: int = 8
    inducing: int = 8  # M, learnable points per block
    latent: int = 50  # Z
    mlp_ratio: int = 2
    dropout: float = 0.1
    encoder: str = "induced"  # induced | transformer | mlp
    decoder: str = "induced"  # induced | transformer | mlp
    readout: str = "mean"  # mean (the paper's) | attention | pma | concat
    seeds: int = 4  # learned queries of the readout pma
    shared_projection: bool = False  # one projection for all modules, as the authors' code has it
    likelihood: str = "gaussian"  # gaussian | negative_binomial: decodes log-rates, and genes have a dispersion


@dataclass(frozen=True)
class ModuleLayout:
    """Where each module's genes stand in the panel, padded to the largest module.

    Attributes:
        index: positions in the gene panel, ``[modules, slots]``; 0 where padded.
        mask: which slots hold a gene, ``[modules, slots]``.
        guest: which slots hold a gene that is at home in another module, ``[modules, slots]``; None for no guests. Every
            gene is at home in exactly one slot: it is read in all of its slots, and written from its home alone.
        weight: what the gene of a slot is multiplied by when it is read, ``[modules, slots]``; None for 1.
    """

    index: Int[np.ndarray, "modules slots"]
    mask: Bool[np.ndarray, "modules slots"]
    guest: Bool[np.ndarray, "modules slots"] | None = None
    weight: Float[np.ndarray, "modules slots"] | None = None

    @classmethod
    def of(cls, modules: Modules) -> ModuleLayout:
        """That of modules; of soft ones with every gene also in its second module, each by its share."""
        if modules.extra is None:
            index, mask = modules.layout()
            return cls(index.astype(np.int32), mask)
        index, mask = modules.layout(overlapping=True)
        guest = mask & (modules.module[index] != np.arange(len(index))[:, None])
        share = modules.weight[index]
        weight = np.where(mask, np.where(guest, 1.0 - share, share), 0.0).astype(np.float32)
        return cls(index.astype(np.int32), mask, guest, weight)

    @property
    def home(self) -> Bool[np.ndarray, "modules slots"]:
        """Slots of genes that are at home there, without columns that hold none."""
        home = self.mask if self.guest is None else self.mask & ~self.guest
        return home[:, : int(np.flatnonzero(home.any(axis=0))[-1]) + 1]

    @property
    def n_genes(self) -> int:
        """Genes in the panel."""
        return int(self.home.sum())

    @property
    def slot_of_gene(self) -> Int[np.ndarray, " genes"]:
        """The flat slot of ``home`` in which each gene stands."""
        home = self.home
        slots = np.empty(self.n_genes, np.int32)
        slots[self.index[:, : home.shape[1]][home]] = np.flatnonzero(home.ravel())
        return slots


def _blocks(kind: str, config: GCAEConfig, rngs: nnx.Rngs):
    def block() -> InducedBlock | TransformerBlock:
        if kind == "induced":
            return InducedBlock(
                config.width, config.heads, config.inducing, config.mlp_ratio, config.dropout, rngs=rngs
            )
        return TransformerBlock(config.width, config.heads, config.mlp_ratio, config.dropout, rngs=rngs)

    if kind not in ("induced", "transformer"):
        raise ValueError(f"no blocks called {kind!r}: induced, transformer or mlp")
    return nnx.List([block() for _ in range(config.depth)])


class _ModulePrior(nnx.Module):
    """What is known of each module before any cell is seen: LayerNorm of the projected mean gene embedding."""

    def __init__(self, dim: int, width: int, *, rngs: nnx.Rngs):
        self.project = nnx.Linear(dim, width, use_bias=False, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, summary, known):
        # A module without any known gene gets no prior, not the prior of a zero vector.
        return jnp.where(known[:, None], self.norm(self.project(summary)), 0.0)


class _AttentionPool(nnx.Module):
    """The average of the tokens by weights that one learned query gives them."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.query = nnx.Linear(width, 1, use_bias=False, rngs=rngs)

    def __call__(self, tokens, used):
        logits = self.query(self.norm(tokens))[..., 0]
        weights = jax.nn.softmax(jnp.where(used, logits, -jnp.inf), axis=-1)
        return jnp.einsum("bk,bkd->bd", weights, tokens)


class _MultiheadPool(nnx.Module):
    """Pooling by multi-head attention: learned seeds attend to the tokens (Lee et al. 2019, Set Transformer, Eq. 11).

    ``S' = S + Attn(S, tokens)``, ``S'' = S' + MLP(S')``, pre-norm as the blocks are; the seeds are concatenated.
    """

    def __init__(self, config: GCAEConfig, *, rngs: nnx.Rngs):
        width = config.width
        # Alike from the start, seeds would stay alike: wider than the inducing points, which blocks tell apart.
        self.seeds = nnx.Param(jax.random.normal(rngs.params(), (1, config.seeds, width)))
        self.attention = Attention(width, config.heads, rngs=rngs)
        self.mlp = Mlp(width, config.mlp_ratio, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(3)])

    def __call__(self, tokens, used):
        seeds = jnp.broadcast_to(self.seeds[...], (tokens.shape[0], *self.seeds[...].shape[1:]))
        moved, _ = self.attention(self.norms[0](seeds), self.norms[1](tokens), used)
        seeds = seeds + moved
        seeds = seeds + self.mlp(self.norms[2](seeds))
        return seeds.reshape(tokens.shape[0], -1)


def _new_pool(config: GCAEConfig, n_modules: int, rngs: nnx.Rngs) -> tuple[nnx.Module | None, int]:
    """What the readout needs to bring tokens together, and how many numbers that gives."""
    if config.readout == "attention":
        return _AttentionPool(config.width, rngs=rngs), config.width
    if config.readout == "pma":
        return _MultiheadPool(config, rngs=rngs), config.seeds * config.width
    if config.readout not in ("mean", "concat"):
        raise ValueError(f"no readout called {config.readout!r}: mean, attention, pma or concat")
    return None, config.width if config.readout == "mean" else n_modules * config.width


class GCAE(nnx.Module):
    """Expression, centred by the training mean, to a latent and back.

    With the negative binomial likelihood what comes back are log-rates, less those of the training mean.

    Args:
        config: the architecture.
        layout: genes of each module.
        summary: mean embedding of each module's known genes, ``[modules, dims]``, or None.
        known: modules with at least one known gene, ``[modules]``, or None.
        rngs: stream ``params`` for the initial weights.
    """

    def __init__(
        self,
        config: GCAEConfig,
        layout: ModuleLayout,
        summary: Float[np.ndarray, "modules dims"] | None = None,
        known: Bool[np.ndarray, " modules"] | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        n_modules, n_slots = layout.index.shape
        self.shape = (n_modules, n_slots)
        self.index = Buffer(jnp.asarray(layout.index, jnp.int32))
        self.mask = Buffer(jnp.asarray(layout.mask))
        self.weight = None if layout.weight is None else Buffer(jnp.asarray(layout.weight, jnp.float32))
        self.slots = Buffer(jnp.asarray(layout.slot_of_gene, jnp.int32))
        n_written = layout.home.shape[1]
        width, tokens = config.width, 1 if config.shared_projection else n_modules
        if summary is None:
            self.encoder_prior = self.decoder_prior = None
        else:
            self.summary = Buffer(jnp.asarray(summary, jnp.float32))
            self.known = Buffer(jnp.asarray(known))
            self.encoder_prior = _ModulePrior(summary.shape[1], width, rngs=rngs)
            self.decoder_prior = _ModulePrior(summary.shape[1], width, rngs=rngs)

        lecun = nnx.initializers.lecun_normal(batch_axis=0)
        if config.encoder == "mlp":
            self.encoder_in = nnx.Linear(layout.n_genes, 2 * width, rngs=rngs)
            self.encoder_mid = nnx.Linear(2 * width, width, rngs=rngs)
            pooled = width
        else:
            self.project_in = nnx.Param(lecun(rngs.params(), (tokens, n_slots, width)))
            self.bias_in = nnx.Param(jnp.zeros((tokens, width)))
            self.encoder_blocks = _blocks(config.encoder, config, rngs)
            self.pool, pooled = _new_pool(config, n_modules, rngs)
        self.readout_norm = nnx.LayerNorm(pooled, rngs=rngs)
        self.readout = nnx.Linear(pooled, config.latent, rngs=rngs)

        if config.decoder == "mlp":
            self.decoder_in = nnx.Linear(config.latent, width, rngs=rngs)
            self.decoder_mid = nnx.Linear(width, 2 * width, rngs=rngs)
            self.decoder_out = nnx.Linear(2 * width, layout.n_genes, rngs=rngs)
        else:
            self.expand = nnx.Param(lecun(rngs.params(), (tokens, config.latent, width)))
            self.module_embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (n_modules, width)))
            self.decoder_blocks = _blocks(config.decoder, config, rngs)
            self.head_norm = nnx.LayerNorm(width, rngs=rngs)
            self.project_out = nnx.Param(lecun(rngs.params(), (tokens, width, n_written)))
            self.bias_out = nnx.Param(jnp.zeros((n_modules, n_written)))
        if config.likelihood == "negative_binomial":
            # Departure from the log inverse dispersion that training begins with.
            self.dispersion = nnx.Param(jnp.zeros(layout.n_genes))
        elif config.likelihood != "gaussian":
            raise ValueError(f"no likelihood called {config.likelihood!r}: gaussian or negative_binomial")

    def encode(
        self, x: Float[Array, "cells genes"], key: jax.Array | None = None
    ) -> tuple[Float[Array, "cells latent"], list[dict[str, Array]]]:
        """Latents of centred log-expression, and the attention maps of each block.

        Args:
            x: log-expression minus the training mean.
            key: turns dropout on.
        """
        if self.config.encoder == "mlp":
            hidden = nnx.gelu(self.encoder_mid(nnx.gelu(self.encoder_in(x))))
            return self.readout(self.readout_norm(hidden)), []
        x_modules = jnp.where(self.mask[...], x[:, self.index[...]], 0.0)
        if self.weight is not None:
            x_modules = x_modules * self.weight[...][None]
        tokens = jnp.einsum("bks,ksd->bkd", x_modules, self._per_module(self.project_in)) + self.bias_in[...][None]
        if self.encoder_prior is not None:
            tokens = tokens + self.encoder_prior(self.summary[...], self.known[...])[None]
        tokens, maps, used = self._run(self.encoder_blocks, tokens, key)
        if self.config.readout == "mean":
            pooled = jnp.sum(tokens * used[:, :, None], axis=1) / jnp.sum(used)
        elif self.pool is not None:
            pooled = self.pool(tokens, used)
        else:
            pooled = (tokens * used[:, :, None]).reshape(tokens.shape[0], -1)
        return self.readout(self.readout_norm(pooled)), maps

    def decode(self, z: Float[Array, "cells latent"], key: jax.Array | None = None) -> Float[Array, "cells genes"]:
        """Centred log-expression of latents; ``key`` turns dropout on."""
        if self.config.decoder == "mlp":
            return self.decoder_out(nnx.gelu(self.decoder_mid(nnx.gelu(self.decoder_in(z)))))
        tokens = jnp.einsum("bz,kzd->bkd", z, self._per_module(self.expand)) + self.module_embedding[...][None]
        if self.decoder_prior is not None:
            tokens = tokens + self.decoder_prior(self.summary[...], self.known[...])[None]
        tokens, _, _ = self._run(self.decoder_blocks, tokens, key)
        slots = jnp.einsum("bkd,kds->bks", self.head_norm(tokens), self._per_module(self.project_out))
        slots = slots + self.bias_out[...][None]
        return slots.reshape(z.shape[0], -1)[:, self.slots[...]]

    def __call__(self, x: Float[Array, "cells genes"], key: jax.Array | None = None) -> Float[Array, "cells genes"]:
        """The reconstruction of centred log-expression."""
        keys = (None, None) if key is None else jax.random.split(key)
        return self.decode(self.encode(x, keys[0])[0], keys[1])

    def _per_module(self, weights):
        value = weights[...]
        return jnp.broadcast_to(value, (self.shape[0], *value.shape[1:]))

    def _run(self, blocks, tokens, key):
        # A module may be empty where clusters are not balanced; its token is then no one's neighbour.
        used = jnp.any(self.mask[...], axis=1)[None]
        maps = []
        for number, block in enumerate(blocks):
            tokens, found = block(tokens, used, None if key is None else jax.random.fold_in(key, number))
            maps.append(found)
        return tokens, maps, used
