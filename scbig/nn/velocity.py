"""The conditional velocity field of the flow in latent space (design 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from scbig.nn.condition import ConditionEncoder, ConditionEncoderConfig, Conditions, Encoded

__all__ = ["FlowNet", "FlowNetConfig", "VelocityField", "time_features"]


def time_features(t: Float[Array, ...], n_frequencies: int) -> Float[Array, "... features"]:
    """Fourier features of t in [0, 1]: cosines and sines of geometrically spaced frequencies up to ``100 π``."""
    frequencies = jnp.pi * jnp.logspace(-1.0, 2.0, n_frequencies)
    angles = jnp.expand_dims(t, -1) * frequencies.reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@dataclass(frozen=True)
class FlowNetConfig:
    """The velocity field's architecture."""

    latent: int = 50
    width: int = 1024
    depth: int = 2
    frequencies: int = 32
    dropout: float = 0.1
    interaction_rank: int = 16  # of what several perturbations do beyond their sum; 0: nothing


class VelocityField(nnx.Module):
    """What each perturbation does alone, added up, and what they do together beyond that.

    ``v(z, t, {A, B}) = F(z, t, A) + F(z, t, B) + G(z, t, {A, B})``. F is a residual MLP over the latent, each layer
    modulated (FiLM) by time and one perturbation. G, present only where there are several, is a matrix of low rank
    given by the pooled condition and applied to features of the cell; it starts at zero. So singles alone determine
    the first guess for a pair, control stands still, and pairs are learned as departures from the sum.
    """

    def __init__(self, config: FlowNetConfig, condition_width: int, *, rngs: nnx.Rngs):
        self.config = config
        width, depth, rank = config.width, config.depth, config.interaction_rank
        self.enter = nnx.Linear(config.latent, width, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(depth + 1)])
        self.by_time = nnx.Linear(2 * config.frequencies, 2 * depth * width, use_bias=False, rngs=rngs)
        self.by_token = nnx.Linear(condition_width, 2 * depth * width, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)
        zeros = nnx.initializers.zeros
        self.leave = nnx.Linear(width, config.latent, kernel_init=zeros, rngs=rngs)
        if rank:
            self.features = nnx.Linear(width, rank, rngs=rngs)
            self.together = nnx.Linear(condition_width, rank * config.latent, kernel_init=zeros, rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "conditions cells latent"],
        t: Float[Array, (conditions #cells
)],
        condition: Encoded,
        key: jax.Array | None = None,
    ) -> Float[Array, "conditions cells latent"]:
        """Velocity of each cell; ``key`` turns dropout on.

        The condition's share of the modulation is computed once per condition, not once per cell.
        """
        depth = self.config.depth
        by_time = self.by_time(time_features(t, self.config.frequencies))[:, None]
        modulation = self.by_token(nnx.silu(condition.tokens))[:, :, None] + by_time
        scales_shifts = jnp.split(modulation, 2 * depth, axis=-1)
        hidden = self.enter(z)[:, None]  # [conditions, tokens, cells, width]
        for number in range(depth):
            scale, shift = scales_shifts[2 * number : 2 * number + 2]
            moved = nnx.silu(self.layers[number](self.norms[number](hidden)) * (1.0 + scale) + shift)
            layer_key = None if key is None else jax.random.fold_in(key, number)
            hidden = hidden + self.dropout(moved, deterministic=key is None, rngs=layer_key)
        present = condition.present.astype(z.dtype)
        hidden = jnp.einsum("ctnw,ct->cnw", self.norms[depth](hidden), present)
        count = jnp.sum(present, axis=1)[:, None, None]
        velocity = hidden @ self.leave.kernel[...] + count * self.leave.bias[...][None, None]
        if self.config.interaction_rank and condition.tokens.shape[1] > 1:
            matrix = self.together(condition.pooled).reshape(z.shape[0], -1, self.config.latent)
            joint = jnp.einsum("cnr,crl->cnl", jnp.tanh(self.features(hidden)), matrix)
            velocity = velocity + jnp.where(count > 1, joint, 0.0)
        return velocity


class FlowNet(nnx.Module):
    """Condition encoder and velocity field: everything that stage 2 trains."""

    def __init__(
        self,
        config: FlowNetConfig,
        condition_config: ConditionEncoderConfig,
        source_dims: dict[str, int],
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder = ConditionEncoder(condition_config, source_dims, rngs=rngs)
        self.velocity = VelocityField(config, condition_config.width, rngs=rngs)

    def guided(
        self,
        z: Float[Array, "conditions cells latent"],
        t: Float[Array, (conditions #cells
)],
        condition: Encoded,
        scale: float = 1.0,
    ) -> Float[Array, "conditions cells latent"]:
        """Classifier-free guidance: ``v_null + scale (v_condition − v_null)``; plain velocity at scale 1."""
        conditional = self.velocity(z, t, condition)
        if scale == 1.0:
            return conditional
        free = self.velocity(z, t, self.encoder.nothing(z.shape[0]))
        return free + scale * (conditional - free)

    def encode(self, conditions: Conditions, key: jax.Array | None = None) -> Encoded:
        """The conditions as the velocity field reads them."""
        return self.encoder(conditions, key)
