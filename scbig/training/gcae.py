"""Stage 1: the autoencoder learns to reconstruct the training cells (paper Eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx
from jaxtyping import Bool

from scbig import losses, rng
from scbig.training import loop
from scbig.training.autoencoder import Autoencoder, encode_all
from scbig.training.state import TrainState, apply_gradients, initial_state, make_optimizer

__all__ = ["PretrainConfig", "pretrain"]


@dataclass(frozen=True)
class PretrainConfig:
    """How the autoencoder is trained."""

    epochs: int = 100
    batch: int = 256
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warmup: int = 200  # updates
    clip: float = 1.0
    ema: float = 0.995
    patience: int = 10  # evaluations
    evaluate_epochs: int = 1  # epochs between evaluations
    checkpoint_every: int = 5  # evaluations
    max_held_out: int = 2048  # cells in an evaluation


def _step(state, x, train, auto, optimizer, config, seed):
    """One update on cells drawn with replacement; the draw depends on the seed and the step alone."""
    index = jax.random.randint(rng.key(seed, "gcae batch", state.step), (config.batch,), 0, train.shape[0])
    cells = x[train[index]] - auto.gene_mean[None]
    dropout = rng.key(seed, "gcae dropout", state.step)

    def objective(params):
        return losses.reconstruction(nnx.merge(auto.graph, params, auto.buffers)(cells, dropout), cells)

    loss, gradients = jax.value_and_grad(objective)(state.params)
    return apply_gradients(state, gradients, optimizer, config.ema), {"loss": loss}


@partial(jax.jit, static_argnames=("optimizer", "config", "seed", "chunk"), donate_argnames="state")
def _advance(state, x, train, auto, *, optimizer, config, seed, chunk):
    def body(carry, _):
        return _step(carry, x, train, auto, optimizer, config, seed)

    state, metrics = jax.lax.scan(body, state, length=chunk)
    return state, {name: jnp.mean(values) for name, values in metrics.items()}


@jax.jit
def _held_out_error(params, cells, auto):
    """Reconstruction error of held-out cells, batch by batch, and the share of their variance it explains."""
    network = nnx.merge(auto.graph, params, auto.buffers)
    squared = jax.lax.map(lambda batch: jnp.mean(jnp.square(network(batch) - batch)), cells)
    error = jnp.mean(squared)
    return error, {"explained": 1.0 - error / jnp.mean(jnp.square(cells))}


def pretrain(
    auto: Autoencoder,
    x: Any,
    train: Bool[np.ndarray, " cells"],
    held_out: Bool[np.ndarray, " cells"],
    config: PretrainConfig,
    seed: int,
    folder: Path,
    log_folder: Path,
) -> tuple[Autoencoder, TrainState]:
    """Trains until the reconstruction of held-out cells of the training conditions stops improving.

    Args:
        auto: the untrained autoencoder.
        x: log-expression, dense or CSR ``[cells, genes]``.
        train: cells to learn from.
        held_out: cells of training conditions to stop on; disjoint from ``train``.
        config: the training's settings.
        seed: the run's seed.
        folder: for checkpoints.
        log_folder: the run directory.

    Returns:
        The autoencoder with its best parameters, the training mean and the latent scale; and the loop's last state.
    """
    dense = np.asarray(x.todense() if sp.issparse(x) else x, np.float32)
    rows = np.flatnonzero(train)
    auto = replace(auto, gene_mean=jnp.asarray(dense[rows].mean(axis=0)))
    watched = np.flatnonzero(held_out)
    if len(watched) > config.max_held_out:
        watched = np.sort(rng.generator(seed, "gcae held out").choice(watched, config.max_held_out, replace=False))
    # Whole batches only: the few cells left over are not worth a second compilation.
    size = min(256, len(watched))
    cells = jnp.asarray(dense[watched[: len(watched) // size * size]]) - auto.gene_mean[None]
    cells = cells.reshape(-1, size, dense.shape[1])

    per_epoch = max(1, round(len(rows) / config.batch))
    chunk = min(per_epoch, 50)
    every = -(-per_epoch * config.evaluate_epochs // chunk) * chunk
    total = max(1, round(config.epochs * per_epoch / every)) * every
    schedule = loop.LoopConfig(total, chunk, every, config.patience, config.checkpoint_every)
    optimizer = _optimizer(config, total)
    on_device, train_rows = jnp.asarray(dense), jnp.asarray(rows, jnp.int32)

    def advance(state):
        return _advance(state, on_device, train_rows, auto, optimizer=optimizer, config=config, seed=seed, chunk=chunk)

    def evaluate(params):
        return _held_out_error(params, cells, auto)

    state = loop.run("pretrain", initial_state(auto.params, optimizer), advance, evaluate, schedule, folder, log_folder)
    auto = replace(auto, params=state.best)
    raw = encode_all(auto, dense[rows])
    mean = raw.mean(axis=0)
    scale = np.sqrt(np.mean((raw - mean) ** 2))
    return replace(auto, latent_mean=jnp.asarray(mean), latent_scale=jnp.asarray(scale)), state


def _optimizer(config: PretrainConfig, total: int):
    return make_optimizer(config.learning_rate, total, min(config.warmup, total // 10), config.schedule, config.clip)
