"""The condition encoder: a set of perturbations, each known from one or more masked sources, to one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from scbig.nn.attention import Mlp

__all__ = ["ConditionEncoder", "ConditionEncoderConfig", "Conditions", "Encoded"]


class Conditions(NamedTuple):
    """What the encoder is told about each condition; a pytree of arrays.

    Attributes:
        sources: per source, one vector per perturbation, ``[conditions, tokens, dims]``; zero where not known.
        known: per source, whether that vector exists, ``[conditions, tokens]``.
        present: whether there is a perturbation in that place at all, ``[conditions, tokens]``.
        dose: log1p of the dose, 0 where there is none, ``[conditions, tokens]``.
        context: number of the cell line or cell type, ``[conditions]``.
    """

    sources: dict[str, Float[Array, "conditions tokens dims"]]
    known: dict[str, Bool[Array, "conditions tokens"]]
    present: Bool[Array, "conditions tokens"]
    dose: Float[Array, "conditions tokens"]
    context: Int[Array, " conditions"]

    def take(self, index: Int[Array, " chosen"]) -> Conditions:
        """The conditions at the given places."""
        return jax.tree.map(lambda leaf: leaf[index], self)


@dataclass(frozen=True)
class ConditionEncoderConfig:
    """The condition encoder's architecture."""

    width: int = 256  # of a token and of the result
    n_contexts: int = 1
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


class ConditionEncoder(nnx.Module):
    """Each perturbation's token is the mean over the sources that know it; the set is pooled by attention.

    The velocity field adds up what the tokens do alone, which a convex mix of tokens could not express; the pool lets
    one perturbation change what another does. Both ignore the order of the set.
    """

    def __init__(self, config: ConditionEncoderConfig, source_dims: dict[str, int], *, rngs: nnx.Rngs):
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
        weight = known.astype(projected.dtype)
        weight = weight / jnp.maximum(jnp.sum(weight, axis=-1, keepdims=True), 1.0)
        tokens = jnp.einsum("ctsw,cts->ctw", projected, weight) + self.dose(conditions.dose[..., None])
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
