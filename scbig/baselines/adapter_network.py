"""The network of the adapter baseline, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from scbig import losses
from scbig.baselines.latent_additive_network import GeneSets
from scbig.nn.adapter import AdapterConfig, Neighbourhood, PerturbationAdapter
from scbig.rng import generator, key

__all__ = ["AdapterNet", "Fixed", "Given", "Schedule", "Targets", "predict", "quadratic", "train"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Given:
    """What the network is told of each condition: its perturbed genes, and how much they act on each token."""

    sets: GeneSets
    touch: Float[Array | np.ndarray, "rows tokens"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
    """The tokens, which are not learned, and the mask; no neighbours mean no mask."""

    tokens: Float[Array | np.ndarray, "tokens dims"]
    neighbours: Neighbourhood | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Targets:
    """The weighted squared error over genes as a quadratic function of the coefficients of a module's patterns.

    Attributes:
        uniform: coefficients of the effects, ``[rows, tokens, patterns]``.
        gram: of the patterns under the gene weights, ``[rows, tokens, patterns, patterns]``; without a last axis to
            speak of (size 0) where weights stay uniform.
        weighted: products of patterns and effects under the gene weights, ``[rows, tokens, patterns]``.
        weight: of the rows.
    """

    uniform: Float[Array | np.ndarray, "rows tokens patterns"]
    gram: Float[Array | np.ndarray, "rows tokens patterns weighed"]
    weighted: Float[Array | np.ndarray, "rows tokens patterns"]
    weight: Float[Array | np.ndarray, " rows"]


@dataclass(frozen=True)
class Schedule:
    """Adam with decoupled weight decay, a tenth of warm-up, then a cosine to zero."""

    learning_rate: float | int
    weight_decay: float | int
    epochs: int
    batch: int = 128
    adaptive: bool = True


class AdapterNet(nnx.Module):
    """Coefficients of every module's patterns: a plain network on the sum over perturbed genes, plus the adapter.

    The shared head of the adapter gives the uniform pattern of each token; a head of its own per token turns the adapter's
    state into the others. All heads start from zero: an untrained network predicts the mean of the training effects.

    Args:
        dims: of a gene's features.
        n_contexts: contexts trained on.
        shape: tokens, patterns per token, and dimensions of the tokens' vectors.
        width: of the hidden layers.
        latent: dimensions in which genes add up.
        dropout: on hidden layers.
        adapter: its architecture; None leaves it out.
        rngs: stream ``params`` for the initial weights.
    """

    def __init__(
        self,
        dims: int,
        n_contexts: int,
        shape: tuple[int, int, int],
        width: int,
        latent: int,
        dropout: float | int,
        adapter: AdapterConfig | None,
        *,
        rngs: nnx.Rngs,
    ):
        zeros = nnx.initializers.zeros
        self.n_contexts, self.shape = n_contexts, shape
        tokens, patterns, token_dims = shape
        self.enter = nnx.Linear(dims, width, rngs=rngs)
        self.encode = nnx.Linear(width, latent, use_bias=False, rngs=rngs)
        self.context = nnx.Embed(n_contexts, latent, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.expand = nnx.Linear(latent, width, rngs=rngs)
        self.skip = nnx.Linear(latent, tokens * patterns, use_bias=False, kernel_init=zeros, rngs=rngs)
        self.leave = nnx.Linear(width, tokens * patterns, kernel_init=zeros, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.adapted = adapter is not None
        if adapter is not None:
            self.adapter = PerturbationAdapter(adapter, token_dims, latent, n_out=0, rngs=rngs)
            self.shared = nnx.Linear(adapter.width, 1, use_bias=False, kernel_init=zeros, rngs=rngs)
            self.own = nnx.Param(jnp.zeros((tokens, adapter.width, patterns)))

    def __call__(
        self, given: Given, fixed: Fixed, key: jax.Array | None = None
    ) -> Float[Array, "rows tokens patterns"]:
        """Coefficients, as deviations from the mean; ``key`` turns dropout on."""
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        sets = given.sets
        each = self.encode(self._drop(nnx.gelu(self.enter(sets.features)), keys[0]))
        total = jnp.sum(jnp.where(sets.present[..., None], each, 0.0), axis=1)
        told = (sets.context < self.n_contexts)[:, None]
        total = total + jnp.where(told, self.context(jnp.minimum(sets.context, self.n_contexts - 1)), 0.0)
        hidden = self._drop(nnx.gelu(self.expand(total)), keys[1])
        out = (self.leave(hidden) + self.skip(total)).reshape(-1, *self.shape[:2])
        if not self.adapted:
            return out
        state = self.adapter(fixed.tokens, total, given.touch, fixed.neighbours, keys[2])
        out = out + jnp.einsum("rtw,twp->rtp", state, self.own[...])
        return out.at[..., 0].add(self.shared(state)[..., 0])

    def _drop(self, x, key):
        return self.dropout(x, deterministic=key is None, rngs=key)


def quadratic(
    found: Float[Array, "rows tokens patterns"], targets: Targets, share: Float[Array, ""] | float
) -> Float[Array, " rows"]:
    """Squared error summed over genes, under weights from uniform (share 0) to differential (1), less a constant."""
    plain = jnp.sum(jnp.square(found) - 2.0 * found * targets.uniform, axis=(1, 2))
    if not targets.gram.shape[-1]:
        return plain
    curved = jnp.einsum("rtp,rtpq,rtq->r", found, targets.gram, found)
    return (1.0 - share) * plain + share * (curved - 2.0 * jnp.sum(found * targets.weighted, axis=(1, 2)))


@partial(jax.jit, static_argnames=("graph", "schedule", "total"))
def _epoch(graph, schedule, total, carry, given, fixed, targets, batches, seed_key):
    """One pass over ``batches``, ``[steps, size]``; the carry is weights, moments, averaged weights and step."""
    adam, steps = optax.scale_by_adam(), batches.shape[0]

    def loss(params, rows, count):
        taken, wanted = jax.tree.map(lambda a: a[rows], (given, targets))
        found = nnx.merge(graph, params)(taken, fixed, jax.random.fold_in(seed_key, count))
        share = losses.scheduled_share(count / total) if schedule.adaptive else 0.0
        return jnp.sum(wanted.weight * quadratic(found, wanted, share)) / jnp.sum(wanted.weight)

    def step(carry, rows):
        params, moments, average, count = carry
        update, moments = adam.update(jax.grad(loss)(params, rows, count), moments)
        rate = schedule.learning_rate * jnp.minimum(
            10 * (count + 1) / total, 0.5 * (1 + jnp.cos(jnp.pi * count / total))
        )
        params = jax.tree.map(lambda p, u: p - rate * (u + schedule.weight_decay * p), params, update)
        average = jax.tree.map(lambda a, p: a + (p - a) / (5 * steps), average, params)
        return (params, moments, average, count + 1), None

    return jax.lax.scan(step, carry, batches)[0]


@partial(jax.jit, static_argnames="graph")
def _forward(graph, params, given, fixed):
    return nnx.merge(graph, params)(given, fixed)


def predict(member: tuple[Any, Any], given: Given, fixed: Fixed) -> Float[np.ndarray, "rows coefficients"]:
    """Coefficients of all patterns by a trained network, ``(graph, weights)``."""
    found = _forward(*member, given, fixed)
    return np.asarray(found, np.float64).reshape(found.shape[0], -1)


def train(
    make: Callable[[nnx.Rngs], AdapterNet],
    given: Given,
    fixed: Fixed,
    targets: Targets,
    rows: Int[np.ndarray, " some"],
    schedule: Schedule,
    seed: int,
    epochs: int,
    watch: Callable[[int, tuple[Any, Any]], None] | None = None,
) -> tuple[Any, Any]:
    """Graph and weights after some epochs, averaged over the last; ``watch(epoch, member)`` is called after each.

    Args:
        make: builds the untrained network.
        given: of all conditions.
        fixed: tokens and mask.
        targets: of all conditions; those not among ``rows`` are never read.
        rows: to train on.
        schedule: how.
        seed: of weights, batches and dropout.
        epochs: after which to stop.
        watch: looks at what there is.
    """
    graph, params = nnx.split(make(nnx.Rngs(params=key(seed, "baseline init"))))
    draw = generator(seed, "baseline batches")
    n = len(targets.weight)
    size = min(schedule.batch, max(16, n // 8), n)
    steps = -(-n // size)
    carry = (params, optax.scale_by_adam().init(params), params, jnp.zeros((), jnp.int32))
    rounds = -(-steps * size // len(rows))
    for epoch in range(epochs):
        order = np.concatenate([draw.permutation(rows) for _ in range(rounds)])[: steps * size].reshape(steps, size)
        total = schedule.epochs * steps
        carry = _epoch(graph, schedule, total, carry, given, fixed, targets, order, key(seed, "baseline dropout"))
        if watch is not None:
            watch(epoch + 1, (graph, carry[2]))
    return graph, carry[2]
