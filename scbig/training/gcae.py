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
from scbig.errors import InputError
from scbig.training import loop
from scbig.training.autoencoder import Autoencoder, Counts, dispersion_of, encode_blocks
from scbig.training.feed import Feed, Parts, Schedule, batches_per_call, choose_feed, densify, resident, stored
from scbig.training.state import TrainState, apply_gradients, initial_state, make_optimizer

__all__ = ["PretrainConfig", "advance", "advance_streamed", "pretrain"]

_SCALED = 65_536  # cells whose latents give the mean and the scale
_BLOCK = 4096  # cells whose counts are summed at once
_HALVINGS = 1  # of the counts that are told from the others: one leaves a half of them, two a quarter


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


def _update(state, x, depth, auto, optimizer, config, seed):
    """One update on a batch of cells, given as log-expression, and their depth where counts are modelled."""
    dropout = rng.key(seed, "gcae dropout", state.step)
    if auto.counts is None:
        cells = devices.spread(x - auto.gene_mean[None])
    else:
        halves = devices.spread(_divided(x, depth, auto, rng.key(seed, "gcae halves", state.step)))

    def objective(params):
        network = nnx.merge(auto.graph, params, auto.buffers)
        if auto.counts is None:
            return losses.reconstruction(network(cells, dropout), cells)
        return _surprise(network, params, *halves, auto, dropout)

    loss, gradients = jax.value_and_grad(objective)(state.params)
    return apply_gradients(state, gradients, optimizer, config.ema), {"loss": loss}


def _divided(x, depth, auto, key):
    """One part of every cell's counts as centred log-expression to be encoded, the other part and its depth to be told.

    An autoencoder that is asked for the counts it was given learns their noise; noise drawn anew would then come on top.
    The noise of two random parts of the same counts is independent, so that only what they share can be learned.
    """
    counts = jnp.round(jnp.expm1(x) * depth[:, None])
    told, share = counts, 1.0
    for number in range(_HALVINGS):
        told, share = losses.thinned(told, jax.random.fold_in(key, number)), share / 2.0
    given = jnp.log1p((counts - told) / ((1.0 - share) * depth[:, None]))
    return given - auto.gene_mean[None], told, share * depth


def _surprise(network, params, cells, told, depth, auto, dropout):
    """Mean negative log-likelihood of counts, given others of the same cells."""
    log_mean = network(cells, dropout) + auto.counts.log_rate[None] + jnp.log(depth)[:, None]
    return -jnp.mean(losses.log_likelihood(told, log_mean, dispersion_of(params, auto.counts)))


@partial(jax.jit, static_argnames=("optimizer", "config", "seed", "chunk"), donate_argnames="state")
def advance(
    state: TrainState,
    x: Float[Array, "cells genes"],
    train: Int[Array, " training"],
    auto: Autoencoder,
    depth: Float[Array, " training"] | None = None,
    *,
    optimizer: optax.GradientTransformation,
    config: PretrainConfig,
    seed: int,
    chunk: int,
) -> tuple[TrainState, dict[str, Array]]:
    """``chunk`` updates in one compiled call, on cells drawn with replacement from a matrix on the device.

    The draw depends on the seed and the step alone. The state is consumed; metrics are means over the updates. ``depth``
    is that of the rows of ``x``, where counts are modelled.
    """

    def body(carry, _):
        key = rng.key(seed, "gcae batch", carry.step)
        index = train[jax.random.randint(key, (config.batch,), 0, train.shape[0])]
        return _update(carry, x[index], None if depth is None else depth[index], auto, optimizer, config, seed)

    state, metrics = jax.lax.scan(body, state, length=chunk)
    return state, {name: jnp.mean(values) for name, values in metrics.items()}


@partial(jax.jit, static_argnames=("optimizer", "config", "seed"), donate_argnames="state")
def advance_streamed(
    state: TrainState,
    parts: Parts,
    auto: Autoencoder,
    depth: Float[Array, "batches cells"] | None = None,
    *,
    optimizer: optax.GradientTransformation,
    config: PretrainConfig,
    seed: int,
) -> tuple[TrainState, dict[str, Array]]:
    """One update for each batch that came from disk, in one compiled call."""

    def body(carry, batch):
        part, sizes = batch
        cells = densify(*part, config.batch, auto.gene_mean.shape[0])
        return _update(carry, cells, sizes, auto, optimizer, config, seed)

    state, metrics = jax.lax.scan(body, state, (parts, depth))
    return state, {name: jnp.mean(values) for name, values in metrics.items()}


@jax.jit
def _held_out_error(params, cells, auto):
    """Reconstruction error of held-out cells, batch by batch, and the share of their variance it explains."""
    network = nnx.merge(auto.graph, params, auto.buffers)
    squared = jax.lax.map(lambda batch: jnp.mean(jnp.square(network(batch) - batch)), cells)
    error = jnp.mean(squared)
    return error, {"explained": 1.0 - error / jnp.mean(jnp.square(cells))}


@jax.jit
def _held_out_surprise(params, x, depth, auto):
    """The same of counts: what the expected log-expression explains is comparable, the surprise is not."""
    network, key = nnx.merge(auto.graph, params, auto.buffers), rng.key(0, "gcae held-out halves")

    def batch(each):
        number, x, depth = each
        halves = _divided(x, depth, auto, jax.random.fold_in(key, number))
        log_rate = network(x - auto.gene_mean[None]) + auto.counts.log_rate[None]
        expected = losses.expected_log(log_rate, dispersion_of(params, auto.counts), depth)
        return _surprise(network, params, *halves, auto, None), jnp.mean(jnp.square(expected - x))

    surprise, squared = jax.lax.map(batch, (jnp.arange(x.shape[0]), x, depth))
    error = jnp.mean(squared)
    extra = {"error": error, "explained": 1.0 - error / jnp.mean(jnp.square(x - auto.gene_mean[None, None]))}
    return jnp.mean(surprise), extra


def pretrain(
    auto: Autoencoder,
    x: Any,
    train: Bool[np.ndarray, " cells"],
    held_out: Bool[np.ndarray, " cells"],
    config: PretrainConfig,
    seed: int,
    folder: Path,
    log_folder: Path,
    depth: Float[np.ndarray, " cells"] | None = None,
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
        depth: of every cell, in units of the sum that counts are scaled to; needed where counts are modelled.

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
    own = None
    if auto.counts is not None:
        own = depth[train]
        auto = replace(auto, counts=_count_moments(rows, own))
    everywhere = devices.replicate(auto)
    watched = _watched(held_out, config, seed)
    cells = devices.replicate(_held_out_cells(x, watched, auto))
    sizes = None if own is None else devices.replicate(depth[watched].reshape(cells.shape[:2]))

    per_epoch = max(1, round(len(rows) / config.batch))
    chunk = min(per_epoch, 50)
    every = -(-per_epoch * config.evaluate_epochs // chunk) * chunk
    total = max(1, round(config.epochs * per_epoch / every)) * every
    schedule = loop.LoopConfig(total, chunk, every, config.patience, config.checkpoint_every)
    optimizer = _optimizer(config, total)
    settings = {"optimizer": optimizer, "config": config, "seed": seed}

    def evaluate(params):
        if own is None:
            return _held_out_error(params, cells, everywhere)
        return _held_out_surprise(params, cells, sizes, everywhere)

    def train_by(forward):
        start = initial_state(auto.params, optimizer)
        return loop.run("pretrain", start, forward, evaluate, schedule, folder, log_folder)

    if kind == "device":
        on_device, places, deep = devices.replicate((resident(rows), jnp.arange(len(rows), dtype=jnp.int32), own))
        state = train_by(lambda state: advance(state, on_device, places, everywhere, deep, chunk=chunk, **settings))
        del on_device
    else:
        width = stored(rows, config.batch)
        calls = batches_per_call(chunk, width)
        with Feed(Schedule(rows, seed, config.buffer), width, config.batch, calls, own) as feed:
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
            parts, depth = next(feed)
            state, metrics = advance_streamed(state, parts, auto, depth, **settings)
            every.append(metrics)
        return state, jax.tree.map(lambda *values: sum(values) / n_calls, *every)

    return forward


def _count_moments(rows: Rows, depth: Float[np.ndarray, " cells"]) -> Counts:
    """Mean rate and dispersion of the training counts, block by block.

    Raises:
        InputError: where expression and depth do not give whole counts.
    """
    total, squares, mixed = np.zeros((3, rows.shape[1]))
    for number, block in enumerate(rows.blocks(_BLOCK)):
        sizes = depth[number * _BLOCK :][: block.shape[0]].astype(np.float64)
        each = np.repeat(sizes, np.diff(block.indptr))
        found = np.expm1(block.data.astype(np.float64)) * each
        counts = np.round(found)
        if (np.abs(found - counts) > 0.02 + 1e-3 * counts).any():
            raise InputError(
                "expression and obs['size_factor'] of the prepared screen do not give whole counts; run `scbig prepare` "
                "again on counts, or set --config.gcae.likelihood=gaussian"
            )
        for sums, weights in ((total, counts), (squares, counts**2), (mixed, counts * each)):
            sums += np.bincount(block.indices, weights=weights, minlength=len(sums))
    size, square = float(depth.sum(dtype=np.float64)), float(np.square(depth, dtype=np.float64).sum())
    # Half a count where a gene has none, so that its rate has a logarithm.
    rate = np.maximum(total, 0.5) / size
    excess = squares - 2.0 * rate * mixed + square * rate**2 - size * rate
    inverse = np.clip(square * rate**2 / np.maximum(excess, 1e-9), 0.05, 50.0)
    logs = jnp.asarray(np.log([rate, inverse]), jnp.float32)
    return Counts(logs[0], logs[1], jnp.asarray(np.median(depth), jnp.float32))


def _watched(held_out: Bool[np.ndarray, " cells"], config: PretrainConfig, seed: int) -> Int[np.ndarray, " watched"]:
    """The cells to stop on, in whole batches."""
    watched = np.flatnonzero(held_out)
    if len(watched) > config.max_held_out:
        watched = np.sort(rng.generator(seed, "gcae held out").choice(watched, config.max_held_out, replace=False))
    # Whole batches only: the few cells left over are not worth a second compilation.
    size = min(256, len(watched))
    return watched[: len(watched) // size * size]


def _held_out_cells(
    x: Rows, watched: Int[np.ndarray, " watched"], auto: Autoencoder
) -> Float[Array, "batches batch genes"]:
    """The expression of the cells to stop on in batches; centred, unless counts are modelled."""
    cells = jnp.asarray(x[watched].toarray())
    cells = cells - auto.gene_mean[None] if auto.counts is None else cells
    return cells.reshape(-1, min(256, len(watched)), x.shape[1])


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
