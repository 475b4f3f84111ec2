"""Stage 1: the autoencoder learns to reconstruct the training cells (paper Eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from scbig import devices, losses, rng
from scbig.console import say
from scbig.data.store import Rows, column_sums
from scbig.training import loop
from scbig.training.autoencoder import Autoencoder, encode_blocks
from scbig.training.feed import Feed, Parts, Schedule, batches_per_call, choose_feed, densify, resident, stored
from scbig.training.state import TrainState, apply_gradients, initial_state, make_optimizer

__all__ = ["PretrainConfig", "advance", "advance_streamed", "pretrain"]

_SCALED = 65_536  # cells whose latents give the mean and the scale


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
    feed: str = "auto"  # auto | device | stream
    device_gb: float = 0.0  # of dense cells that auto keeps on the device; 0: 4 on a CPU, half of an accelerator's
    buffer: int = 16384  # cells that are shuffled together when streaming


def _update(state, cells, auto, optimizer, config, seed):
    """One update on a batch of centred cells."""
    cells = devices.spread(cells)
    dropout = rng.key(seed, "gcae dropout", state.step)

    def objective(params):
        return losses.reconstruction(nnx.merge(auto.graph, params, auto.buffers)(cells, dropout), cells)

    loss, gradients = jax.value_and_grad(objective)(state.params)
    return apply_gradients(state, gradients, optimizer, config.ema), {"loss": loss}


@partial(jax.jit, static_argnames=("optimizer", "config", "seed", "chunk"), donate_argnames="state")
def advance(
    state: TrainState,
    x: Float[Array, "cells genes"],
    train: Int[Array, " training"],
    auto: Autoencoder,
    *,
    optimizer: optax.GradientTransformation,
    config: PretrainConfig,
    seed: int,
    chunk: int,
) -> tuple[TrainState, dict[str, Array]]:
    """``chunk`` updates in one compiled call, on cells drawn with replacement from a matrix on the device.

    The draw depends on the seed and the step alone. The state is consumed; metrics are means over the updates.
    """

    def body(carry, _):
        key = rng.key(seed, "gcae batch", carry.step)
        index = jax.random.randint(key, (config.batch,), 0, train.shape[0])
        return _update(carry, x[train[index]] - auto.gene_mean[None], auto, optimizer, config, seed)

    state, metrics = jax.lax.scan(body, state, length=chunk)
    return state, {name: jnp.mean(values) for name, values in metrics.items()}


@partial(jax.jit, static_argnames=("optimizer", "config", "seed"), donate_argnames="state")
def advance_streamed(
    state: TrainState,
    parts: Parts,
    auto: Autoencoder,
    *,
    optimizer: optax.GradientTransformation,
    config: PretrainConfig,
    seed: int,
) -> tuple[TrainState, dict[str, Array]]:
    """One update for each batch that came from disk, in one compiled call."""

    def body(carry, part):
        cells = densify(*part, config.batch, auto.gene_mean.shape[0]) - auto.gene_mean[None]
        return _update(carry, cells, auto, optimizer, config, seed)

    state, metrics = jax.lax.scan(body, state, parts)
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
        x: log-expression, dense, CSR or rows on disk ``[cells, genes]``.
        train: cells to learn from.
        held_out: cells of training conditions to stop on; disjoint from ``train``.
        config: the training's settings.
        seed: the run's seed.
        folder: for checkpoints.
        log_folder: the run directory.

    Returns:
        The autoencoder with its best parameters, the training mean and the latent scale; and the loop's last state.

    Raises:
        InputError: settings that do not fit, a damaged file, or a loss that is not finite.
    """
    devices.check_divides(config.batch, "batch", "pretrain.batch")
    x = Rows.of(x)
    rows = x.chosen(train)
    kind, line = choose_feed(config.feed, config.device_gb, *rows.shape)
    say(f"pretrain: {line}")
    auto = replace(auto, gene_mean=jnp.asarray(column_sums(rows) / max(len(rows), 1), jnp.float32))
    everywhere = devices.replicate(auto)
    cells = devices.replicate(_held_out_cells(x, held_out, auto, config, seed))

    per_epoch = max(1, round(len(rows) / config.batch))
    chunk = min(per_epoch, 50)
    every = -(-per_epoch * config.evaluate_epochs // chunk) * chunk
    total = max(1, round(config.epochs * per_epoch / every)) * every
    schedule = loop.LoopConfig(total, chunk, every, config.patience, config.checkpoint_every)
    optimizer = _optimizer(config, total)
    settings = {"optimizer": optimizer, "config": config, "seed": seed}

    def evaluate(params):
        return _held_out_error(params, cells, everywhere)

    def train_by(forward):
        start = initial_state(auto.params, optimizer)
        return loop.run("pretrain", start, forward, evaluate, schedule, folder, log_folder)

    if kind == "device":
        on_device, places = devices.replicate((resident(rows), jnp.arange(len(rows), dtype=jnp.int32)))
        state = train_by(lambda state: advance(state, on_device, places, everywhere, chunk=chunk, **settings))
        del on_device
    else:
        width = stored(rows, config.batch)
        calls = batches_per_call(chunk, width)
        with Feed(Schedule(rows, seed, config.buffer), width, config.batch, calls) as feed:
            state = train_by(_from_feed(feed, chunk // calls, everywhere, settings))
        if feed.cells:
            say(f"pretrain: feed stream, {feed.rate:,.0f} cells/s")
    return _standardised(replace(auto, params=devices.local(state.best)), rows, seed), state


def _from_feed(feed: Feed, n_calls: int, auto: Autoencoder, settings: dict[str, Any]):
    """The loop's step: as many calls as make its chunk, each on what the feed has ready."""
    started = False

    def forward(state):
        nonlocal started
        if not started:
            # Only here is it known where training continues; later steps are counted by the feed.
            feed.start(int(state.step))
            started = True
        every = []
        for _ in range(n_calls):
            state, metrics = advance_streamed(state, next(feed), auto, **settings)
            every.append(metrics)
        return state, jax.tree.map(lambda *values: sum(values) / n_calls, *every)

    return forward


def _held_out_cells(
    x: Rows, held_out: Bool[np.ndarray, " cells"], auto: Autoencoder, config: PretrainConfig, seed: int
) -> Float[Array, "batches batch genes"]:
    """The centred cells to stop on, in whole batches."""
    watched = np.flatnonzero(held_out)
    if len(watched) > config.max_held_out:
        watched = np.sort(rng.generator(seed, "gcae held out").choice(watched, config.max_held_out, replace=False))
    # Whole batches only: the few cells left over are not worth a second compilation.
    size = min(256, len(watched))
    dense = x[watched[: len(watched) // size * size]].toarray()
    return (jnp.asarray(dense) - auto.gene_mean[None]).reshape(-1, size, x.shape[1])


def _standardised(auto: Autoencoder, rows: Rows, seed: int) -> Autoencoder:
    """The autoencoder with the mean and the one scale of the training cells' latents, block by block."""
    if len(rows) > _SCALED:
        rows = rows.chosen(np.sort(rng.generator(seed, "gcae scale").choice(len(rows), _SCALED, replace=False)))
    total, square = np.zeros(auto.latent_mean.shape[0]), 0.0
    for raw in encode_blocks(auto, rows):
        total += raw.sum(axis=0, dtype=np.float64)
        square += float(np.square(raw, dtype=np.float64).sum())
    mean = total / len(rows)
    scale = np.sqrt(max(square / (len(rows) * len(mean)) - float(np.mean(mean**2)), 0.0))
    return replace(auto, latent_mean=jnp.asarray(mean, jnp.float32), latent_scale=jnp.asarray(scale, jnp.float32))


def _optimizer(config: PretrainConfig, total: int):
    return make_optimizer(config.learning_rate, total, min(config.warmup, total // 10), config.schedule, config.clip)
