"""What a training loop carries from step to step: one pytree, saved and restored whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

__all__ = ["TrainState", "apply_gradients", "initial_state", "keep_best", "make_optimizer"]


class TrainState(NamedTuple):
    """State of one training loop.

    Attributes:
        step: updates made.
        params: trained parameters.
        ema: exponential moving average of the parameters.
        optimizer: optimiser state.
        best: the averaged parameters of the best evaluation so far.
        best_score: its score, lower is better; infinite before the first evaluation.
        best_step: when that was.
    """

    step: jax.Array
    params: Any
    ema: Any
    optimizer: Any
    best: Any
    best_score: jax.Array
    best_step: jax.Array


def make_optimizer(
    learning_rate: float, total: int, warmup: int, schedule: str, clip: float
) -> optax.GradientTransformation:
    """Adam with global-norm clipping (0: none) and a ``constant`` or ``cosine`` schedule after a linear warm-up."""
    if schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(total, warmup + 1))
    elif schedule == "constant":
        rate = optax.linear_schedule(0.0, learning_rate, warmup) if warmup else learning_rate
    else:
        raise ValueError(f"no schedule called {schedule!r}: constant or cosine")
    adam = optax.adam(rate)
    return optax.chain(optax.clip_by_global_norm(clip), adam) if clip > 0 else adam


def initial_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""

    # Each leaf needs its own buffer, since the training step donates all of them.
    def copy():
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=copy(),
        ema=copy(),
        optimizer=optimizer.init(params),
        best=copy(),
        best_score=jnp.asarray(jnp.inf, jnp.float32),
        best_step=jnp.zeros((), jnp.int32),
    )


def apply_gradients(
    state: TrainState, gradients: Any, optimizer: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    """One update of parameters, optimiser and average.

    The average's decay grows with the step, ``min(decay, (1+s)/(10+s))``, so that early averages do not remember the
    initial weights.
    """
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)
    return state._replace(step=state.step + 1, params=params, ema=ema, optimizer=optimizer_state)


def keep_best(state: TrainState, score: jax.Array) -> TrainState:
    """The state with the present average as the best one, if its score is lower."""
    better = score < state.best_score
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.ema, state.best)
    return state._replace(
        best=best,
        best_score=jnp.where(better, score, state.best_score).astype(jnp.float32),
        best_step=jnp.where(better, state.step, state.best_step),
    )
