"""The condition encoder: a set of perturbations, each known from one or more masked sources, to one vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from scbig.errors import InputError
from scbig.nn.attention import Mlp
from scbig.nn.gcae import Buffer

__all__ = ["Bank", "ConditionEncoder", "ConditionEncoderConfig", "Conditions", "Encoded", "Neighbours"]

_SHARPNESS = 10.0  # inverse temperature of the kernel before training: 0.1 in cosine similarity is a factor of e


class Conditions(NamedTuple):
    """What the encoder is told about each condition; a pytree of arrays.

    Attributes:
        sources: per source, one vector per perturbation, ``[conditions, tokens, dims]``; zero where not known.
        known: per source, whether that vector exists, ``[conditions, tokens]``.
        present: whether there is a perturbation in that place at all, ``[conditions, tokens]``.
        dose: log1p of the dose, 0 where there is none, ``[conditions, tokens]``.
        context: number of the cell line or cell type, ``[conditions]``.
        own: row of each perturbation in the bank, −1 where it was not trained on, ``[conditions, tokens]``; only the
            kernel asks for it.
    """

    sources: dict[str, Float[Array, "conditions tokens dims"]]
    known: dict[str, Bool[Array, "conditions tokens"]]
    present: Bool[Array, "conditions tokens"]
    dose: Float[Array, "conditions tokens"]
    context: Int[Array, " conditions"]
    own: Int[Array, "conditions tokens"] | None = None

    def take(self, index: Int[Array, " chosen"]) -> Conditions:
        """The conditions at the given places."""
        return jax.tree.map(lambda leaf: leaf[index], self)


class Bank(NamedTuple):
    """The training perturbations' own vectors, which the kernel compares a perturbation with; a pytree of arrays.

    Attributes:
        sources: per source, ``[trained, dims]``; zero where not known.
        known: per source, whether that vector exists, ``[trained]``.
    """

    sources: dict[str, Float[Array, "trained dims"]]
    known: dict[str, Bool[Array, " trained"]]


@dataclass(frozen=True)
class ConditionEncoderConfig:
    """The condition encoder's architecture."""

    width: int = 256  # of a token and of the result
    n_contexts: int = 1
    fusion: str = "mean"  # of the sources that know a perturbation: mean | attention
    kernel: bool = False  # a residual path from the training perturbations that lie near by
    source_dropout: float = 0.1  # chance that a source is hidden for a condition in training
    null_dropout: float = 0.0  # chance that the whole condition is replaced by the learned null (guidance)


class Encoded(NamedTuple):
    """Conditions as the velocity field reads them; a pytree of arrays.

    Attributes:
        tokens: one vector per perturbation, ``[conditions, tokens, width]``.
        present: which of them exist, ``[conditions, tokens]``.
        pooled: one vector per condition, for what its perturbations do together, ``[conditions, width]``.
    """

    tokens: Float[Array, "conditions tokens width"]
    present: Bool[Array, "conditions tokens"]
    pooled: Float[Array, "conditions width"]


class Neighbours(nnx.Module):
    """A kernel on embeddings: a perturbation reads the learned values of the training perturbations that are like it.

    The weights are a softmax over the bank of the cosine similarity times a learned sharpness, averaged over the sources
    that know both. A training perturbation never reads its own value, in training or after it: what it is given is made
    as that of a perturbation never seen. Values start at zero, so that the path is silent until something is learned.
    """

    def __init__(self, width: int, bank: Bank):
        self.names = tuple(sorted(bank.sources))
        unit = [_unit(jnp.asarray(bank.sources[name], jnp.float32)) for name in self.names]
        self.rows = nnx.List([Buffer(each) for each in unit])
        self.known = Buffer(jnp.stack([jnp.asarray(bank.known[name]) for name in self.names], axis=-1))
        self.sharpness = nnx.Param(jnp.full(len(self.names), math.log(_SHARPNESS)))
        self.values = nnx.Param(jnp.zeros((self.known[...].shape[0], width)))

    def __call__(
        self, conditions: Conditions, known: dict[str, Bool[Array, "conditions tokens"]]
    ) -> Float[Array, "conditions tokens width"]:
        """What each perturbation reads; zeros where it shares no source with the bank.

        Args:
            conditions: with their places in the bank.
            known: which sources may be read, per source.
        """
        told = jnp.stack([known[name] for name in self.names], axis=-1)[:, :, None, :]
        both = (told & self.known[...][None, None]).astype(jnp.float32)  # [C, T, trained, sources]
        cosine = jnp.stack(
            [_unit(conditions.sources[name]) @ rows[...].T for name, rows in zip(self.names, self.rows, strict=True)],
            axis=-1,
        )
        shared = jnp.sum(both, axis=-1)
        logits = jnp.sum(both * cosine * jnp.exp(self.sharpness[...])[None, None, None], axis=-1)
        logits = logits / jnp.maximum(shared, 1.0)
        places = jnp.arange(self.known[...].shape[0])[None, None]
        allowed = (shared > 0) & (conditions.own[..., None] != places)
        # The floor is finite, so that a token with nothing to read has defined weights, which are then dropped.
        weights = jax.nn.softmax(jnp.where(allowed, logits, jnp.finfo(logits.dtype).min), axis=-1)
        return jnp.where(allowed, weights, 0.0) @ self.values[...]


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


class ConditionEncoder(nnx.Module):
    """Each perturbation's token is a mean over the sources that know it; the set is pooled by attention.

    The mean weighs all sources alike, or, with ``fusion="attention"``, by how well their projections answer a query from
    a learned vector and the context; the query starts at zero, where the two agree. With ``kernel``, a token adds what
    it reads of the training perturbations near by (:class:`Neighbours`), once :meth:`attach` has told it of them.

    The velocity field adds up what the tokens do alone, which a convex mix of tokens could not express; the pool lets
    one perturbation change what another does. Both ignore the order of the set.
    """

    def __init__(self, config: ConditionEncoderConfig, source_dims: dict[str, int], *, rngs: nnx.Rngs):
        if config.fusion not in ("mean", "attention"):
            raise InputError(f"sources are brought together by 'mean' or 'attention', not '{config.fusion}'")
        self.config = config
        self.names = tuple(sorted(source_dims))
        width = config.width
        self.project = nnx.List([nnx.Linear(source_dims[name], width, rngs=rngs) for name in self.names])
        self.dose = nnx.Linear(1, width, use_bias=False, rngs=rngs)
        # From zero, so that a context in which nothing was perturbed in training stays neutral.
        zeros = nnx.initializers.zeros
        self.context = nnx.Embed(config.n_contexts, width, embedding_init=zeros, rngs=rngs)
        self.token_norm = nnx.LayerNorm(width, rngs=rngs)
        self.token_mlp = Mlp(width, 2, rngs=rngs)
        self.score = nnx.Linear(width, 1, rngs=rngs)
        self.pool_norm = nnx.LayerNorm(2 * width, rngs=rngs)
        self.pool = nnx.Linear(2 * width, width, rngs=rngs)
        self.null = nnx.Param(jnp.zeros(width))
        if config.fusion == "attention":
            self.query = nnx.Param(jnp.zeros(width))
            self.ask = nnx.Linear(width, width, use_bias=False, rngs=rngs)
            self.key_norm = nnx.LayerNorm(width, rngs=rngs)
            self.key = nnx.Linear(width, width, use_bias=False, rngs=rngs)
            self.kind = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (len(self.names), width)))

    def attach(self, bank: Bank) -> None:
        """Adds the kernel over the training perturbations; the sources of ``bank`` are among the encoder's."""
        self.neighbours = Neighbours(self.config.width, bank)

    def __call__(self, conditions: Conditions, key: jax.Array | None = None) -> Encoded:
        """Encodes conditions.

        Args:
            conditions: what is known of each.
            key: turns source dropout and null dropout on.
        """
        known = jnp.stack([conditions.known[name] for name in self.names], axis=-1)  # [C, T, sources]
        if key is not None:
            source_key, null_key = jax.random.split(key)
            shape = (known.shape[0], 1, known.shape[2])
            kept = known & (jax.random.uniform(source_key, shape) >= self.config.source_dropout)
            # A perturbation is never left without any source: that would look like another one.
            known = jnp.where(jnp.any(kept, axis=-1, keepdims=True), kept, known)
        projected = jnp.stack(
            [layer(conditions.sources[name]) for layer, name in zip(self.project, self.names, strict=True)], axis=2
        )
        weight = self._weights(projected, known, conditions.context)
        tokens = jnp.einsum("ctsw,cts->ctw", projected, weight) + self.dose(conditions.dose[..., None])
        if self.config.kernel:
            told = {name: known[..., place] for place, name in enumerate(self.names)}
            tokens = tokens + self.neighbours(conditions, told)
        tokens = tokens + self.context(conditions.context)[:, None, :]
        tokens = tokens + self.token_mlp(self.token_norm(tokens))
        present = conditions.present
        encoded = Encoded(tokens * present[..., None], present, self._pool(tokens, present))
        if key is not None and self.config.null_dropout > 0:
            hidden = jax.random.uniform(null_key, (tokens.shape[0],)) < self.config.null_dropout
            encoded = jax.tree.map(
                lambda null, told: jnp.where(hidden.reshape(-1, *[1] * (told.ndim - 1)), null, told),
                self.nothing(*present.shape),
                encoded,
            )
        return encoded

    def _weights(self, projected, known, context):
        """Weights of the sources of every token, which add up to one over those known."""
        if self.config.fusion == "mean":
            weight = known.astype(projected.dtype)
            return weight / jnp.maximum(jnp.sum(weight, axis=-1, keepdims=True), 1.0)
        query = self.query[...][None] + self.ask(self.context(context))
        key = self.key(self.key_norm(projected)) + self.kind[...][None, None]
        logits = jnp.einsum("ctsw,cw->cts", key, query) / math.sqrt(self.config.width)
        logits = jnp.where(known, logits, jnp.finfo(logits.dtype).min)
        return jnp.where(known, jax.nn.softmax(logits, axis=-1), 0.0)

    def _pool(self, tokens, present):
        # The floor is finite so that a condition without any perturbation (control) has defined weights.
        logits = jnp.where(present[..., None], self.score(tokens), jnp.finfo(tokens.dtype).min)
        tokens = jnp.where(present[..., None], tokens, 0.0)
        attended = jnp.sum(jax.nn.softmax(logits, axis=1) * tokens, axis=1)
        return self.pool(self.pool_norm(jnp.concatenate([attended, jnp.sum(tokens, axis=1)], axis=-1)))

    def nothing(self, n: int, tokens: int = 1) -> Encoded:
        """The learned stand-in for "no condition given", ``n`` times: one token, and nothing to interact with."""
        width = self.config.width
        first = (jnp.arange(tokens) == 0)[None, :]
        return Encoded(
            jnp.broadcast_to(first[..., None] * self.null[...][None, None], (n, tokens, width)),
            jnp.broadcast_to(first, (n, tokens)),
            jnp.zeros((n, width)),
        )
